// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>

#include "tilewise/plan/cuda/run_list_view.h"

// Rows of the last, incomplete round of thread blocks, cut so that all blocks end together. A *share* is what one thread block takes with one claim: an
// equal stretch of those rows' keys laid end to end, hence a row, a part of one, or the end of one and the beginning of the next.
namespace tilewise::attend::sm90 {

/// A row, or a part of one. Runs are counted over the row's masked runs, then its whole ones.
struct RowPart {
  int32_t item;  // as in ForwardArgs::order
  int32_t first_run, num_runs;
  int32_t skip, cut;  // keys of another part: at the start of the first run, at the end of the last
  int32_t word;  // part_word(); 0: the whole row
};

/// Which part of a row it is. Its sums go to slot + part of the workspace; whoever finishes a row last adds them up in the order of the parts.
TILEWISE_HOST_DEVICE constexpr int32_t part_word(int slot, int part, int parts) { return slot << 16 | part << 8 | parts; }
TILEWISE_HOST_DEVICE constexpr int slot_of(int32_t word) { return word >> 16; }
TILEWISE_HOST_DEVICE constexpr int part_of(int32_t word) { return word >> 8 & 255; }
TILEWISE_HOST_DEVICE constexpr int parts_of(int32_t word) { return word & 255; }

/// Turns the runs of a row into those of a part of it; `Runs` is RunsOf<C> of the kernel.
template <class Runs>
TILEWISE_HOST_DEVICE void take_part(const RowPart& part, Runs& row) {
  const int before = row.end_masked;
  row.begin_masked += part.first_run;
  row.begin_whole += part.first_run > before ? part.first_run - before : 0;
  const int masked = part.first_run < before ? before - part.first_run : 0;
  row.end_masked = masked < part.num_runs ? masked : part.num_runs;
  row.num_runs = part.num_runs;
  row.skip = part.skip;
  row.cut = part.cut;
}
/// Takes away what other parts have of run `index`.
template <class Runs>
TILEWISE_HOST_DEVICE void cut_run(const Runs& row, int index, int32_t& start, int32_t& stop) {
  if (index == 0) start += row.skip;
  if (index == row.num_runs - 1) stop -= row.cut;
}

/// What thread blocks read of it, and the workspace of the parts' sums. Without parts: no row is split.
struct SplitView {
  const RowPart* parts = nullptr;
  const int32_t* share_begin = nullptr;  // [shares + 1] where the parts of a share begin
  const int32_t* ends = nullptr;  // [2] positions of the order of work that are rows; all positions, the rest of which are shares
  float* sums = nullptr;  // [slots][groups][head_dim / 8 + 1][128 threads][4]
  int32_t* arrived = nullptr;  // [slots][warps] zeros, and zeros again after the launch: parts whose sums are there
};

constexpr int kSplitThreads = 1024;
constexpr int kMostSplitBlocks = 255;  // a part's number fits in a byte
constexpr int kSplitWarps = 8;  // of consumers, each of which merges its own 16 queries

/// Work is counted in stages of 128 keys, its costs in sixteenths of one (docs/notes/sm90.md, "Row splitting").
constexpr int kStageKeys = 128, kCostOfStage = 16, kCostOfRow = 28, kCostOfPart = 14, kCostOfMerge = 10;
constexpr int kLeastStages = 4;  // of a part

/// Rows that may be split: those of the last round.
TILEWISE_HOST_DEVICE constexpr int tail_rows(int items, int blocks) { return items == 0 ? 0 : items - (items - 1) / blocks * blocks; }
/// Parts at most: each row begins one, and each share but the first.
TILEWISE_HOST_DEVICE constexpr int most_parts(int items, int blocks) { return tail_rows(items, blocks) + blocks - 1; }

/// Into how many shares `rows` rows of `stages` stages together, the longest of `top`, are cut: an estimate of the end with the sums' cost against the end
/// of whole rows. 0: they are not split.
TILEWISE_HOST_DEVICE constexpr int shares_of(int stages, int top, int blocks) {
  int least = 2 * kLeastStages;
  while (least * least * kCostOfStage < kCostOfMerge * top) ++least;  // below, a row's parts take longer to add up than to compute
  int shares = stages / least;
  shares = shares < 1 ? 1 : shares > blocks ? blocks : shares;
  const int share = (stages + shares - 1) / shares;
  const int split = kCostOfStage * share + 2 * (kCostOfRow + kCostOfPart) + kCostOfMerge * (top / share + 1);
  return split + kCostOfStage < kCostOfStage * top + kCostOfRow ? shares : 0;
}

struct SplitArgs {
  plan::cuda::RunListView lists[2];  // masked, whole
  int items, items_per_head, heads_q;
  int keys;  // where runs without a stop end at the latest
  int blocks;  // thread blocks that take shares, at most kMostSplitBlocks
  const int32_t* length;  // [items] keys of a row
  const int32_t* order;  // [items]
  RowPart* parts;  // written: [most_parts]
  int32_t* share_begin;  // written: [blocks + 1]
  int32_t* ends;  // written: [2]
  int32_t* arrived;  // written: [most_parts][kSplitWarps] zeros
};

}  // namespace tilewise::attend::sm90
