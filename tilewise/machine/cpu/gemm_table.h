// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>

namespace tilewise::machine::cpu {

// What gemm.cpp calls, one table a target. Meanings: gemm.h.
struct GemmTable {
  void (*pack_lanes)(const float* rows, int64_t stride, int count, int64_t channels, float* packed);
  void (*multiply)(const float* const* rows, int count, int64_t channels, const float* packed, float* scores, bool accumulate, int lanes);
  void (*max_lanes)(const float* scores, int count, float* row_max);
  void (*exp_lanes)(float* scores, int count, float scale_log2, const float* shift, float* row_sum);
  void (*add_rows)(const float* scores, int count, float* sums);
  void (*widen_bf16)(const uint16_t* source, int64_t count, float* out);
};

namespace portable {
extern const GemmTable gemm_table;
}
namespace avx2 {
extern const GemmTable gemm_table;
}
namespace avx512 {
extern const GemmTable gemm_table;
}
namespace avx512bf16 {
extern const GemmTable gemm_table;
}

}  // namespace tilewise::machine::cpu
