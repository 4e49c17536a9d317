// SPDX-License-Identifier: Apache-2.0
// Online softmax of a warpgroup's 64 x tile_k scores in the register layout of wgmma: a thread holds two rows, 8 apart, and of each
// group of 8 columns two neighbours a row; a row lies in the four threads of a quad.
#pragma once

#include <cmath>

#include "tilewise/machine/sm90/ptx.cuh"

namespace tilewise::attend::sm90 {

constexpr float kLn2 = 0.69314718055994531f;

__device__ inline float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xFFFFFFFFu, x, 1));
  return fmaxf(x, __shfl_xor_sync(0xFFFFFFFFu, x, 2));
}
__device__ inline float quad_sum(float x) {
  x += __shfl_xor_sync(0xFFFFFFFFu, x, 1);
  return x + __shfl_xor_sync(0xFFFFFFFFu, x, 2);
}

struct Softmax {
  float scale_log2, threshold;  // threshold in units of q k^T
  float row_max[2], row_sum[2]; // row_max: the maximum that probabilities are relative to, up to `threshold` below the true one
  float bias[2];                // -row_max * scale_log2; 0 while the row has seen no key, so that exp2(-inf + bias) is 0 and not NaN
  float alpha[2];               // what the last update did to the scale of row_sum, and has yet to do to acc

  __device__ void reset() {
    for (int r = 0; r < 2; ++r) {
      row_max[r] = -INFINITY;
      row_sum[r] = 0;
      bias[r] = 0;
    }
  }

  /// Raises row_max where scores have outgrown it. True (for a whole warp): acc must be multiplied by alpha.
  template <int kScores>
  __device__ bool raise_max(const float (&scores)[kScores]) {
    float tops[4] = {scores[0], scores[1], scores[2], scores[3]};  // two chains a row, for latency
#pragma unroll
    for (int i = 4; i < kScores; ++i) tops[i % 4] = fmaxf(tops[i % 4], scores[i]);
    const float top[2] = {fmaxf(tops[0], tops[1]), fmaxf(tops[2], tops[3])};
    const bool is_outgrown = __any_sync(0xFFFFFFFFu, top[0] > row_max[0] + threshold || top[1] > row_max[1] + threshold);
    if (is_outgrown) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const float grown = fmaxf(row_max[r], quad_max(top[r]));
        const float before = row_max[r];
        row_max[r] = grown;
        bias[r] = grown == -INFINITY ? 0 : -grown * scale_log2;
        alpha[r] = machine::sm90::ex2_approx(fmaf(before, scale_log2, bias[r]));
        row_sum[r] *= alpha[r];
      }
    }
    return is_outgrown;
  }

  /// scores becomes probabilities.
  template <int kScores>
  __device__ void exponentiate(float (&scores)[kScores]) {
#pragma unroll
    for (int i = 0; i < kScores; ++i) {
      scores[i] = machine::sm90::ex2_approx(fmaf(scores[i], scale_log2, bias[i / 2 % 2]));
      row_sum[i / 2 % 2] += scores[i];
    }
  }

  template <int kAcc>
  __device__ void rescale(float (&acc)[kAcc]) const {
#pragma unroll
    for (int i = 0; i < kAcc; ++i) acc[i] *= alpha[i / 2 % 2];
  }

  /// acc becomes the output; gives the natural log of each row's sum of exponentials. `sink`: one more logit of every row, or null.
  template <int kAcc>
  __device__ void finish(float (&acc)[kAcc], float (&lse)[2], const float* sink) {
    float inverse[2];
    for (int r = 0; r < 2; ++r) {
      float sum = quad_sum(row_sum[r]);
      float share = 1;
      if (sink) {  // relative to the larger of the row's maximum and the sink, so that neither overflows
        const float sink_log2 = *sink / kLn2, top = -bias[r], shift = sum == 0 ? sink_log2 : fmaxf(top, sink_log2);
        share = sum == 0 || shift == -INFINITY ? 0 : exp2f(top - shift);
        sum = sum * share + (shift == -INFINITY ? 0 : exp2f(sink_log2 - shift));
        if (shift != -INFINITY) bias[r] = -shift;
      }
      inverse[r] = sum == 0 ? 0 : share / sum;
      lse[r] = sum == 0 ? -INFINITY : logf(sum) - bias[r] * kLn2;
    }
#pragma unroll
    for (int i = 0; i < kAcc; ++i) acc[i] *= inverse[i / 2 % 2];
  }
};

/// score -> softcap * tanh(scale * score). The hardware's own tanh is off by 2^-11, which a cap of 50 makes 0.02 of a logit; so by exp2, and by
/// the series where that would cancel.
template <int kScores>
__device__ void cap(float (&scores)[kScores], float softcap, float scale) {
#pragma unroll
  for (int i = 0; i < kScores; ++i) {
    const float x = scores[i] * scale, square = x * x;
    const float series = x * fmaf(square, fmaf(square, fmaf(square, fmaf(square, 62.0f / 2835, -17.0f / 315), 2.0f / 15), -1.0f / 3), 1);
    const float by_exp = 1 - 2 * machine::sm90::rcp_approx(machine::sm90::ex2_approx(x * (2 / kLn2)) + 1);
    scores[i] = softcap * (square < 0.09f ? series : by_exp);
  }
}

}  // namespace tilewise::attend::sm90
