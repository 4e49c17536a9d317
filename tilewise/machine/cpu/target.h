// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <span>
#include <string>
#include <string_view>

#include "tilewise/base/api.h"

namespace tilewise::machine::cpu {

/// Instruction sets that kernels are compiled for, in ascending order. Bits of results depend on the target.
enum class Target : unsigned char { portable, avx2, avx512, avx512bf16 };
inline constexpr int kNumTargets = 4;

/// "portable", "avx2", "avx512", "avx512bf16".
TILEWISE_API std::string_view name(Target target);

/// What this processor and its operating system can run, ascending; portable is always there.
TILEWISE_API std::span<const Target> available_targets();

/// The target that kernels use now: what TILEWISE_TARGET names, else the highest available. Read at every call.
/// Errors: value (TILEWISE_TARGET is unknown, or names what this machine cannot run).
TILEWISE_API Target current_target();

/// Processor name as cpuid gives it, e.g. "AMD EPYC 9R14"; "unknown" where there is none.
TILEWISE_API std::string processor_name();

/// A table with one entry a target, as kernels export it: `Table` is any struct. Kernels index it with current_target().
template <class Table>
struct PerTarget {
  const Table* table[kNumTargets];
  const Table& operator[](Target target) const { return *table[static_cast<int>(target)]; }
};

}  // namespace tilewise::machine::cpu
