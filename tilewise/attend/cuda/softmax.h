// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cmath>

#include "tilewise/attend/cuda/run_walk.h"

// What kernels do to the scores of a stage. A thread has two rows (warps.h): number i of its scores is of row i / 2 % 2 and column i / 4 * 8 + i % 2 past its own.
namespace tilewise::attend::cuda {

constexpr float kLog2E = 1.4426950408889634f, kLn2 = 0.6931471805599453f;

TILEWISE_HOST_DEVICE constexpr int score_row(int thread, int i) { return machine::cuda::fragment_row(thread) + i / 2 % 2 * 8; }
TILEWISE_HOST_DEVICE constexpr int score_column(int thread, int i) { return i / 4 * 8 + machine::cuda::fragment_column(thread) + i % 2; }

/// Bit i: sees(row, column) holds for a thread's score i.
template <int kScores, class Sees>
TILEWISE_DEVICE uint32_t seen_scores(int thread, const Sees& sees) {
  static_assert(kScores <= 32);
  uint32_t seen = 0;
  TILEWISE_NO_UNROLL for (int i = 0; i < kScores; ++i) seen |= sees(score_row(thread, i), score_column(thread, i)) ? uint32_t{1} << i : 0;
  return seen;
}

/// Running maximum and sum of a thread's two rows.
template <class Block>
struct Softmax {
  typename Block::template Registers<float, 2> row_max, row_sum, alpha, top;

  TILEWISE_DEVICE explicit Softmax(Block& block) : row_max(block), row_sum(block), alpha(block), top(block) {
    block.lanes([&](int thread) { TILEWISE_UNROLL for (int r = 0; r < 2; ++r) row_max(thread, r) = -INFINITY, row_sum(thread, r) = 0; });
  }

  /// Scores become exponentials relative to the maximum so far, whose growth is in alpha.
  template <class C, class Scores>
  TILEWISE_DEVICE void update(Block& block, Scores& scores, float scale_log2) {
    block.lanes([&](int thread) {
      TILEWISE_UNROLL for (int r = 0; r < 2; ++r) top(thread, r) = scores(thread, 2 * r);
      TILEWISE_UNROLL for (int i = 0; i < C::kScores; ++i) top(thread, i / 2 % 2) = fmaxf(top(thread, i / 2 % 2), scores(thread, i));
    });
    block.quad(top, [](float a, float b) { return fmaxf(a, b); });
    block.lanes([&](int thread) {
      TILEWISE_UNROLL for (int r = 0; r < 2; ++r) {
        const float before = row_max(thread, r), grown = fmaxf(before, top(thread, r));
        row_max(thread, r) = grown;
        const float bias = grown == -INFINITY ? 0.0f : -grown * scale_log2;
        top(thread, r) = bias;
        alpha(thread, r) = exp2f(fmaf(before, scale_log2, bias));
        row_sum(thread, r) *= alpha(thread, r);
      }
      TILEWISE_UNROLL for (int i = 0; i < C::kScores; ++i) {
        const float p = exp2f(fmaf(scores(thread, i), scale_log2, top(thread, i / 2 % 2)));
        scores(thread, i) = p;
        row_sum(thread, i / 2 % 2) += p;
      }
    });
  }

  template <int kAcc, class Acc>
  TILEWISE_DEVICE void rescale(Block& block, Acc& acc) {
    block.lanes([&](int thread) { TILEWISE_UNROLL for (int i = 0; i < kAcc; ++i) acc(thread, i) *= alpha(thread, i / 2 % 2); });
  }

  /// alpha becomes what acc is multiplied by, row_max the natural log of the sum of exponentials. `sink`: one more logit of every row, or null.
  TILEWISE_DEVICE void finish(Block& block, float scale, const float* sink) {
    block.quad(row_sum, [](float a, float b) { return a + b; });
    block.lanes([&](int thread) {
      TILEWISE_UNROLL for (int r = 0; r < 2; ++r) {
        float sum = row_sum(thread, r), share = 1, top_log2 = row_max(thread, r) == -INFINITY ? 0.0f : row_max(thread, r) * (scale * kLog2E);
        if (sink != nullptr) {  // relative to the larger of the row's maximum and the sink, so that neither overflows
          const float sink_log2 = *sink * kLog2E, shift = sum == 0 ? sink_log2 : fmaxf(top_log2, sink_log2);
          share = sum == 0 || shift == -INFINITY ? 0.0f : exp2f(top_log2 - shift);
          sum = sum * share + (shift == -INFINITY ? 0.0f : exp2f(sink_log2 - shift));
          if (shift != -INFINITY) top_log2 = shift;
        }
        alpha(thread, r) = sum == 0 ? 0.0f : share / sum;
        row_max(thread, r) = sum == 0 ? -INFINITY : logf(sum) + top_log2 * kLn2;
      }
    });
  }
};

}  // namespace tilewise::attend::cuda
