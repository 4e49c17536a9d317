// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cmath>
#include <cstdint>

#include "tilewise/attend/cuda/tiles.h"

// A block's way through what a part of a row reads: runs are looked up as many at a time as there are threads, and cut into stages of C::kTileK slots of any
// runs. The same for keys that queries read (by_query) and for queries that keys are read by (by_key).
namespace tilewise::attend::cuda {

/// Up to C::kTileQ slots of a row of the plan.
struct Part {
  int batch, head;
  int64_t row, first;  // the first slot
  int count;  // none: the row is shorter than the longest
  int offset;  // slots of the row before it
};

/// Part `index` of [batch, heads, rows, parts_per_row]. Long rows come last under a causal mask, so blocks begin at the end of a head.
template <class C>
TILEWISE_DEVICE Part part_of(const RowsView& rows, int64_t slots, int heads, int parts_per_row, int64_t index) {
  const int64_t of_head = rows.rows * parts_per_row, head = index / of_head, at = of_head - 1 - index % of_head;
  Part part{};
  part.batch = static_cast<int>(head / heads);
  part.head = static_cast<int>(head % heads);
  part.row = at / parts_per_row;
  part.offset = static_cast<int>(at % parts_per_row) * C::kTileQ;
  part.first = rows.first(part.row) + part.offset;
  const int64_t left = rows.last(part.row, slots) - part.first;
  part.count = left < 0 ? 0 : left < C::kTileQ ? static_cast<int>(left) : C::kTileQ;
  return part;
}

/// Bits of the slots of a part.
TILEWISE_HOST_DEVICE inline uint64_t all_rows(const Part& part) { return part.count < 64 ? (uint64_t{1} << part.count) - 1 : ~uint64_t{0}; }

/// The walk's part of shared memory.
template <class C>
struct WalkShared {
  plan::cuda::RowView lists[3];
  uint64_t rows[C::kThreads];  // of the runs at hand
  int start[C::kThreads], first[C::kThreads], kind[C::kThreads], sums[machine::cuda::sums_ints(C::kThreads)];
};

/// A slot of a stage.
struct Found {
  int64_t slot;
  uint64_t rows;  // which slots of the part it meets
  bool is_masked;  // the mask is asked about it
};

template <class C, class Block>
class RunWalk {
 public:
  /// `lists` and `rows` of the direction that is walked, for query head `head`; `axis`: of the slots that runs name.
  TILEWISE_DEVICE RunWalk(Block& block, const RunListView* lists, const RowsView& rows, const AxisView& axis, int heads_q, int head, const Part& part,
                          WalkShared<C>& at)
      : lists_(lists), axis_(axis), part_(part), at_(at) {
    block.each([&](int thread) {
      if (thread < 3) at.lists[thread] = plan::cuda::row_of(lists[thread], part.batch, head, heads_q, rows.rows, part.row);
    });
    runs_ = at.lists[0].count + at.lists[1].count;
    runs_ += block.get(at.lists[2].count);  // a barrier: a walk without a run may be followed by another at once
  }

  /// Finds the slots of the next stage: note(i, found) for i of [0, C::kTileK), null behind the last of them, says what the i-th has of `test`, whose largest is
  /// left there (at least 1 where the stage is not full). Returns how many slots there are; 0: no more, and nothing is noted. A barrier stands behind.
  template <class Note>
  TILEWISE_DEVICE int next(Block& block, int& test, const Note& note) {
    while (position_ == total_) {
      if (next_run_ >= runs_) return 0;
      look_up(block);
    }
    const int fill = total_ - position_ < C::kTileK ? total_ - position_ : C::kTileK;
    block.each([&](int thread) {
      if (thread == 0) test = fill < C::kTileK ? 1 : 0;
    });
    block.each([&](int thread) {
      for (int i = thread; i < C::kTileK; i += C::kThreads) {
        Found found{};
        if (i < fill) found = found_at(position_ + i);
        if (const int own = note(i, i < fill ? &found : nullptr); own != 0) block.max(&test, own);
      }
    });
    position_ += fill;
    return fill;
  }

 private:
  TILEWISE_DEVICE void look_up(Block& block) {
    block.each([&](int thread) {
      at_.first[thread] = 0;
      int index = next_run_ + thread, list = 0;
      if (index >= runs_) return;
      while (index >= at_.lists[list].count) index -= at_.lists[list++].count;
      look_up_run(thread, list, lists_[list], at_.lists[list], index);
    });
    position_ = 0;
    total_ = machine::cuda::exclusive_sums(block, at_.first, at_.sums);
    next_run_ += C::kThreads;
  }

  TILEWISE_DEVICE void look_up_run(int to, int list, const RunListView& of, const plan::cuda::RowView& row, int index) const {
    const int start = row.start[index];
    int64_t stop = row.stop != nullptr ? row.stop[index] : int64_t{start} + of.grain;
    if (row.stop == nullptr) {
      const int64_t end = axis_.part_end(start);
      stop = stop < end ? stop : end;
    }
    uint64_t rows = ~uint64_t{0};
    if (row.rows != nullptr) rows = row.rows[static_cast<int64_t>(index) * of.words + part_.offset / 64] >> (part_.offset % 64);
    rows &= all_rows(part_);
    at_.start[to] = start;
    at_.kind[to] = list;
    at_.rows[to] = rows;
    at_.first[to] = rows == 0 || stop <= start ? 0 : static_cast<int>(stop - start);  // what no slot of the part meets is not read
  }

  TILEWISE_DEVICE Found found_at(int position) const {
    int run = 0;  // the last that begins at or before it
    TILEWISE_UNROLL for (int step = C::kThreads / 2; step > 0; step /= 2) run += at_.first[run + step] <= position ? step : 0;
    return {int64_t{at_.start[run]} + position - at_.first[run], at_.rows[run], at_.kind[run] == 0};
  }

  const RunListView* const lists_;  // masked, whole, picked
  const AxisView& axis_;
  const Part& part_;
  WalkShared<C>& at_;
  int runs_ = 0, next_run_ = 0, position_ = 0, total_ = 0;
};

/// Token of a slot before the pools, -1 for padding.
TILEWISE_DEVICE inline int token_of(const AxisView& axis, int b, int head, int heads_q, int64_t slot) {
  if (axis.token == nullptr) return static_cast<int>(slot);
  return axis.token[(int64_t{axis.batch == 1 ? 0 : b} * axis.groups + static_cast<int64_t>(head) * axis.groups / heads_q) * axis.end[0] + slot];
}

/// What stands at a slot of the keys.
struct SlotKey {
  static constexpr int kNowhere = -1;
  int place;  // row of k and v; kNowhere: padding; below it: pooled key -2 - place
  int token;  // what the mask is asked about; -1: padding, which nobody sees
  float bias;  // added to the logit: ln of the tokens that a pooled key is the mean of
};
TILEWISE_DEVICE inline SlotKey key_of(const PlanArgs& args, int b, int head, int64_t slot) {
  const int64_t slots = args.axis_k.end[0];
  if (slot < slots) {
    const int token = token_of(args.axis_k, b, head, args.heads_q, slot);
    return {token < 0 ? SlotKey::kNowhere : args.is_in_slots ? static_cast<int>(slot) : token, token, 0};
  }
  const int64_t at = (int64_t{b} * args.heads_kv + head / (args.heads_q / args.heads_kv)) * args.pooled + slot - slots;
  const int token = args.pooled_token[at];
  return {token < 0 ? SlotKey::kNowhere : -2 - static_cast<int>(slot - slots), token, token < 0 ? 0.0f : logf(args.pooled_count[at])};
}

/// What stands at a slot of the queries, and what the mask lets it see.
struct SlotQuery {
  int place;  // row of q and out; -1: none
  int token;  // -1: none
  KeyRanges ranges;  // under bands and spans
};
TILEWISE_DEVICE inline SlotQuery query_of(const PlanArgs& args, int b, int head, int64_t slot) {
  SlotQuery query = {-1, token_of(args.axis_q, b, head, args.heads_q, slot), {}};
  if (query.token < 0) return query;
  query.place = args.is_in_slots ? static_cast<int>(slot) : query.token;
  if (args.form != grids_form) query.ranges = ranges_of_query(args, args.head_class[head % kMaskHeads], b, query.token);
  return query;
}

TILEWISE_DEVICE inline bool mask_sees(const PlanArgs& args, int mask_class, const SlotQuery& query, int token) {
  return args.form == grids_form ? grid_sees(args, mask_class, query.token, token) : query.ranges.holds(token);
}

/// Row `place` of k or v (of `pooled` where it says so); null: none.
template <class C>
TILEWISE_DEVICE const typename C::Bits* key_row(const TensorArg& tensor, const TensorArg& pooled, int batch, int head_kv, int place) {
  if (place >= 0) return row_at<C>(tensor, batch, tensor.heads == 1 ? 0 : head_kv, place);
  return place == SlotKey::kNowhere ? nullptr : row_at<C>(pooled, batch, head_kv, -2 - place);
}

}  // namespace tilewise::attend::cuda
