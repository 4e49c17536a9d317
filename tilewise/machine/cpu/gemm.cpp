// SPDX-License-Identifier: Apache-2.0
#include "tilewise/machine/cpu/gemm.h"

#include <cstring>

#include "tilewise/machine/cpu/gemm_table.h"
#include "tilewise/machine/cpu/target.h"

namespace tilewise::machine::cpu {
namespace {

#if defined(__x86_64__)
constexpr PerTarget<GemmTable> kTables{{&portable::gemm_table, &avx2::gemm_table, &avx512::gemm_table, &avx512bf16::gemm_table}};
#else
constexpr PerTarget<GemmTable> kTables{{&portable::gemm_table, nullptr, nullptr, nullptr}};
#endif

const GemmTable& table() { return kTables[current_target()]; }

}  // namespace

void pack_lanes(const float* rows, int64_t stride, int count, int64_t channels, float* packed) {
  table().pack_lanes(rows, stride, count, channels, packed);
}

void multiply(const float* const* rows, int count, int64_t channels, const float* packed, float* scores, bool accumulate, int lanes) {
  table().multiply(rows, count, channels, packed, scores, accumulate, lanes);
}

void max_lanes(const float* scores, int count, float* row_max) { table().max_lanes(scores, count, row_max); }

void exp_lanes(float* scores, int count, float scale_log2, const float* shift, float* row_sum) {
  table().exp_lanes(scores, count, scale_log2, shift, row_sum);
}

void add_rows(const float* scores, int count, float* sums) { table().add_rows(scores, count, sums); }

void to_float(const void* source, Dtype dtype, int64_t count, float* out) {
  check(dtype == Dtype::f32 || dtype == Dtype::bf16, Error::Kind::dtype, "to_float: the source is ", dtype, ", takes f32 or bf16; convert it first");
  if (count <= 0) return;
  if (dtype == Dtype::f32) {
    std::memcpy(out, source, static_cast<size_t>(count) * sizeof(float));
  } else {
    table().widen_bf16(static_cast<const uint16_t*>(source), count, out);
  }
}

}  // namespace tilewise::machine::cpu
