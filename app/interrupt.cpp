// SPDX-License-Identifier: Apache-2.0
#include "app/interrupt.h"

#include <unistd.h>

#include <atomic>
#include <chrono>
#include <csignal>
#include <mutex>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

namespace tilewise::app {
namespace {

// Never destroyed: the watching thread outlives main.
std::stop_source& source() {
  static auto* const one = new std::stop_source;
  return *one;
}
std::mutex& writing() {
  static auto* const one = new std::mutex;
  return *one;
}

// Under writing().
std::vector<std::string>& made_folders() {
  static auto* const one = new std::vector<std::string>;
  return *one;
}

void watch(sigset_t signals) {
  int signal = 0;
  if (sigwait(&signals, &signal) != 0) return;
  source().request_stop();
  std::this_thread::sleep_for(std::chrono::milliseconds(150));
  const std::lock_guard lock(writing());
  for (const std::string& folder : made_folders()) ::rmdir(folder.c_str());  // one that is not empty stays
  say_interrupted();
  ::_exit(kInterruptedExit);
}

}  // namespace

void install_interrupt() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGINT);
  sigaddset(&signals, SIGTERM);
  // Blocked in every thread, so that only the watcher takes them.
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  std::thread(watch, signals).detach();
}

void say_interrupted() {
  static std::atomic_flag was_said;
  if (was_said.test_and_set()) return;
  const std::string_view text = ::isatty(STDERR_FILENO) != 0 ? "\r\033[Ktilewise: interrupted\n" : "tilewise: interrupted\n";
  if (::write(STDERR_FILENO, text.data(), text.size()) < 0) return;  // nobody left to tell
}

std::stop_token interrupt_token() { return source().get_token(); }

void remove_if_interrupted(const std::string& folder) {
  const std::lock_guard lock(writing());
  made_folders().push_back(folder);
}

WritingFiles::WritingFiles() { writing().lock(); }
WritingFiles::~WritingFiles() { writing().unlock(); }

}  // namespace tilewise::app
