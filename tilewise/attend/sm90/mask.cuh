// SPDX-License-Identifier: Apache-2.0
// Which scores of a stage count. A thread's columns of a row are a word of bits: kTileK / 4 of them, two neighbours in each group of 8.
#pragma once

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

/// The keys that a query sees, as two ranges of tokens.
struct KeyRanges {
  int start[2], stop[2];
  __device__ bool holds(int key) const { return (key >= start[0] && key < stop[0]) || (key >= start[1] && key < stop[1]); }
};

__device__ inline KeyRanges ranges_of_query(const GeneralArgs& args, int mask_class, int batch, int query) {
  if (args.form == GeneralArgs::spans_form) {
    const int64_t entry = int64_t{mask_class} * args.spans_batch + (args.spans_batch == 1 ? 0 : batch);
    const int32_t* const span = args.spans + (entry * args.seqlen_q + query) * 4;
    return {{span[0], span[2]}, {span[1], span[3]}};
  }
  const Band band = args.bands[mask_class];
  const int64_t token = int64_t{query} + args.seqlen_k - args.seqlen_q;
  const auto cut = [&](int64_t key) { return static_cast<int>(min(max(key, int64_t{0}), int64_t{args.seqlen_k})); };
  const int stop = cut(token + band.right + 1);
  return {{cut(token - band.left), 0}, {stop, min(stop, cut(band.sink))}};
}

/// One axis of a neighbourhood: GNA, arXiv 2504.16922, section 3. The leader of a stride group places the window, dilation groups are apart.
__device__ inline bool axis_sees(const GridAxis& axis, int query, int key) {
  const int group = query % axis.dilation;
  if (key % axis.dilation != group) return false;
  const int length = (axis.length - group + axis.dilation - 1) / axis.dilation;
  const int cell = query / axis.dilation, other = key / axis.dilation;
  const int first = cell / axis.stride * axis.stride;
  if (axis.is_causal) {
    const int leader = min(first + axis.stride - 1, length - 1);
    return other > leader - axis.window && other <= cell;
  }
  const int leader = min(first + axis.stride / 2, length - 1);
  const int start = min(max(leader - axis.window / 2, 0), length - axis.window);
  return other >= start && other < start + axis.window;
}

__device__ inline bool grid_sees(const GeneralArgs& args, int mask_class, int query, int key) {
  const int axes = args.num_axes[mask_class];
  int cells = 1;  // at most Sk of them matter
  for (int i = 0; i < axes; ++i) cells *= args.grids[mask_class][i].length;
  const int64_t shift = args.seqlen_k - args.seqlen_q - args.grid_first;
  if (query + shift < 0 || query + shift >= cells || key < args.grid_first || key - args.grid_first >= cells) {
    return true;  // what stands before and after the grid sees all and is seen by all
  }
  int q = static_cast<int>(query + shift), k = static_cast<int>(key - args.grid_first);
#pragma unroll 1
  for (int i = 0; i < axes; ++i) {
    cells /= args.grids[mask_class][i].length;
    if (!axis_sees(args.grids[mask_class][i], q / cells, k / cells)) return false;
    q %= cells;
    k %= cells;
  }
  return true;
}

/// A stage of any keys. `row` is the thread's first query in the item, the second is 8 after it; `query` their tokens, -1 for none.
template <class C>
__device__ void mask_general(const GeneralArgs& args, float (&scores)[C::kTileK / 2], const StageInfo& info, const StageKeys<C::kTileK, true>& keys,
                             int head, int row, const int (&query)[2]) {
  uint32_t seen[2];
  seen[0] = seen[1] = columns_below<C::kTileK>(info.fill);
  if (info.is_tested >= 2) {
    const int of_batch = head % args.heads_q, batch = head / args.heads_q, mask_class = args.head_class[of_batch % GeneralArgs::kHeads];
    KeyRanges ranges[2] = {};
    const bool is_grid = args.form == GeneralArgs::grids_form, asks_mask = info.is_tested == 2;
    if (asks_mask && !is_grid) {
      for (int r = 0; r < 2; ++r) {
        if (query[r] >= 0) ranges[r] = ranges_of_query(args, mask_class, batch, query[r]);
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
        if (is_seen && asks_mask) is_seen = is_grid ? grid_sees(args, mask_class, query[r], token) : ranges[r].holds(token);
        if (!is_seen) seen[r] &= ~(uint32_t{1} << bit);
      }
    }
  }
  apply(scores, seen);
}

}  // namespace tilewise::attend::sm90
