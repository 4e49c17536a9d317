// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>

#include "tilewise/attend/cuda/tiles.h"

// A block's way through the keys of a part of a row: runs are read as many at a time as there are threads, and cut into stages of kTileK keys of any runs.
namespace tilewise::attend::cuda {

/// Up to C::kTileQ queries of a row of the plan.
struct Part {
  int batch, head;
  int64_t row, first;  // slot of the first query
  int count;  // none: the row is shorter than the longest
  int offset;  // queries of the row before it
};

/// Long rows come last under a causal mask, so blocks begin at the end of a head.
template <class C>
TILEWISE_DEVICE Part part_of(const PlanArgs& args, int64_t index) {
  const int64_t of_head = args.rows.rows * args.parts_per_row, head = index / of_head, at = of_head - 1 - index % of_head;
  Part part{};
  part.batch = static_cast<int>(head / args.heads_q);
  part.head = static_cast<int>(head % args.heads_q);
  part.row = at / args.parts_per_row;
  part.offset = static_cast<int>(at % args.parts_per_row) * C::kTileQ;
  part.first = args.rows.first(part.row) + part.offset;
  const int64_t left = args.rows.last(part.row, args.axis_q.slots()) - part.first;
  part.count = left < 0 ? 0 : left < C::kTileQ ? static_cast<int>(left) : C::kTileQ;
  return part;
}

/// Token of a slot before the pools, -1 for padding.
TILEWISE_DEVICE inline int token_of(const AxisView& axis, int b, int head, int heads_q, int64_t slot) {
  if (axis.token == nullptr) return static_cast<int>(slot);
  return axis.token[(int64_t{axis.batch == 1 ? 0 : b} * axis.groups + static_cast<int64_t>(head) * axis.groups / heads_q) * axis.end[0] + slot];
}

/// Of each key of a stage.
template <int kTileK>
struct StageKeys {
  static constexpr int kNone = -1, kUnasked = -2;
  static constexpr int kNowhere = -1;  // below it: pooled key -2 - place
  int place[kTileK];  // row of k and v; kNowhere: zeros
  int token[kTileK];  // what the mask is asked about; kNone: no query sees it, kUnasked: all that read it do
  uint64_t rows[kTileK];  // which queries of the part read it
  float bias[kTileK];
  int test;  // 1: some query may not see some key; 2: and some key may have a bias; 0: every query sees every key
};

/// The walk's part of shared memory.
template <class C>
struct WalkShared {
  StageKeys<C::kTileK> stages[2];
  plan::cuda::RowView lists[3];
  uint64_t rows[C::kThreads];  // of the runs at hand
  int start[C::kThreads], first[C::kThreads], kind[C::kThreads], sums[machine::cuda::sums_ints(C::kThreads)];
};

template <class C, class Block>
class KeyWalk {
 public:
  TILEWISE_DEVICE KeyWalk(Block& block, const PlanArgs& args, const Part& part, WalkShared<C>& at) : args_(args), part_(part), at_(at) {
    block.each([&](int thread) {
      if (thread < 3) at.lists[thread] = plan::cuda::row_of(args.lists[thread], part.batch, part.head, args.heads_q, args.rows.rows, part.row);
    });
    runs_ = at.lists[0].count + at.lists[1].count + at.lists[2].count;
  }

  /// Notes the keys of the next stage in stages[index % 2] and returns how many there are; 0: no more. Barriers stand before and behind.
  TILEWISE_DEVICE int next(Block& block, int index) {
    while (position_ == total_) {
      if (next_run_ >= runs_) return 0;
      read_runs(block);
    }
    const int fill = total_ - position_ < C::kTileK ? total_ - position_ : C::kTileK;
    StageKeys<C::kTileK>& keys = at_.stages[index % 2];
    block.each([&](int thread) {
      if (thread == 0) keys.test = fill < C::kTileK ? 1 : 0;
    });
    block.each([&](int thread) {
      if (thread >= C::kTileK) return;
      if (const int test = note(keys, thread, fill); test != 0) block.max(&keys.test, test);
    });
    position_ += fill;
    return fill;
  }
  TILEWISE_DEVICE const StageKeys<C::kTileK>& stage(int index) const { return at_.stages[index % 2]; }

 private:
  enum Kind : int { masked, whole, picked };

  TILEWISE_DEVICE void read_runs(Block& block) {
    block.each([&](int thread) {
      at_.first[thread] = 0;
      int index = next_run_ + thread, list = 0;
      if (index >= runs_) return;
      while (index >= at_.lists[list].count) index -= at_.lists[list++].count;
      read_run(thread, list, args_.lists[list], at_.lists[list], index);
    });
    position_ = 0;
    total_ = machine::cuda::exclusive_sums(block, at_.first, at_.sums);
    next_run_ += C::kThreads;
  }

  TILEWISE_DEVICE void read_run(int to, int list, const RunListView& of, const plan::cuda::RowView& row, int index) const {
    const int start = row.start[index];
    int64_t stop = row.stop != nullptr ? row.stop[index] : int64_t{start} + of.grain;
    if (row.stop == nullptr) {
      const int64_t end = args_.axis_k.part_end(start);
      stop = stop < end ? stop : end;
    }
    uint64_t rows = ~uint64_t{0};
    if (row.rows != nullptr) rows = row.rows[static_cast<int64_t>(index) * of.words + part_.offset / 64] >> (part_.offset % 64);
    if (part_.count < 64) rows &= (uint64_t{1} << part_.count) - 1;
    at_.start[to] = start;
    at_.kind[to] = list;
    at_.rows[to] = rows;
    at_.first[to] = rows == 0 || stop <= start ? 0 : static_cast<int>(stop - start);  // what no query of the part reads is not read
  }

  /// What a key has of StageKeys::test.
  TILEWISE_DEVICE int note(StageKeys<C::kTileK>& keys, int at, int fill) const {
    keys.place[at] = StageKeys<C::kTileK>::kNowhere;
    keys.token[at] = StageKeys<C::kTileK>::kNone;
    keys.rows[at] = 0;
    keys.bias[at] = 0;
    if (at >= fill) return 0;
    const int position = position_ + at;
    int run = 0;  // the last that begins at or before it
    TILEWISE_UNROLL for (int step = C::kThreads / 2; step > 0; step /= 2) run += at_.first[run + step] <= position ? step : 0;
    const int64_t slot = int64_t{at_.start[run]} + position - at_.first[run], slots = args_.axis_k.end[0];
    const bool is_masked = at_.kind[run] == masked;
    int token, test = 0;
    if (slot < slots) {
      token = token_of(args_.axis_k, part_.batch, part_.head, args_.heads_q, slot);
      keys.place[at] = token < 0 ? StageKeys<C::kTileK>::kNowhere : args_.is_in_slots ? static_cast<int>(slot) : token;
    } else {
      const int64_t head = int64_t{part_.batch} * args_.heads_kv + part_.head / (args_.heads_q / args_.heads_kv);
      token = args_.pooled_token[head * args_.pooled + slot - slots];
      keys.place[at] = token < 0 ? StageKeys<C::kTileK>::kNowhere : -2 - static_cast<int>(slot - slots);
      keys.bias[at] = args_.pooled_bias[head * args_.pooled + slot - slots];
      test = 2;
    }
    keys.rows[at] = at_.rows[run];
    keys.token[at] = token < 0 ? StageKeys<C::kTileK>::kNone : is_masked ? token : StageKeys<C::kTileK>::kUnasked;
    const uint64_t all = part_.count < 64 ? (uint64_t{1} << part_.count) - 1 : ~uint64_t{0};
    return test == 0 && (is_masked || token < 0 || keys.rows[at] != all) ? 1 : test;
  }

  const PlanArgs& args_;
  const Part& part_;
  WalkShared<C>& at_;
  int runs_ = 0, next_run_ = 0, position_ = 0, total_ = 0;
};

/// What the mask lets the queries of a part see: of each its token (-1: none) and, under bands and spans, its ranges.
struct PartQuery {
  int place;  // row of q and out; -1: none
  int token;
  KeyRanges ranges;
};

template <class C, class Block>
TILEWISE_DEVICE void note_queries(Block& block, const PlanArgs& args, const Part& part, PartQuery* queries) {
  block.each([&](int thread) {
    if (thread >= C::kTileQ) return;
    PartQuery& query = queries[thread];
    query = {-1, -1, {}};
    if (thread >= part.count) return;
    const int64_t slot = part.first + thread;
    query.token = token_of(args.axis_q, part.batch, part.head, args.heads_q, slot);
    if (query.token < 0) return;
    query.place = args.is_in_slots ? static_cast<int>(slot) : query.token;
    if (args.form != grids_form) query.ranges = ranges_of_query(args, args.head_class[part.head % kMaskHeads], part.batch, query.token);
  });
}

TILEWISE_DEVICE inline bool sees(const PlanArgs& args, int mask_class, const PartQuery& query, int row, int token, uint64_t rows) {
  if (query.token < 0 || token == -1 || (rows >> row & 1) == 0) return false;
  if (token < 0) return true;
  return args.form == grids_form ? grid_sees(args, mask_class, query.token, token) : query.ranges.holds(token);
}

}  // namespace tilewise::attend::cuda
