// SPDX-License-Identifier: Apache-2.0
// Which scores of a stage count. A thread's columns of a row are a word of bits: kTileK / 4 of them, two neighbours in each group of 8.
#pragma once

#include "tilewise/attend/cuda/mask.h"
#include "tilewise/attend/sm90/forward_config.cuh"

namespace tilewise::attend::sm90 {

/// -inf where the bit of a score is 0; seen[r] is of the thread's row r.
template <int kScores>
__device__ void apply(float (&scores)[kScores], const uint32_t (&seen)[2]) {
#pragma unroll
  for (int i = 0; i < kScores; ++i) {
    if (!(seen[i / 2 % 2] >> (i / 4 * 2 + i % 2) & 1)) scores[i] = -INFINITY;
  }
}

/// Bits of this thread's columns below `column` of the stage.
template <int kTileK>
__device__ uint32_t columns_below(int64_t column) {
  const int mine = static_cast<int>(min(max(column, int64_t{0}), int64_t{kTileK})) - static_cast<int>(threadIdx.x % 4 * 2);
  const int bits = mine <= 0 ? 0 : mine / 8 * 2 + min(mine % 8, 2);
  return static_cast<uint32_t>((uint64_t{1} << bits) - 1);
}

/// A stage of neighbouring keys under one band. `token` is the thread's first query, the second is 8 after it.
template <int kTileK>
__device__ void mask_by_band(float (&scores)[kTileK / 2], const StageInfo& info, const Band& band, int64_t token) {
  const auto below = [&](int64_t key) { return columns_below<kTileK>(key - info.key); };
  uint32_t seen[2];
  for (int r = 0; r < 2; ++r) {
    seen[r] = below(int64_t{info.key} + info.fill);
    if (info.is_tested == 2) seen[r] &= below(token + 8 * r + band.right + 1) & (~below(token + 8 * r - band.left) | below(band.sink));
  }
  apply(scores, seen);
}

/// A stage of any keys. `row` is the thread's first query in the item, the second is 8 after it; `query` their tokens, -1 for none.
template <class C>
__device__ void mask_general(const GeneralArgs& args, float (&scores)[C::kTileK / 2], const StageInfo& info, const StageKeys<C::kTileK, true>& keys,
                             int head, int row, const int (&query)[2]) {
  uint32_t seen[2];
  seen[0] = seen[1] = columns_below<C::kTileK>(info.fill);
  if (info.is_tested >= 2) {
    const int of_batch = head % args.heads_q, batch = head / args.heads_q, mask_class = args.head_class[of_batch % GeneralArgs::kHeads];
    cuda::KeyRanges ranges[2] = {};
    const bool is_grid = args.form == cuda::grids_form, asks_mask = info.is_tested == 2;
    if (asks_mask && !is_grid) {
      for (int r = 0; r < 2; ++r) {
        if (query[r] >= 0) ranges[r] = cuda::ranges_of_query(args, mask_class, batch, query[r]);
      }
    }
#pragma unroll 1
    for (int bit = 0; bit < C::kTileK / 4; ++bit) {
      const int column = bit / 2 * 8 + static_cast<int>(threadIdx.x % 4) * 2 + bit % 2;
      if (column >= info.fill) break;
      const int token = keys.token[column];
      const uint64_t rows = keys.rows[column][row / 64];
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        bool is_seen = query[r] >= 0 && token >= 0 && (rows >> (row % 64 + 8 * r) & 1);
        if (is_seen && asks_mask) is_seen = is_grid ? cuda::grid_sees(args, mask_class, query[r], token) : ranges[r].holds(token);
        if (!is_seen) seen[r] &= ~(uint32_t{1} << bit);
      }
    }
  }
  apply(scores, seen);
}

/// Adds to each key's scores what its bias is as a score.
template <int kTileK>
__device__ void add_bias(float (&scores)[kTileK / 2], const float (&bias)[kTileK], int fill, float score_of_bias) {
#pragma unroll
  for (int i = 0; i < kTileK / 2; ++i) {
    const int column = i / 4 * 8 + static_cast<int>(threadIdx.x % 4) * 2 + i % 2;
    if (column < fill) scores[i] += bias[column] * score_of_bias;
  }
}

}  // namespace tilewise::attend::sm90
