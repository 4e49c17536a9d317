// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <optional>
#include <string>

#include "tilewise/base/api.h"

namespace tilewise::machine::cpu {

/// Processors that the affinity mask of the calling thread allows; at least 1.
TILEWISE_API int affinity_threads();

/// Processors that the cgroup quota leaves, rounded up; nullopt: no quota. Reads cgroup v2 (`cpu.max`) and v1 (`cpu.cfs_quota_us`) of the group that
/// `proc_cgroup` (the text of /proc/self/cgroup) names and of all groups above it, below the mount point `root` (/sys/fs/cgroup); the smallest counts.
TILEWISE_API std::optional<int> quota_threads(const std::string& root, const std::string& proc_cgroup);

}  // namespace tilewise::machine::cpu
