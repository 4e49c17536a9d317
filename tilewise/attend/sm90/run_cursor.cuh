// SPDX-License-Identifier: Apache-2.0
// The producer warp's way through a plan: rows of this thread block, runs of a row, both read 32 at a time, one a lane.
#pragma once

#include "tilewise/attend/sm90/forward_args.h"

namespace tilewise::attend::sm90 {

constexpr uint32_t kAllLanes = 0xFFFFFFFFu;

struct RowHead {
  int batch, head, q_tile;
  int num_masked, num_runs;  // runs of the row: first the masked ones, then the whole ones
  int64_t begin_masked, begin_whole;
};

/// What one lane holds of 32 consecutive runs.
struct RunChunk {
  int start = 0, stop = 0;
};

__device__ inline RunChunk load_run(const ForwardArgs& args, const RowHead& row, int index) {
  RunChunk run;
  if (index < row.num_runs) {
    const bool is_masked = index < row.num_masked;
    const RunListView& list = is_masked ? args.masked : args.whole;
    const int64_t at = is_masked ? row.begin_masked + index : row.begin_whole + index - row.num_masked;
    run.start = list.start[at];
    run.stop = list.stop ? list.stop[at] : min(run.start + list.grain, args.seqlen_k);
  }
  return run;
}

/// The rows of this thread block, in the order of work. With a counter in memory a block claims its next row when it begins one: longest
/// rows first, that evens out rows of any lengths. Without: one of each gridDim.x rows, from alternating ends. To find a row takes up to four
/// loads, each the address of the next; `work_ahead` does one of them for the row to come, so that even a short row does not wait for its list.
class RowWalk {
 public:
  __device__ explicit RowWalk(const ForwardArgs& args) : args_(args), lane_(threadIdx.x % 32) {}

  /// Moves to the next row; gives its head and its first 32 runs. False: no more rows.
  __device__ bool advance(RowHead& row, RunChunk& first) {
    while (step_ < 4) work_ahead();
    step_ = 0;
    row = row_;
    first = first_;
    return position_ < args_.rows;
  }
  __device__ void work_ahead() {
    if (step_ >= 4) return;
    switch (step_) {
      case 0: claim(); break;
      case 1: number(); break;
      case 2: head(); break;
      case 3: first_ = load_run(args_, row_, lane_); break;
    }
    ++step_;
  }
  /// The last block to leave resets the counter for the next launch.
  __device__ void close() const {
    if (args_.counter && lane_ == 0 && atomicAdd(&args_.counter[1], 1) == static_cast<int>(gridDim.x) - 1) {
      args_.counter[0] = 0;
      args_.counter[1] = 0;
    }
  }

 private:
  __device__ void claim() {
    const int blocks = gridDim.x, block = blockIdx.x;
    if (args_.counter && index_ > 0) {
      if (lane_ == 0) position_ = blocks + atomicAdd(&args_.counter[0], 1);
    } else {
      position_ = index_ * blocks + (index_ % 2 == 0 ? block : blocks - 1 - block);
    }
    ++index_;
  }
  __device__ void number() {
    position_ = __shfl_sync(kAllLanes, position_, 0);
    number_ = args_.order && position_ < args_.rows ? args_.order[position_] : position_;
  }
  __device__ void head() {
    row_ = {};
    if (position_ >= args_.rows) return;
    row_.q_tile = number_ % args_.num_q_tiles;
    row_.head = number_ / args_.num_q_tiles % args_.heads_q;
    row_.batch = number_ / args_.num_q_tiles / args_.heads_q;
    int num_whole = 0;
    read_list(args_.masked, row_.begin_masked, row_.num_masked);
    read_list(args_.whole, row_.begin_whole, num_whole);
    row_.num_runs = row_.num_masked + num_whole;
  }
  __device__ void read_list(const RunListView& list, int64_t& begin, int& count) const {
    if (!list.begin) return;
    const int64_t batch = list.batch == 1 ? 0 : row_.batch;
    const int64_t head = row_.head / (args_.heads_q / list.heads);
    const int64_t at = (batch * list.heads + head) * args_.num_q_tiles + row_.q_tile;
    begin = list.begin[at];
    count = list.count[at];
  }

  const ForwardArgs& args_;
  const int lane_;
  int step_ = 0, index_ = 0, position_ = 0, number_ = 0;
  RowHead row_ = {};  // of the row to come
  RunChunk first_;
};

/// The keys of a row as [key, stop) of its current run.
class RunCursor {
 public:
  __device__ RunCursor(const ForwardArgs& args, const RowHead& row, RunChunk first) : args_(args), row_(row), lane_(threadIdx.x % 32), ahead_(first) {
    next_run();
  }
  __device__ bool more() const { return index_ < row_.num_runs; }
  __device__ bool is_masked() const { return index_ < row_.num_masked; }
  __device__ int key() const { return key_; }
  __device__ int left() const { return stop_ - key_; }
  __device__ void take(int keys) {
    key_ += keys;
    if (key_ == stop_) next_run();
  }

 private:
  __device__ void next_run() {
    do {  // skips empty runs
      if (++index_ >= row_.num_runs) return;
      if (index_ % 32 == 0) {
        chunk_ = ahead_;
        ahead_ = load_run(args_, row_, index_ + 32 + lane_);
      }
      key_ = __shfl_sync(kAllLanes, chunk_.start, index_ % 32);
      stop_ = __shfl_sync(kAllLanes, chunk_.stop, index_ % 32);
    } while (key_ >= stop_);
  }

  const ForwardArgs& args_;
  const RowHead& row_;
  const int lane_;
  RunChunk chunk_, ahead_;  // the 32 runs around index_, and the 32 after them, on their way
  int index_ = -1, key_ = 0, stop_ = 0;
};

}  // namespace tilewise::attend::sm90
