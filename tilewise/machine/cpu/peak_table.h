// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>

namespace tilewise::machine::cpu {

// Loops of one instruction over 6 to 16 independent accumulators, `rounds` times 32 deep; they answer something made of the results. `sum` adds up what it reads.
struct PeakTable {
  int width;  // f32 lanes
  float (*fma_f32)(int accumulators, int64_t rounds);
  float (*dot_bf16)(int accumulators, int64_t rounds);  // null: the target lacks it
  float (*sum)(const float* data, int64_t count);
};

namespace portable {
extern const PeakTable peak_table;
}
namespace avx2 {
extern const PeakTable peak_table;
}
namespace avx512 {
extern const PeakTable peak_table;
}
namespace avx512bf16 {
extern const PeakTable peak_table;
}

}  // namespace tilewise::machine::cpu
