// SPDX-License-Identifier: Apache-2.0
#pragma once
// From keys to probabilities without a strip of scores between: each step's scores become probabilities in registers, by a maximum that is known
// beforehand. Where that guess fails the strip is done again, in two passes.
#include "tilewise/attend/cpu/strip-inl.h"

namespace tilewise::attend::cpu::TILEWISE_TARGET {
namespace {

// Logits as powers of two, less the lane's shift: beyond kSlack the shift is moved when the next strip begins.
inline constexpr float kSlack = 8, kMostShift = 65536;

template <int V>
struct Fused {
  Vf scale;      // log2(e) * softmax_scale
  Vf now[V];     // the shift of each lane, a whole number
  Vf offset[V];  // kExp2Offset - now
  Vf sum[V];     // of p
  Vf norm[V];    // of p as the second product reads it
  Vf most[V], least[V];  // of the scores
};

/// p of two neighbouring rows; rows behind `count` give 0. With the dot instruction the two share 32-bit units.
template <class Op, int V>
TILEWISE_INLINE void fused_pair(int i, int count, const Vf (&raw_even)[V], const Vf (&raw_odd)[V], float* p, Fused<V>& fused) {
  TILEWISE_UNROLL
  for (int j = 0; j < V; ++j) {
    Vf even = exp2_of_product(raw_even[j], fused.scale, fused.offset[j]);
    Vf odd = exp2_of_product(raw_odd[j], fused.scale, fused.offset[j]);
    if (i + 1 >= count) {
      odd = zero();
      if (i >= count) even = zero();
    }
    const Vf both = add(even, odd);
    fused.sum[j] = add(fused.sum[j], both);
    if constexpr (Op::kPerUnit == 1) {
      store(p + (i * V + j) * kWidth, even);
      store(p + ((i + 1) * V + j) * kWidth, odd);
    } else {
#if TILEWISE_TARGET_LEVEL >= 3
      const Vf pair = narrow_pairs(even, odd);
      store(p + (i / 2 * V + j) * kWidth, pair);
      fused.norm[j] = dot_bf16(fused.norm[j], pair, bf16_ones());
#endif
    }
  }
}

/// p of rows [i, i + R) of the strip. The first rows of a strip move the shift of lanes that have none yet, or one too small.
template <class Op, int R, int V, class Each>
TILEWISE_INLINE void fused_rows(const Strip& strip, int i, int64_t units, const float* q, float* p, Fused<V>& fused, const Each& each) {
  Vf acc[R][V];
  clear(acc);
  multiply_along<Op>(acc, strip.k + i, 0, units, q, each);
  TILEWISE_UNROLL
  for (int r = 0; r < R; ++r) {
    TILEWISE_UNROLL
    for (int j = 0; j < V; ++j) {
      fused.most[j] = max(fused.most[j], acc[r][j]);
      fused.least[j] = min(fused.least[j], acc[r][j]);
    }
  }
  if (i == 0) {
    for (int j = 0; j < V; ++j) {
      const Vf most = mul(fused.most[j], fused.scale);
      fused.now[j] = select(less(add(fused.now[j], broadcast(kSlack)), most), round(most), fused.now[j]);
      fused.offset[j] = sub(broadcast(kExp2Offset), fused.now[j]);
    }
  }
  TILEWISE_UNROLL
  for (int r = 0; r < R; r += 2) fused_pair<Op>(i + r, strip.count, acc[r], acc[r + 1], p, fused);
}

/// p[i][lane] = 2^(scale * k[i] . q[lane] - now[lane]) of a whole strip that has no test, and its sums. False where two passes must do it: scores are spread too
/// wide, or lie far above the shift, or are not finite. p is rubbish then.
template <class Op, int V, class Each>
TILEWISE_INLINE bool fuse_strip(const Strip& strip, int64_t units, const float* q, float* p, Fused<V>& fused, const Each& each) {
  for (int j = 0; j < V; ++j) {
    fused.sum[j] = fused.norm[j] = zero();
    fused.most[j] = broadcast(-kInfinity);
    fused.least[j] = broadcast(kInfinity);
  }
  for (int i = 0; i < strip.padded;) {
    const int step = step_of(strip.padded - i);
    if (step == kRows) {
      fused_rows<Op, kRows>(strip, i, units, q, p, fused, each);
    } else {
      fused_rows<Op, kRowTail>(strip, i, units, q, p, fused, each);
    }
    i += step;
  }
  bool is_out = false;
  for (int j = 0; j < V; ++j) {
    if constexpr (Op::kPerUnit == 1) fused.norm[j] = fused.sum[j];
    is_out |= any(less(broadcast(kMostShift), fused.now[j])) || any(less(fused.now[j], broadcast(-kMostShift)));
    is_out |= strays(fused.most[j], fused.scale, fused.offset[j]) || strays(fused.least[j], fused.scale, fused.offset[j]);
  }
  return !is_out;
}

}  // namespace
}  // namespace tilewise::attend::cpu::TILEWISE_TARGET
