// SPDX-License-Identifier: Apache-2.0
// The producer of a light kernel: what decodes mostly are (decode_is_light), in a tenth of the code, since a call of some microseconds waits for every
// line of code that it fetches. One warp; a lane looks up a box of 64 tokens, which is a stage, and copies it when its turn comes.
#pragma once

#include "tilewise/attend/sm90/decode_config.cuh"

namespace tilewise::attend::sm90 {

template <class C>
class DecodeLightProducer {
 public:
  __device__ DecodeLightProducer(const DecodeArgs& args, DecodeShared<C>& shared) : args_(args), shared_(shared), lane_(threadIdx.x % 32) {}

  __device__ void run() {
    const int items = args_.units.count * args_.strands;
#pragma unroll 1
    for (int item = blockIdx.x; item < items; item += gridDim.x) {
      const int strand = C::kIsCluster ? item % kDecodeClusterBlocks : item / args_.units.count;
      start(C::kIsCluster ? item / kDecodeClusterBlocks : item % args_.units.count);
      const int boxes = count_boxes();
      DecodeParts parts = decode_light_parts(boxes);
      parts.count = min(parts.count, args_.units.most_parts);  // more only of a list whose runs overlap
      if (!C::kIsCluster && strand == 0 && lane_ == 0) args_.parts[unit_] = parts.count;
      last_parts_ = parts.count;
#pragma unroll 1
      for (part_ = strand; part_ < parts.count; part_ += args_.strands) {
        const int first = part_ * parts.boxes;
        produce(first, max(0, min(boxes - first, parts.boxes)));
      }
    }
    if (lane_ != 0) return;
    place_.wait_empty(shared_.ring);
    shared_.notes[place_.stage].unit = -1;
    shared_.notes[place_.stage].part = last_parts_;
    machine::sm90::mbarrier_arrive(&shared_.ring.full[place_.stage]);
  }

 private:
  __device__ void start(int unit) {
    unit_ = unit;
    at_ = decode_unit<C>(args_, unit);
    length_ = decode_length(args_, at_.batch);
    if (args_.is_dense) return;
#pragma unroll
    for (int list = 0; list < 2; ++list) {  // masked, whole: the mask hides nothing
      const RunListView& view = args_.lists[list];
      runs_[list] = 0;
      if (!view.begin) continue;
      const auto index = [&](int batches, int heads) {
        return (batches == 1 ? 0 : at_.batch) * heads + args_.light.heads_q.quotient(at_.head * heads);
      };
      begin_[list] = view.begin[index(view.begin_batch, view.begin_heads)];
      runs_[list] = view.count[index(view.count_batch, view.count_heads)];
    }
  }

  // This lane's run of a block: the lists, one after another, in blocks of 32 runs.
  __device__ DecodeRun load(int block) const {
    if (args_.is_dense) return {0, lane_ == 0 ? length_ : 0};
    const int masked = (runs_[0] + 31) / 32, list = block < masked ? 0 : 1;
    const int i = (list == 0 ? block : block - masked) * 32 + lane_;
    if (i >= (list == 0 ? runs_[0] : runs_[1])) return {0, 0};
    const RunListView& view = args_.lists[list];
    const int64_t at = (list == 0 ? begin_[0] : begin_[1]) + i;
    const int start = view.start[at], stop = view.stop ? view.stop[at] : start + view.grain;
    return {max(0, start), min(stop, length_)};
  }

  // Of the unit. Lane i notes how many come before blocks i and 32 + i (times mark_step_), so that a part finds its first block at once.
  __device__ int count_boxes() {
    constexpr int kAtOnce = 4;  // loads under way
    if (args_.is_dense) {
      mark_[0] = lane_ == 0 ? 0 : INT32_MAX;
      mark_[1] = INT32_MAX;
      return DecodeRun{0, length_}.boxes();
    }
    const int count = (runs_[0] + 31) / 32 + (runs_[1] + 31) / 32;
    mark_step_ = (count + 63) / 64;
    mark_[0] = mark_[1] = INT32_MAX;
    int boxes = 0, mark = 0, to_mark = 0;
#pragma unroll 1
    for (int block = 0; block < count; block += kAtOnce) {
      DecodeRun runs[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) runs[i] = load(block + i);
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        if (to_mark == 0) {
          if (lane_ == mark % 32) mark_[0] = mark < 32 ? boxes : mark_[0], mark_[1] = mark < 32 ? mark_[1] : boxes;
          ++mark;
          to_mark = mark_step_;
        }
        --to_mark;
        boxes += __reduce_add_sync(kDecodeLanes, runs[i].boxes());
      }
    }
    return boxes;
  }

  // A part of `boxes` boxes of the unit, from its `first` on.
  __device__ void produce(int first, int boxes) {
    done_ = 0;
    part_boxes_ = boxes;
    const int last = first + boxes;
    const int marks = __popc(__ballot_sync(kDecodeLanes, mark_[0] <= first)) + __popc(__ballot_sync(kDecodeLanes, mark_[1] <= first));
    const int mark = max(marks - 1, 0);  // no marks: no runs
    int before = __shfl_sync(kDecodeLanes, mark < 32 ? mark_[0] : mark_[1], mark % 32);  // boxes of the blocks before this one
#pragma unroll 1
    for (int block = mark * mark_step_; before < last || done_ == 0; ++block) {
      const DecodeRun run = load(block);
      int up_to = run.boxes();  // of this run and those before it
#pragma unroll
      for (int step = 1; step < 32; step *= 2) {
        const int below = __shfl_up_sync(kDecodeLanes, up_to, step);
        if (lane_ >= step) up_to += below;
      }
      const int total = __shfl_sync(kDecodeLanes, up_to, 31);
      const int from = max(first, before) - before, to = min(last - before, total);
#pragma unroll 1
      for (int i = from; i < to || boxes == 0; i += 32) {
        const int box = i + lane_;
        int owner = 0;  // the lane whose run has the box
#pragma unroll
        for (int step = 16; step > 0; step /= 2) {
          if (__shfl_sync(kDecodeLanes, up_to, owner + step - 1) <= box) owner += step;
        }
        owner = min(owner, 31);
        const DecodeRun mine = {__shfl_sync(kDecodeLanes, run.start, owner), __shfl_sync(kDecodeLanes, run.stop, owner)};
        const int token = mine.token(box - __shfl_sync(kDecodeLanes, up_to - run.boxes(), owner));
        send(token, mine.low(token), box < to ? mine.high(token) : 0, max(1, min(32, to - i)));
        if (boxes == 0) return;  // a unit without keys: a stage without any
      }
      before += total;
    }
  }

  // The next `count` stages: this lane's is of keys [low, high) of the box at `token`, none where high is 0.
  __device__ void send(int token, int low, int high, int count) {
    const int page = args_.boxes.page.quotient(token), row = token - page * args_.boxes.page.divisor;
    int2 k = {-1, 0}, v = {-1, 0};
    if (low < high) {
      k = entry_of(args_.k, page, row);
      v = entry_of(args_.v, page, row);
    }
    const bool is_stored = k.x >= 0 && k.x < args_.k.entries && v.x >= 0 && v.x < args_.v.entries;
    DecodeLightNotes notes = {unit_, part_, 0, 0, low, high, is_stored ? 0 : DecodeChunk::kIsAbsent, 0, 0};
    if (C::kIsQuantised && is_stored) {
      notes.scale_k = scale_of(args_.k, k);
      notes.scale_v = scale_of(args_.v, v);
    }
    const uint64_t policy = machine::sm90::createpolicy_evict_first();
#pragma unroll 1
    for (int i = 0; i < count; ++i) {
      ++done_;
      if (lane_ == i) {
        notes.is_first = done_ == 1;
        notes.is_last = done_ >= part_boxes_;
        place_.wait_empty(shared_.ring);
        shared_.notes[place_.stage] = notes;
        uint64_t* const full = &shared_.ring.full[place_.stage];
        if (is_stored) {
          machine::sm90::mbarrier_arrive_expect_tx(full, 2 * C::kSideBytes);
          const uint32_t to = machine::sm90::smem_address(shared_.keys[place_.stage][0]), barrier = machine::sm90::smem_address(full);
          machine::sm90::cp_async_bulk_tensor_load(to, &args_.k.map, {0, k.y, 0, at_.head_kv * args_.k.head_step, k.x}, barrier, policy);
          machine::sm90::cp_async_bulk_tensor_load(to + C::kSideBytes, &args_.v.map, {0, v.y, 0, at_.head_kv * args_.v.head_step, v.x}, barrier,
                                                   policy);
        } else {
          machine::sm90::mbarrier_arrive(full);
        }
      }
      __syncwarp();
      place_.advance();
    }
  }

  // {entry, row of the entry}; an entry out of range: not stored.
  __device__ int2 entry_of(const DecodeArgs::Side& side, int page, int row) const {
    if (!side.table) return {at_.batch, page * args_.boxes.page.divisor + row};
    return {side.table[at_.batch * side.table_stride_batch + at_.head_kv * side.table_stride_head + page], row};
  }
  __device__ float scale_of(const DecodeArgs::Side& side, int2 entry) const {
    return side.scale.data[entry.x * side.scale.stride_entry + at_.head_kv * side.scale.stride_head +
                           side.group_tokens.quotient(entry.y) * side.scale.stride_group];
  }

  const DecodeArgs& args_;
  DecodeShared<C>& shared_;
  const int lane_;
  RingPlace<C::kStages> place_;
  DecodeUnit at_;
  int unit_ = 0, length_ = 0;
  int runs_[2] = {0, 0};
  int64_t begin_[2] = {0, 0};
  int mark_[2], mark_step_ = 1;
  int part_ = 0, part_boxes_ = 0, last_parts_ = 0;
  int done_ = 0;  // boxes of the part
};

}  // namespace tilewise::attend::sm90
