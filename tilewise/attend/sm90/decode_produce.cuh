// SPDX-License-Identifier: Apache-2.0
// The warps that walk the lists of a thread block's units and keep the ring of keys and values full. Each walks all, and fills every fourth stage.
#pragma once

#include "tilewise/attend/sm90/decode_config.cuh"

namespace tilewise::attend::sm90 {

template <class C>
class DecodeProducer {
 public:
  __device__ DecodeProducer(const DecodeArgs& args, DecodeShared<C>& shared)
      : args_(args), shared_(shared), lane_(threadIdx.x % 32), warp_(threadIdx.x / 32 - C::kConsumers) {}

  __device__ void run() {
    const int items = args_.units.count * args_.strands;
    for (int item = blockIdx.x; item < items; item += gridDim.x) {
      start(item % args_.units.count);
      const int strand = item / args_.units.count;
      if (query_first_ >= query_last_) {  // a row of the plan without queries
        if (strand == 0 && warp_ == 0 && lane_ == 0) args_.parts[unit_] = 0;
        continue;
      }
      const int boxes = count_boxes();
      DecodeParts parts = decode_parts(boxes, args_.boxes.box_shift);
      parts.count = min(parts.count, args_.units.most_parts);  // more only of a list whose runs overlap
      if (strand == 0 && warp_ == 0 && lane_ == 0) args_.parts[unit_] = parts.count;
      for (part_ = strand; part_ < parts.count; part_ += args_.strands) {
        part_first_ = part_ * parts.boxes;
        part_boxes_ = max(0, min(boxes - part_first_, parts.boxes));
        produce();
      }
    }
    if (!is_turn()) return;
    place_.wait_empty(shared_.ring);
    if (lane_ == 0) shared_.notes[place_.stage].unit = -1;
    fill();
  }

 private:
  // One of 32 runs that the lanes hold. `boxes` 0: none.
  struct Run {
    int start, stop, boxes;
    uint32_t queries;
  };
  // The same as it lies in memory.
  struct Entry {
    int start, stop;
    uint32_t queries;
  };

  __device__ void start(int unit) {
    unit_ = unit;
    at_ = DecodeUnit(args_.units, unit);
    length_ = decode_length(args_, at_.batch);
    const int2 queries = at_.queries(args_.units);
    query_first_ = queries.x;
    query_last_ = queries.y;
    // Keys between these need no test, whichever row looks.
    int first_most = INT32_MIN, last_least = INT32_MAX, sink_least = INT32_MAX;
    for (int r = lane_; r < args_.units.rows; r += 32) {
      const DecodeBounds bounds = decode_bounds(args_, length_, at_.head + r / args_.units.seqlen_q, r % args_.units.seqlen_q);
      first_most = max(first_most, bounds.first);
      last_least = min(last_least, bounds.last);
      sink_least = min(sink_least, bounds.sink);
    }
    first_most_ = __reduce_max_sync(kDecodeLanes, first_most);
    last_least_ = __reduce_min_sync(kDecodeLanes, last_least);
    sink_least_ = __reduce_min_sync(kDecodeLanes, sink_least);
    // Lane i has list i: masked, whole, picked.
    my_runs_ = lane_ == 0 && args_.is_dense ? 2 : 0;
    my_begin_ = 0;
    if (lane_ < 3 && args_.lists[lane_].begin) {
      const RunListView& view = args_.lists[lane_];
      const auto index = [&](int batches, int heads) {
        return (int64_t{batches == 1 ? 0 : at_.batch} * heads + int64_t{at_.head} * heads / args_.units.heads_q) * args_.units.num_rows + at_.row;
      };
      my_begin_ = view.begin[index(view.begin_batch, view.begin_heads)];
      my_runs_ = view.count[index(view.count_batch, view.count_heads)];
    }
  }

  __device__ int box_of(int token) const {
    const int page = args_.boxes.page.quotient(token);
    return page * args_.boxes.boxes_per_page.divisor + ((token - page * args_.boxes.page.divisor) >> args_.boxes.box_shift);
  }

  // The lists of a row, one after another, are counted in blocks of 32 runs.
  __device__ int blocks() const { return blocks_of(0) + blocks_of(1) + blocks_of(2); }
  __device__ int blocks_of(int list) const { return (__shfl_sync(kDecodeLanes, my_runs_, list) + 31) / 32; }

  // This lane's run of a block.
  __device__ Entry load(int block) const {
    int list = 0;
    for (int of_list = blocks_of(0); list < 2 && block >= of_list; of_list = blocks_of(++list)) block -= of_list;
    const int runs = __shfl_sync(kDecodeLanes, my_runs_, list), i = block * 32 + lane_;
    const int64_t at = __shfl_sync(kDecodeLanes, my_begin_, list) + i;
    if (i >= runs) return {0, 0, 0};
    if (args_.is_dense) {  // what any query sees through the band, in up to two runs
      const Band& band = args_.bands[0];
      const int64_t oldest = int64_t{length_} - args_.units.seqlen_q, newest = int64_t{length_} - 1;
      const int64_t stop = max(int64_t{0}, min(int64_t{length_}, newest + band.right + 1));
      const int64_t first = band.left > oldest ? 0 : min(oldest - band.left, int64_t{length_});
      const int64_t sink = min(band.sink, stop);
      const bool is_cut = sink < first;
      if (i == 0) return {0, static_cast<int>(is_cut ? sink : stop), 0xFF};
      return {static_cast<int>(first), is_cut ? static_cast<int>(stop) : 0, 0xFF};
    }
    const RunListView& view = args_.lists[list];
    const int start = view.start[at];
    const int stop = list != 2 && view.stop ? view.stop[at] : start + (list == 2 ? 1 : view.grain);
    return {start, stop, view.rows ? static_cast<uint32_t>(view.rows[at * view.words]) : 0xFF};
  }

  // Cut at the sequence's end, since what lies behind is not to be touched.
  __device__ Run run_of(const Entry& entry) const {
    Run run = {max(0, entry.start), min(entry.stop, length_), 0, 0xFF};
    const uint32_t all = (1u << (query_last_ - query_first_)) - 1;
    if ((entry.queries & all) != all) run.queries = (entry.queries & all) << query_first_;
    if (run.start < run.stop && run.queries != 0) run.boxes = box_of(run.stop - 1) - box_of(run.start) + 1;
    return run;
  }

  // Of the unit. Lane i notes how many come before blocks i and 32 + i (times mark_step_), so that a part finds its first block at once.
  __device__ int count_boxes() {
    constexpr int kAtOnce = 4;  // loads under way
    const int count = blocks();
    mark_step_ = (count + 63) / 64;
    mark_[0] = mark_[1] = INT32_MAX;
    int boxes = 0, mark = 0, to_mark = 0;
    for (int block = 0; block < count; block += kAtOnce) {
      Entry entries[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) entries[i] = load(block + i);
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        if (to_mark == 0) {
          if (lane_ == mark % 32) mark_[0] = mark < 32 ? boxes : mark_[0], mark_[1] = mark < 32 ? mark_[1] : boxes;
          ++mark;
          to_mark = mark_step_;
        }
        --to_mark;
        boxes += __reduce_add_sync(kDecodeLanes, run_of(entries[i]).boxes);
      }
    }
    return boxes;
  }

  // One part.
  __device__ void produce() {
    done_ = 0;
    if (part_boxes_ == 0) {
      if (is_turn()) {
        open_stage();
        close_stage();
      }
      next_stage();
      return;
    }
    const int last = part_first_ + part_boxes_;
    const int mark = __popc(__ballot_sync(kDecodeLanes, mark_[0] <= part_first_)) + __popc(__ballot_sync(kDecodeLanes, mark_[1] <= part_first_)) - 1;
    int before = __shfl_sync(kDecodeLanes, mark < 32 ? mark_[0] : mark_[1], mark % 32);  // boxes of the blocks before this one
    const int masked = blocks_of(0);
    for (int block = mark * mark_step_; before < last; ++block) {
      const Run run = run_of(load(block));
      int up_to = run.boxes;  // of this run and those before it
#pragma unroll
      for (int step = 1; step < 32; step *= 2) {
        const int below = __shfl_up_sync(kDecodeLanes, up_to, step);
        if (lane_ >= step) up_to += below;
      }
      const int total = __shfl_sync(kDecodeLanes, up_to, 31);
      const int from = max(part_first_, before), to = min(last, before + total);
      for (int box = from; box < to; box += 32) copy(block < masked, run, up_to, box - before, min(32, to - box));
      before += total;
    }
  }

  // Copies boxes [first, first + count) of the 32 runs, up to 32: a lane each.
  __device__ void copy(bool is_masked, const Run& runs, int up_to, int first, int count) {
    const int box = first + lane_;
    int owner = 0;  // the lane whose run has the box
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
      if (__shfl_sync(kDecodeLanes, up_to, owner + step - 1) <= box) owner += step;
    }
    owner = min(owner, 31);
    const int start = __shfl_sync(kDecodeLanes, runs.start, owner), stop = __shfl_sync(kDecodeLanes, runs.stop, owner);
    const int before = __shfl_sync(kDecodeLanes, up_to - runs.boxes, owner);
    const uint32_t queries = __shfl_sync(kDecodeLanes, runs.queries, owner);
    const bool is_mine = lane_ < count;
    const int number = box_of(start) + box - before;
    const int page = args_.boxes.boxes_per_page.quotient(number);
    const int row = (number - page * args_.boxes.boxes_per_page.divisor) << args_.boxes.box_shift;
    const int token = page * args_.boxes.page.divisor + row;
    const int low = max(0, start - token), high = min(stop - token, min(args_.boxes.box, args_.boxes.page.divisor - row));
    const int from = token + low, to = token + high;
    const bool is_free = to - 1 <= last_least_ && (from >= first_most_ || to <= sink_least_);
    const int2 k = is_mine ? entry_of(args_.k, page, row, token) : int2{0, 0};
    const int2 v = is_mine && args_.has_v ? entry_of(args_.v, page, row, token) : int2{0, 0};
    const bool is_stored = is_mine && k.x >= 0 && k.x < args_.k.entries && (!args_.has_v || (v.x >= 0 && v.x < args_.v.entries));
    const int flags = (is_masked && !is_free ? DecodeChunk::kIsMasked : 0) | (is_stored ? 0 : DecodeChunk::kIsAbsent);
    const int of_stage = args_.boxes.per_stage(), chunks = args_.boxes.box / kDecodeChunk;
    const int box_bytes = args_.boxes.box * C::kRowBytes * (args_.has_v ? 2 : 1);
    for (int i = 0; i < count;) {
      const int slot = done_ & (of_stage - 1);  // of the stage
      const int here = min(count - i, of_stage - slot);
      done_ += here;
      const bool is_full = (done_ & (of_stage - 1)) == 0 || done_ == part_boxes_;
      if (is_turn()) {
        if (slot == 0) open_stage();
        const bool is_now = lane_ >= i && lane_ < i + here;
        const int copied = __popc(__ballot_sync(kDecodeLanes, is_now && is_stored));
        uint64_t* const full = &shared_.ring.full[place_.stage];
        if (lane_ == 0 && copied > 0) machine::sm90::mbarrier_expect_tx(full, copied * box_bytes);
        __syncwarp();
        if (is_now) {
          const int my_slot = slot + lane_ - i;
          if (is_stored) {
            copy_box(args_.k, 0, my_slot, k, full);
            if (args_.has_v) copy_box(args_.v, 1, my_slot, v, full);
          }
          for (int c = 0; c < chunks; ++c) {
            const auto cut = [&](int x) { return static_cast<uint8_t>(min(max(x - c * kDecodeChunk, 0), kDecodeChunk)); };
            shared_.notes[place_.stage].chunk[my_slot * chunks + c] = {token + c * kDecodeChunk, cut(low), cut(high), static_cast<uint8_t>(flags),
                                                                       static_cast<uint8_t>(queries)};
          }
        }
        if constexpr (C::kIsQuantised) {
          for (int key = lane_; key < kDecodeStage; key += 32) copy_scales(key, slot, i, here, k, v, is_stored);
        }
        __syncwarp();
        if (is_full) close_stage();
      }
      if (is_full) next_stage();
      i += here;
    }
  }

  __device__ bool is_turn() const { return (turn_ & (C::kProducers - 1)) == warp_; }
  __device__ void next_stage() {
    place_.advance();
    ++turn_;
  }

  // {entry, row of the entry}; an entry out of range: not stored.
  __device__ int2 entry_of(const DecodeArgs::Side& side, int page, int row, int token) const {
    if (!side.table) return {at_.batch, token};
    return {side.table[at_.batch * side.table_stride_batch + at_.head_kv * side.table_stride_head + page], row};
  }

  __device__ void copy_box(const DecodeArgs::Side& side, int which, int slot, int2 entry, uint64_t* full) const {
    const uint32_t to = machine::sm90::smem_address(shared_.keys[place_.stage][which]) + slot * args_.boxes.box * C::kRowBytes;
    const uint32_t barrier = machine::sm90::smem_address(full);
    const int head = at_.head_kv * side.head_step;
    const uint64_t policy = machine::sm90::createpolicy_evict_first();  // sums, lists and tables stay
    if (!side.is_flat) {
      machine::sm90::cp_async_bulk_tensor_load(to, &side.map, {0, entry.y, 0, head, entry.x}, barrier, policy);
      return;
    }
    constexpr int kColumns = C::kWidth / (C::kIsQuantised ? 1 : 2);  // elements of the descriptor in a column block
    for (int block = 0; block < C::kBlocks; ++block) {
      machine::sm90::cp_async_bulk_tensor_load(to + block * args_.boxes.box * C::kWidth, &side.map, {block * kColumns, entry.y, 0, head, entry.x},
                                               barrier, policy);
    }
  }

  // Of one key of the stage, if its box is among the lanes [first_lane, first_lane + count), in slots from `slot` on.
  __device__ void copy_scales(int key, int slot, int first_lane, int count, int2 k, int2 v, bool is_stored) {
    if constexpr (C::kIsQuantised) {
      const int source = (key >> args_.boxes.box_shift) - slot;
      const int lane = first_lane + min(max(source, 0), count - 1);
      const int2 of_k = {__shfl_sync(kDecodeLanes, k.x, lane), __shfl_sync(kDecodeLanes, k.y, lane)};
      const int2 of_v = {__shfl_sync(kDecodeLanes, v.x, lane), __shfl_sync(kDecodeLanes, v.y, lane)};
      const bool is_there = __shfl_sync(kDecodeLanes, is_stored, lane);
      if (source < 0 || source >= count || !is_there) return;
      DecodeStageScales<true>& scales = shared_.scales[place_.stage];
      const int row = key & (args_.boxes.box - 1);
      copy_scale(&scales.scale_k[key], args_.k, args_.k.scale, of_k, row);
      if (args_.k.zero.data) copy_scale(&scales.zero_k[key], args_.k, args_.k.zero, of_k, row);
      if (!args_.has_v) return;
      copy_scale(&scales.scale_v[key], args_.v, args_.v.scale, of_v, row);
      if (args_.v.zero.data) copy_scale(&scales.zero_v[key], args_.v, args_.v.zero, of_v, row);
    }
  }
  // Rows past the page or the sequence have no scale: a zero is written.
  __device__ void copy_scale(float* to, const DecodeArgs::Side& side, const DecodeScale& scale, int2 entry, int row) const {
    const int at = entry.y + row;
    const bool is_there = side.table ? at < args_.boxes.page.divisor : at < args_.capacity;
    const float* const from = scale.data + entry.x * scale.stride_entry + at_.head_kv * scale.stride_head +
                              (is_there ? side.group_tokens.quotient(at) : 0) * scale.stride_group;
    machine::sm90::cp_async_4(machine::sm90::smem_address(to), from, is_there ? 4 : 0);
  }

  __device__ void open_stage() {
    place_.wait_empty(shared_.ring);
    if (lane_ < kDecodeStage / kDecodeChunk) shared_.notes[place_.stage].chunk[lane_] = {0, 0, 0, 0, 0};
    __syncwarp();
  }

  __device__ void close_stage() {
    if (lane_ == 0) {
      const int of_stage = args_.boxes.per_stage();
      DecodeNotes& notes = shared_.notes[place_.stage];
      notes.unit = unit_;
      notes.part = part_;
      notes.is_first = done_ <= of_stage;
      notes.is_last = done_ == part_boxes_;
    }
    fill();
  }

  // The stage goes to the consumers.
  __device__ void fill() {
    if constexpr (C::kIsQuantised) machine::sm90::cp_async_mbarrier_arrive_noinc(&shared_.ring.full[place_.stage]);
    __syncwarp();
    if (lane_ == 0) machine::sm90::mbarrier_arrive(&shared_.ring.full[place_.stage]);
  }

  const DecodeArgs& args_;
  DecodeShared<C>& shared_;
  const int lane_, warp_;
  RingPlace<C::kStages> place_;
  DecodeUnit at_;
  int unit_ = 0, length_ = 0, query_first_ = 0, query_last_ = 0;
  int first_most_ = 0, last_least_ = 0, sink_least_ = 0;
  int my_runs_ = 0;  // of list lane_
  int64_t my_begin_ = 0;
  int mark_[2], mark_step_ = 1;
  int part_ = 0, part_first_ = 0, part_boxes_ = 0;
  int done_ = 0;  // boxes of the part
  int turn_ = 0;  // stages so far
};

}  // namespace tilewise::attend::sm90
