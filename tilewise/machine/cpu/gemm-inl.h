// SPDX-License-Identifier: Apache-2.0
// The functions of gemm.h, compiled once per target. A block of 64 lanes is 64 / kGroupLanes groups one behind the other, [channels][kGroupLanes] each.
#include "tilewise/machine/cpu/gemm_table.h"
#include "tilewise/machine/cpu/product-inl.h"
#include "tilewise/machine/cpu/simd.h"

namespace tilewise::machine::cpu::TILEWISE_TARGET {
namespace {

constexpr int kBlock = 64;

void pack_lanes(const float* rows, int64_t stride, int count, int64_t channels, float* packed) {
  for (int first = 0; first < kBlock; first += kGroupLanes) {
    const int lanes = count - first;
    pack_units<kGroupVectors>(rows + (lanes > 0 ? first * stride : 0), stride, lanes > 0 ? lanes : 0, channels, packed + first * channels);
  }
}

template <int R, int V>
TILEWISE_INLINE void multiply_tile(const float* const* rows, int64_t channels, const float* lanes, float* scores, bool accumulate) {
  Vf acc[R][V];
  clear(acc);
  multiply_along<F32>(acc, rows, channels, lanes);
  TILEWISE_UNROLL
  for (int i = 0; i < R; ++i) {
    TILEWISE_UNROLL
    for (int j = 0; j < V; ++j) {
      float* const place = scores + i * kBlock + j * kWidth;
      store(place, accumulate ? add(load(place), acc[i][j]) : acc[i][j]);
    }
  }
}

void multiply(const float* const* rows, int count, int64_t channels, const float* packed, float* scores, bool accumulate, int lanes) {
  for (int first = 0; first < lanes; first += kGroupLanes) {
    const float* const group = packed + first * channels;
    int i = 0;
    while (i < count) {
      const int left = count - i;
      const int step = left >= kRowTail ? step_of(left - left % kRowTail) : kRowTail;
      if (step == kRows) {
        multiply_tile<kRows, kGroupVectors>(rows + i, channels, group, scores + i * kBlock + first, accumulate);
      } else {
        const float* tail[kRowTail];  // rows behind the last repeat it
        for (int t = 0; t < kRowTail; ++t) tail[t] = rows[i + t < count ? i + t : count - 1];
        multiply_tile<kRowTail, kGroupVectors>(tail, channels, group, scores + i * kBlock + first, accumulate);
      }
      i += step;
    }
  }
}

void max_lanes(const float* scores, int count, float* row_max) {
  for (int j = 0; j < kBlock; j += kWidth) {
    Vf most = load(row_max + j);
    for (int i = 0; i < count; ++i) most = max(most, load(scores + i * kBlock + j));
    store(row_max + j, most);
  }
}

void exp_lanes(float* scores, int count, float scale_log2, const float* shift, float* row_sum) {
  const Vf scale = broadcast(scale_log2);
  for (int j = 0; j < kBlock; j += kWidth) {
    const Vf minus_shift = sub(zero(), load(shift + j));
    Vf sum = load(row_sum + j);
    for (int i = 0; i < count; ++i) {
      const Vf p = exp2(fma(load(scores + i * kBlock + j), scale, minus_shift));
      store(scores + i * kBlock + j, p);
      sum = add(sum, p);
    }
    store(row_sum + j, sum);
  }
}

void add_rows(const float* scores, int count, float* sums) {
  for (int j = 0; j < kBlock; j += kWidth) {
    Vf sum = load(sums + j);
    for (int i = 0; i < count; ++i) sum = add(sum, load(scores + i * kBlock + j));
    store(sums + j, sum);
  }
}

void widen_bf16(const uint16_t* source, int64_t count, float* out) {
  int64_t i = 0;
  for (; i + kWidth <= count; i += kWidth) store(out + i, load_bf16(source + i));
  if (i < count) store_n(out + i, load_bf16_n(source + i, static_cast<int>(count - i)), static_cast<int>(count - i));
}

}  // namespace

extern const GemmTable gemm_table;
const GemmTable gemm_table{.pack_lanes = &pack_lanes,
                           .multiply = &multiply,
                           .max_lanes = &max_lanes,
                           .exp_lanes = &exp_lanes,
                           .add_rows = &add_rows,
                           .widen_bf16 = &widen_bf16};

}  // namespace tilewise::machine::cpu::TILEWISE_TARGET
