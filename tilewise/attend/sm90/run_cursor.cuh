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

/// The rows of this thread block: one of each gridDim.x rows of the order of work, from alternating ends, so that sorted rows add up to
/// equal work without a counter in memory. Row heads come 32 at a time and the first runs of a row while the
/// row before it is being copied, so that a short row does not wait for its list.
class RowWalk {
 public:
  __device__ explicit RowWalk(const ForwardArgs& args) : args_(args), lane_(threadIdx.x % 32) { load_next(); }

  __device__ bool more() const { return next_at_ < args_.rows; }
  /// Moves to the next row; gives its head and its first 32 runs.
  __device__ void advance(RowHead& row, RunChunk& first) {
    row = next_row_;
    first = next_first_;
    ++index_;
    load_next();
  }

 private:
  __device__ void load_next() {
    next_at_ = position(index_);
    if (next_at_ >= args_.rows) return;
    if (index_ % 32 == 0) heads_ = load_head(position(index_ + lane_));
    const int from = index_ % 32;
    next_row_ = {__shfl_sync(kAllLanes, heads_.batch, from),        __shfl_sync(kAllLanes, heads_.head, from),
                 __shfl_sync(kAllLanes, heads_.q_tile, from),       __shfl_sync(kAllLanes, heads_.num_masked, from),
                 __shfl_sync(kAllLanes, heads_.num_runs, from),     __shfl_sync(kAllLanes, heads_.begin_masked, from),
                 __shfl_sync(kAllLanes, heads_.begin_whole, from)};
    next_first_ = load_run(args_, next_row_, lane_);
  }
  __device__ static int position(int index) {
    const int blocks = gridDim.x, block = blockIdx.x;
    return index * blocks + (index % 2 == 0 ? block : blocks - 1 - block);
  }
  __device__ RowHead load_head(int at) const {
    RowHead row = {};
    if (at >= args_.rows) return row;
    const int number = args_.order ? args_.order[at] : at;
    row.q_tile = number % args_.num_q_tiles;
    row.head = number / args_.num_q_tiles % args_.heads_q;
    row.batch = number / args_.num_q_tiles / args_.heads_q;
    int num_whole = 0;
    read_list(args_.masked, row, row.begin_masked, row.num_masked);
    read_list(args_.whole, row, row.begin_whole, num_whole);
    row.num_runs = row.num_masked + num_whole;
    return row;
  }
  __device__ void read_list(const RunListView& list, const RowHead& row, int64_t& begin, int& count) const {
    if (!list.begin) return;
    const int64_t batch = list.batch == 1 ? 0 : row.batch;
    const int64_t head = row.head / (args_.heads_q / list.heads);
    const int64_t at = (batch * list.heads + head) * args_.num_q_tiles + row.q_tile;
    begin = list.begin[at];
    count = list.count[at];
  }

  const ForwardArgs& args_;
  const int lane_;
  int index_ = 0, next_at_ = 0;
  RowHead heads_ = {}, next_row_ = {};
  RunChunk next_first_;
};

/// The keys of a row as [key, stop) of its current run.
class RunCursor {
 public:
  __device__ RunCursor(const ForwardArgs& args, const RowHead& row, RunChunk first)
      : args_(args), row_(row), lane_(threadIdx.x % 32), chunk_(first) {
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
      if (index_ > 0 && index_ % 32 == 0) chunk_ = load_run(args_, row_, index_ + lane_);
      key_ = __shfl_sync(kAllLanes, chunk_.start, index_ % 32);
      stop_ = __shfl_sync(kAllLanes, chunk_.stop, index_ % 32);
    } while (key_ >= stop_);
  }

  const ForwardArgs& args_;
  const RowHead& row_;
  const int lane_;
  RunChunk chunk_;
  int index_ = -1, key_ = 0, stop_ = 0;
};

}  // namespace tilewise::attend::sm90
