// SPDX-License-Identifier: Apache-2.0
// The producer warps' way through a plan: items of this thread block, runs of an item's row, both read 32 at a time, one a lane.
#pragma once

#include <climits>

#include "tilewise/attend/sm90/forward_config.cuh"

namespace tilewise::attend::sm90 {

enum RunKind : int { masked_runs, whole_runs, picked_runs };

/// Up to 128 queries of a row. `part`: see PartRuns. A number is (b * Hq + h) * items_per_head + i.
struct Item {
  int batch, head, first, count, row_word, part;
};

template <class C>
__device__ Item item_of(const typename C::Args& args, int number) {
  const int of_head = number % args.items_per_head, head = number / args.items_per_head;
  Item item = {head / args.heads_q, head % args.heads_q, of_head * C::kTileQ, C::kTileQ, 0, -1};
  if constexpr (C::kIsGeneral) {
    const int row = of_head / args.items_per_row, part = of_head % args.items_per_row;
    const int row_first = args.edge ? args.edge[row] : row * args.tile;
    const int row_last = args.edge ? args.edge[row + 1] : min(row_first + args.tile, args.slots_q);
    item.first = row_first + part * C::kTileQ;
    item.count = min(row_last - item.first, C::kTileQ);
    item.row_word = part * (C::kTileQ / 64);
  }
  return item;
}

template <class C>
__device__ RunChunk<C::kIsGeneral> load_run(const typename C::Args& args, const RunsOf<C>& row, int index) {
  RunChunk<C::kIsGeneral> run;
  if (index >= row.num_runs) return run;
  const RunListView* list = index < row.end_masked ? &args.masked : &args.whole;
  int64_t at = index < row.end_masked ? row.begin_masked + index : row.begin_whole + index - row.end_masked;
  int end = args.seqlen_k;
  if constexpr (C::kIsGeneral) {
    end = args.order_k_slots;
    if (index >= row.end_whole) {
      list = &args.picked;
      at = row.begin_picked + index - row.end_whole;
    }
    if (list->rows) {
      run.rows[0] = list->rows[at * list->words + row.row_word];
      run.rows[1] = row.row_word + 1 < list->words ? list->rows[at * list->words + row.row_word + 1] : 0;
    }
  }
  run.start = list->start[at];
  if constexpr (C::kHasPools) {
    for (int part = 0; run.start >= (end = args.parts.end[part]) && part + 1 < args.parts.count; ++part) {
    }
  }
  run.stop = list->stop ? list->stop[at] : min(run.start + list->grain, end);
  if constexpr (C::kIsSplit) cut_run(row, index, run.start, run.stop);
  return run;
}

/// The items of this thread block, in the order of work. A block claims its next item from a counter in memory when it begins one: longest rows
/// first, that evens out rows of any lengths. Without a counter it has one item. Where rows are split it claims shares, whose parts are items.
template <class C>
class ItemWalk {
 public:
  __device__ explicit ItemWalk(const typename C::Args& args) : args_(args) {}

  /// Moves to the next item; gives its number, its row and that row's first 32 runs, one a lane. False: no more.
  __device__ bool advance(int& number, RunsOf<C>& row, RunChunk<C::kIsGeneral>& first) {
    if constexpr (C::kIsSplit) {
      if (next_part_ < end_part_) {  // of the share at hand
        next_of_share(number, row, first);
        return true;
      }
    }
    int position = position_;
    if (is_started_) {
      position = INT_MAX;
      if (args_.counter && lane() == 0) position = static_cast<int>(gridDim.x) + atomicAdd(&args_.counter[0], 1);
      position = __shfl_sync(kAllLanes, position, 0);
    }
    is_started_ = true;
    if constexpr (C::kIsSplit) {
      if (position >= args_.split.ends[1]) return false;
      const int share = position - args_.split.ends[0];
      if (share >= 0) {
        next_part_ = args_.split.share_begin[share];
        end_part_ = args_.split.share_begin[share + 1];
        next_of_share(number, row, first);
        return true;
      }
    }
    if (position >= args_.items) return false;
    number = args_.order ? args_.order[position] : position;
    row = row_of(number);
    first = load_run<C>(args_, row, lane());
    return true;
  }
  /// The last block to leave resets the counter for the next launch.
  __device__ void close() const {
    if (args_.counter && lane() == 0 && atomicAdd(&args_.counter[1], 1) == static_cast<int>(gridDim.x) - 1) {
      args_.counter[0] = 0;
      args_.counter[1] = 0;
    }
  }

 private:
  __device__ int items_per_row() const {
    if constexpr (C::kIsGeneral) return args_.items_per_row;
    return 1;
  }
  __device__ static int lane() { return threadIdx.x % 32; }
  __device__ RunsOf<C> row_of(int number) const {
    RunsOf<C> row;
    const int of_head = number % args_.items_per_head, of_batch = number / args_.items_per_head;
    const Place at = {of_head / items_per_row(), args_.items_per_head / items_per_row(), of_batch / args_.heads_q, of_batch % args_.heads_q};
    int num_whole = 0;
    read_list(args_.masked, at, row.begin_masked, row.end_masked);
    read_list(args_.whole, at, row.begin_whole, num_whole);
    row.num_runs = row.end_masked + num_whole;
    if constexpr (C::kIsGeneral) {
      int num_picked = 0;
      read_list(args_.picked, at, row.begin_picked, num_picked);
      row.end_whole = row.num_runs;
      row.num_runs += num_picked;
      row.row_word = of_head % args_.items_per_row * (C::kTileQ / 64);
    }
    return row;
  }
  __device__ void next_of_share(int& number, RunsOf<C>& row, RunChunk<C::kIsGeneral>& first) {
    const RowPart part = args_.split.parts[next_part_];
    number = part.item;
    row = row_of(number);
    if (part.word != 0) {
      row.part = next_part_;
      take_part(part, row);
    }
    first = load_run<C>(args_, row, lane());
    ++next_part_;
  }
  struct Place {
    int row, num_rows, batch, head;
  };
  __device__ void read_list(const RunListView& list, const Place& of, int64_t& begin, int& count) const {
    if (!list.begin) return;
    const auto at = [&](int batch, int heads) {
      return (int64_t{batch == 1 ? 0 : of.batch} * heads + of.head / (args_.heads_q / heads)) * of.num_rows + of.row;
    };
    begin = list.begin[at(list.begin_batch, list.begin_heads)];
    count = list.count[at(list.count_batch, list.count_heads)];
  }

  const typename C::Args& args_;
  const int position_ = static_cast<int>(blockIdx.x);
  bool is_started_ = false;
  int next_part_ = 0, end_part_ = 0;  // split: what is left of a share
};

/// The keys of a row as [key, stop) of its current run. `row` may lie in shared memory: where its lists begin is asked once in 32 runs.
template <class C>
class RunCursor {
 public:
  using Runs = RunsOf<C>;
  using Chunk = RunChunk<C::kIsGeneral>;

  __device__ RunCursor(const typename C::Args& args, const Runs& row, Chunk first)
      : args_(args), row_(row), chunk_(first), num_runs_(row.num_runs), end_masked_(row.end_masked) {
    if constexpr (C::kIsGeneral) end_whole_ = row.end_whole;
    next_run();
  }
  __device__ bool more() const { return index_ < num_runs_; }
  __device__ RunKind kind() const {
    if constexpr (C::kIsGeneral) {
      if (index_ >= end_whole_) return picked_runs;
    }
    return index_ < end_masked_ ? masked_runs : whole_runs;
  }
  __device__ int key() const { return key_; }
  __device__ int left() const { return stop_ - key_; }
  __device__ uint64_t rows(int word) const { return __shfl_sync(kAllLanes, chunk_.rows[word], index_ % 32); }
  __device__ void take(int keys) {
    key_ += keys;
    if (key_ == stop_) next_run();
  }
  /// Single keys: up to `most` of the 32 at hand. Lane `i` of those gets its own in `mine`; the return value is how many.
  __device__ int take_picked(int most, int& index_in_taken, Chunk& mine) {
    const int at = index_ % 32, count = min(min(32 - at, num_runs_ - index_), most);
    index_in_taken = static_cast<int>(threadIdx.x % 32) - at;
    if (index_in_taken >= count) index_in_taken = -1;
    mine = chunk_;
    index_ += count - 1;
    next_run();
    return count;
  }

 private:
  __device__ void next_run() {
    do {  // skips empty runs
      if (++index_ >= num_runs_) return;
      // Not ahead: the stages in flight hide one load in 32 runs, and registers are scarcer.
      if (index_ % 32 == 0 && index_ > 0) chunk_ = load_run<C>(args_, row_, index_ + static_cast<int>(threadIdx.x % 32));
      key_ = __shfl_sync(kAllLanes, chunk_.start, index_ % 32);
      stop_ = __shfl_sync(kAllLanes, chunk_.stop, index_ % 32);
    } while (key_ >= stop_);
  }

  const typename C::Args& args_;
  const Runs& row_;
  Chunk chunk_;  // the 32 runs around index_
  int num_runs_, end_masked_, end_whole_ = 0;
  int index_ = -1, key_ = 0, stop_ = 0;
};

}  // namespace tilewise::attend::sm90
