// SPDX-License-Identifier: Apache-2.0
// Parts of a row, made one. Sums lie in the workspace as they lie in registers, so that a thread reads what its likes in other blocks have written.
#pragma once

#include "tilewise/attend/sm90/forward_config.cuh"
#include "tilewise/attend/sm90/softmax.cuh"

namespace tilewise::attend::sm90 {

/// The sums of a part: chunks of four floats, kSumsStride apart from part to part. This thread's.
template <class C>
constexpr int kSumsChunks = C::kHeadDim / 8;  // and one of maxima and sums of exponentials
template <class C>
constexpr int kSumsStride = C::kConsumers * (kSumsChunks<C> + 1) * 128;
template <class C>
__device__ float4* sums_of_slot(const SplitView& split, int group, int slot) {
  return reinterpret_cast<float4*>(split.sums) + int64_t{slot} * kSumsStride<C> + group * (kSumsStride<C> / C::kConsumers) +
         thread_index_again() % 128;
}
__device__ inline int32_t* arrivals_of_warp(const SplitView& split, int group, int slot) {
  return split.arrived + slot * kSplitWarps + group * 4 + thread_index_again() / 32 % 4;
}

/// Puts the sums of part number `index` where the row's other parts have theirs. The warp that comes last of its likes notes the row in its list
/// `pending`, which merge_pending() works off: here, between two rows, there is no register left for it.
template <class C>
__device__ void put_part(const SplitView& split, int group, int index, int32_t& pending, const float (&acc)[C::kHeadDim / 2],
                         const Softmax& softmax) {
  const int word = split.parts[index].word;
  float4* const mine = sums_of_slot<C>(split, group, slot_of(word) + part_of(word));
#pragma unroll
  for (int i = 0; i < kSumsChunks<C>; ++i) __stcg(mine + i * 128, make_float4(acc[4 * i], acc[4 * i + 1], acc[4 * i + 2], acc[4 * i + 3]));
  const auto top = [&](int r) { return softmax.row_max[r] == -INFINITY ? -INFINITY : -softmax.bias[r]; };
  __stcg(mine + kSumsChunks<C> * 128, make_float4(top(0), softmax.row_sum[0], top(1), softmax.row_sum[1]));
  __threadfence();
  __syncwarp();
  if (threadIdx.x % 32 == 0) {
    int32_t* const arrived = arrivals_of_warp(split, group, slot_of(word));
    if (atomicAdd(arrived, 1) == parts_of(word) - 1) {
      *arrived = pending;  // nobody else looks at it any more
      pending = index + 1;
    }
  }
}

/// The rows that this warp has noted: sums added up in the order of the parts, whoever does it, and stored by `store(item, acc, lse)`.
template <class C, class Store>
__device__ void merge_pending(const SplitForwardArgs& args, int group, const int32_t& pending, const Store& store) {
  const SplitView& split = args.split;
  __syncwarp();
  int next = pending;
  while (next != 0) {
    const RowPart row = split.parts[next - 1];
    const int slot = slot_of(row.word), parts = parts_of(row.word);
    if (threadIdx.x % 32 == 0) {
      int32_t* const arrived = arrivals_of_warp(split, group, slot);
      next = *arrived;
      *arrived = 0;  // for the next launch
    }
    next = __shfl_sync(kAllLanes, next, 0);
    __threadfence();
    const float4* const sums = sums_of_slot<C>(split, group, slot);
    float top[2] = {-INFINITY, -INFINITY};
#pragma unroll 1
    for (int part = 0; part < parts; ++part) {
      const float4 of_part = __ldcg(sums + part * kSumsStride<C> + kSumsChunks<C> * 128);
      top[0] = fmaxf(top[0], of_part.x);
      top[1] = fmaxf(top[1], of_part.z);
    }
    float acc[C::kHeadDim / 2] = {};
    Softmax softmax;
    softmax.reset();
#pragma unroll 1
    for (int part = 0; part < parts; ++part) {
      const float4* const from = sums + part * kSumsStride<C>;
      const float4 of_part = __ldcg(from + kSumsChunks<C> * 128);
      // A part without a key that a query sees has -inf, and sums of 0.
      const float weight[2] = {of_part.x == -INFINITY ? 0 : ex2_approx(of_part.x - top[0]),
                               of_part.z == -INFINITY ? 0 : ex2_approx(of_part.z - top[1])};
      softmax.row_sum[0] = fmaf(of_part.y, weight[0], softmax.row_sum[0]);
      softmax.row_sum[1] = fmaf(of_part.w, weight[1], softmax.row_sum[1]);
#pragma unroll
      for (int i = 0; i < kSumsChunks<C>; ++i) {
        const float4 x = __ldcg(from + i * 128);
        acc[4 * i] = fmaf(x.x, weight[0], acc[4 * i]);
        acc[4 * i + 1] = fmaf(x.y, weight[0], acc[4 * i + 1]);
        acc[4 * i + 2] = fmaf(x.z, weight[1], acc[4 * i + 2]);
        acc[4 * i + 3] = fmaf(x.w, weight[1], acc[4 * i + 3]);
      }
    }
    for (int r = 0; r < 2; ++r) softmax.bias[r] = top[r] == -INFINITY ? 0 : -top[r];
    float lse[2];
    softmax.finish(acc, lse, nullptr);
    store(ItemInfo{row.item / args.items_per_head, row.item % args.items_per_head * C::kTileQ, 0, 0}, acc, lse);
  }
}

}  // namespace tilewise::attend::sm90
