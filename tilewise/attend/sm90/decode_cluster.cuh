// SPDX-License-Identifier: Apache-2.0
// The merge of a unit by the blocks that read it, which are a cluster: parts lie in their shared memory, and each block adds up some channels of a row. The
// same numbers in the same order as the merge kernel, so the bits are alike.
#pragma once

#include "tilewise/attend/sm90/decode_config.cuh"

namespace tilewise::attend::sm90 {

/// By all consumer warps, between two barriers of the cluster.
template <class C>
__device__ void merge_in_cluster(const DecodeArgs& args, DecodeShared<C>& shared, int unit, int parts) {
  constexpr int kOfLane = kDecodeMostParts / 32, kOfWarp = kDecodeMostParts / C::kConsumers;
  constexpr float kLog2E = 1.4426950408889634f, kLn2 = 0.6931471805599453f;
  const DecodeMergeArgs& to = args.merge;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const DecodeClusterShare share = decode_cluster_share(args.units.rows, C::kHeadDim, static_cast<int>(blockIdx.x % kDecodeClusterBlocks));
  if (share.row >= args.units.rows) return;  // the whole block
  const DecodeUnit at = decode_unit<C>(args, unit);
  const int head = at.head + share.row;
  const uint32_t sums = machine::sm90::smem_address(&shared.kept.sums[0][share.row][0]),
                 stats = machine::sm90::smem_address(&shared.kept.stats[0][share.row]);
  const auto there = [](uint32_t base, uint32_t part_bytes, int part) {
    return machine::sm90::mapa(base + part / kDecodeClusterBlocks * part_bytes, part % kDecodeClusterBlocks);
  };
  const int quad = share.first_quad + lane;
  const bool has_quad = lane < share.quads;
  float4 part_sums[kOfWarp] = {};
#pragma unroll
  for (int i = 0; i < kOfWarp; ++i) {
    const int part = i * C::kConsumers + warp;
    if (part < parts && has_quad) part_sums[i] = machine::sm90::ld_cluster_v4(there(sums, sizeof(shared.kept.sums[0]), part) + quad * 16);
  }
  float2 own[kOfLane];
#pragma unroll
  for (int i = 0; i < kOfLane; ++i) {
    const int part = i * 32 + lane;
    own[i] = part < parts ? machine::sm90::ld_cluster_v2(there(stats, sizeof(shared.kept.stats[0]), part)) : float2{-INFINITY, 0};
  }
  const float sink = to.sink_logit ? to.sink_logit[head] * kLog2E : -INFINITY;
  float most = sink;
#pragma unroll
  for (int i = 0; i < kOfLane; ++i) most = fmaxf(most, own[i].x);
  for (int other = 16; other > 0; other /= 2) most = fmaxf(most, __shfl_xor_sync(kDecodeLanes, most, other));
  const auto weight = [most](float from) { return from == most ? 1.0f : machine::sm90::ex2_approx(from - most); };
  float weights[kOfLane], total = 0;
#pragma unroll
  for (int i = 0; i < kOfLane; ++i) {
    weights[i] = weight(own[i].x);
    total += weights[i] * own[i].y;
  }
  for (int other = 16; other > 0; other /= 2) total += __shfl_xor_sync(kDecodeLanes, total, other);
  if (to.sink_logit) total += weight(sink);
  const float inverse = total == 0 ? 0 : 1 / total;
  float4 sum = {};
#pragma unroll
  for (int i = 0; i < kOfWarp; ++i) {
    const int part = i * C::kConsumers + warp;
    const float mine = __shfl_sync(kDecodeLanes, weights[part / 32], part % 32);
    if (part >= parts) continue;
    sum.x += mine * part_sums[i].x;
    sum.y += mine * part_sums[i].y;
    sum.z += mine * part_sums[i].z;
    sum.w += mine * part_sums[i].w;
  }
  shared.kept.merged[warp][lane] = sum;
  machine::sm90::bar_sync(1, 32 * C::kConsumers);
  if (warp != 0) return;
  for (int other = 1; other < C::kConsumers; ++other) {
    const float4 more = shared.kept.merged[other][lane];
    sum.x += more.x;
    sum.y += more.y;
    sum.z += more.z;
    sum.w += more.w;
  }
  if (to.out && has_quad) {
    using T = typename C::Element;
    T* const out = static_cast<T*>(to.out) + at.batch * to.out_stride[0] + head * to.out_stride[1] + quad * 4;
    const float values[4] = {sum.x * inverse, sum.y * inverse, sum.z * inverse, sum.w * inverse};
#pragma unroll
    for (int i = 0; i < 4; ++i) out[i] = static_cast<T>(values[i]);
  }
  if (to.lse && lane == 0 && share.first_quad == 0) {
    to.lse[at.batch * to.lse_stride[0] + head * to.lse_stride[1]] = (most + log2f(total)) * kLn2;
  }
}

}  // namespace tilewise::attend::sm90
