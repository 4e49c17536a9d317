// SPDX-License-Identifier: Apache-2.0
#include "tilewise/machine/cpu/context.h"

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <fstream>
#include <sstream>
#include <string_view>

#include "tilewise/machine/cpu/limits.h"
#include "tilewise/machine/cpu/target.h"
#include "tilewise/machine/cpu/thread_pool.h"

TILEWISE_BEGIN_PUBLIC

namespace {

constexpr int kMostThreads = 1024;

std::string text_of(const char* path) {
  std::ifstream file(path);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

}  // namespace

int default_threads() {
  const char* const text = std::getenv("TILEWISE_THREADS");
  if (text != nullptr && *text != '\0') {
    const std::string_view all = text;
    int threads = 0;
    const auto [end, error] = std::from_chars(all.data(), all.data() + all.size(), threads);
    check(error == std::errc{} && end == all.data() + all.size() && threads >= 1 && threads <= kMostThreads, Error::Kind::value,
          "TILEWISE_THREADS is \"", all, "\", takes a whole number from 1 to ", kMostThreads, "; unset it to use what affinity and cgroup leave");
    return threads;
  }
  const int allowed = std::min(machine::cpu::affinity_threads(), kMostThreads);
  const std::optional<int> quota = machine::cpu::quota_threads("/sys/fs/cgroup", text_of("/proc/self/cgroup"));
  return std::max(1, quota ? std::min(allowed, *quota) : allowed);
}

Context cpu_context(int threads) {
  check(threads >= 0 && threads <= kMostThreads, Error::Kind::value, "cpu_context: threads is ", threads, ", takes 0 (automatic) to ", kMostThreads);
  machine::cpu::current_target();  // an impossible TILEWISE_TARGET is refused here, not in the first kernel
  Context context;
  const int count = threads == 0 ? default_threads() : threads;
  context.executor = count == 1 ? serial_executor() : make_thread_pool(count);
  return context;
}

TILEWISE_END_PUBLIC
