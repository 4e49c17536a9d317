// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <string>

#include "tilewise/base/context.h"
#include "tilewise/machine/cpu/target.h"

// What this processor can do at most: the ceilings that benches hold kernels against, measured in the same process.
namespace tilewise::machine::cpu {

enum class Instruction : unsigned char { fma_f32, dot_bf16 };

struct Peak {
  double gflops = 0;            // all workers of the context together, best over 6 to 16 accumulators
  int accumulators = 0;         // the number that gave it
  double clock_ghz = 0;         // of a chain of dependent additions, one worker, just before
  double flop_per_cycle = 0;    // per core, found: gflops / workers / clock
  double expected = 0;          // what the processor is known for (Zen 4, Zen 5), else the power of two next to what was found
  /// 97 % of workers x expected x clock: what a sound measurement reaches.
  bool is_sound(int workers) const { return gflops >= 0.97 * workers * expected * clock_ghz; }
};

/// The clock now, from a chain of dependent 64-bit additions: one a cycle on every processor.
TILEWISE_API double measure_clock_ghz();

/// Whether the target has the instruction.
TILEWISE_API bool has_instruction(Target target, Instruction instruction);

/// Runs a loop of independent instructions on every worker of the context for about `seconds`. Errors: unsupported.
TILEWISE_API Peak measure_peak(Target target, Instruction instruction, double seconds, Context& context);

/// The sum of `count` floats, eight vectors at a time: what reading costs when nothing else is done. The caller times it. Errors: unsupported.
TILEWISE_API float sum(Target target, const float* data, int64_t count);

}  // namespace tilewise::machine::cpu
