// SPDX-License-Identifier: Apache-2.0
#include <chrono>
#include <csignal>
#include <thread>

#include "tests/app/process.h"

namespace tilewise::app {
namespace {

using Clock = std::chrono::steady_clock;

/// Sends a signal after `delay`; checks how the program ended and tells how many milliseconds that took.
long interrupted(std::chrono::milliseconds delay, int signal) {
  TemporaryFolder folder;
  // The child starts with the signals blocked, as it will have them: one that comes before it is ready waits.
  sigset_t signals;
  sigset_t before;
  sigemptyset(&signals);
  sigaddset(&signals, signal);
  pthread_sigmask(SIG_BLOCK, &signals, &before);
  Process process({TILEWISE_PROGRAM, "compare", "--model", "models/reference-lm", "--text", "models/reference-lm/documents/postgresql-wal.txt",
                   "--length", "16384", "--methods", "xattention,oracle", "--report", folder.file("report.html"), "--json", folder.file("out.json")});
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  std::this_thread::sleep_for(delay);
  EXPECT_FALSE(process.has_ended()) << process.wait().err;
  const auto sent = Clock::now();
  ::kill(process.id(), signal);
  const Ended ended = process.wait();
  const auto took = std::chrono::duration_cast<std::chrono::milliseconds>(Clock::now() - sent).count();
  EXPECT_EQ(ended.code, 130) << ended.err;
  EXPECT_EQ(ended.err, "tilewise: interrupted\n");
  EXPECT_EQ(ended.out, "");
  EXPECT_EQ(folder.count(), 0) << "no file, whole or half";
  std::printf("stopped after %ld ms\n", static_cast<long>(took));
  return static_cast<long>(took);
}

/// 200 ms is what the program promises; on a machine that is busy with other tests one of three tries must hold it.
void stops_in_time(int delay_ms, int signal) {
  SCOPED_TRACE(delay_ms);
  long best = 1000000;
  for (int attempt = 0; attempt < 3 && best > 200; ++attempt) best = std::min(best, interrupted(std::chrono::milliseconds(delay_ms), signal));
  EXPECT_LE(best, 200) << "ms";
}

TEST(Interrupt, StopsReadingTheModelAndComputing) {
  for (const int delay_ms : {30, 300, 1200}) stops_in_time(delay_ms, SIGINT);
  stops_in_time(500, SIGTERM);
}

}  // namespace
}  // namespace tilewise::app
