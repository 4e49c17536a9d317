// SPDX-License-Identifier: Apache-2.0
#include "tilewise/machine/cpu/limits.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <sstream>
#include <string_view>
#include <thread>
#if defined(__linux__)
#include <sched.h>
#endif

namespace tilewise::machine::cpu {
namespace {

// What one group may use, in processors; nullopt: no limit, or no such file.
std::optional<double> limit_v2(const std::string& folder) {
  std::ifstream file(folder + "/cpu.max");
  double quota = 0, period = 0;
  if (!(file >> quota >> period) || quota <= 0 || period <= 0) return std::nullopt;  // "max 100000" does not read as a number
  return quota / period;
}

std::optional<double> limit_v1(const std::string& folder) {
  std::ifstream quota_file(folder + "/cpu.cfs_quota_us"), period_file(folder + "/cpu.cfs_period_us");
  double quota = 0, period = 0;
  if (!(quota_file >> quota) || !(period_file >> period) || quota <= 0 || period <= 0) return std::nullopt;  // -1: no limit
  return quota / period;
}

// The smallest limit of the group `path` (absolute, below `mount`) and of those above it.
template <class Limit>
std::optional<double> smallest(const std::string& mount, std::string path, const Limit& limit) {
  std::optional<double> least;
  for (;;) {
    while (!path.empty() && path.back() == '/') path.pop_back();
    if (const std::optional<double> one = limit(mount + path)) least = least ? std::min(*least, *one) : *one;
    const size_t slash = path.rfind('/');
    if (path.empty() || slash == std::string::npos) return least;
    path.resize(slash);
  }
}

bool lists_cpu(std::string_view controllers) {
  while (!controllers.empty()) {
    const size_t comma = controllers.find(',');
    if (controllers.substr(0, comma) == "cpu") return true;
    if (comma == std::string_view::npos) return false;
    controllers.remove_prefix(comma + 1);
  }
  return false;
}

}  // namespace

int affinity_threads() {
#if defined(__linux__)
  for (int most = 1024; most <= (1 << 20); most *= 4) {  // the kernel refuses a set smaller than its own
    cpu_set_t* const set = CPU_ALLOC(static_cast<size_t>(most));
    if (set == nullptr) break;
    const size_t bytes = CPU_ALLOC_SIZE(static_cast<size_t>(most));
    const bool is_read = sched_getaffinity(0, bytes, set) == 0;
    const int count = is_read ? CPU_COUNT_S(bytes, set) : 0;
    CPU_FREE(set);
    if (is_read) return std::max(1, count);
  }
  return 1;
#else
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));  // no affinity call here; Linux never comes this way
#endif
}

std::optional<int> quota_threads(const std::string& root, const std::string& proc_cgroup) {
  std::optional<double> least;
  const auto take = [&](std::optional<double> one) {
    if (one) least = least ? std::min(*least, *one) : *one;
  };
  std::istringstream lines(proc_cgroup);
  for (std::string line; std::getline(lines, line);) {  // id:controllers:path, v2 is 0::path
    const size_t first = line.find(':');
    const size_t second = first == std::string::npos ? first : line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1), path = line.substr(second + 1);
    if (controllers.empty()) {
      take(smallest(root, path, limit_v2));
      take(smallest(root + "/unified", path, limit_v2));
    } else if (lists_cpu(controllers)) {
      take(smallest(std::string(root).append("/").append(controllers), path, limit_v1));
      take(smallest(root + "/cpu", path, limit_v1));
    }
  }
  if (!least) return std::nullopt;
  return static_cast<int>(std::clamp(std::ceil(*least), 1.0, 1024.0));
}

}  // namespace tilewise::machine::cpu
