// SPDX-License-Identifier: Apache-2.0
// The matrix warpgroups of a backward kernel. Two own 64 keys each: S^T = K Q^T and dP^T = V dO^T, whose rows are keys, become P^T and dS^T in the
// registers that dV += P^T dO and dK += dS^T Q read. The third computes dQ = dS K from dS in shared memory, a step or two behind.
#pragma once

#include "tilewise/attend/sm90/backward_config.cuh"
#include "tilewise/attend/sm90/softmax.cuh"

namespace tilewise::attend::sm90 {

/// scores[64 keys, kTileQ] = keys rows^T, all channels; `keys` is the warpgroup's first.
template <class C>
__device__ void wgmma_keys_rows(float (&scores)[C::kTileQ / 2], const uint8_t* keys, const uint8_t* rows) {
  const uint64_t a = wgmma_descriptor_k_major(smem_address(keys)), b = wgmma_descriptor_k_major(smem_address(rows));
  wgmma_fence();
#pragma unroll
  for (int step = 0; step < C::kHeadDim / 16; ++step) {
    Wgmma<C::kTileQ, typename C::Element>::ss(scores, a + (step / 4 * C::kKeyBlockBytes + step % 4 * 32) / 16,
                                              b + (step / 4 * C::kRowBlockBytes + step % 4 * 32) / 16, step > 0);
  }
  wgmma_commit_group();
}

/// acc[64 keys, HeadDim] += weights rows
template <class C>
__device__ void wgmma_weights_rows(float (&acc)[C::kHeadDim / 2], const uint32_t (&weights)[C::kTileQ / 16][4], const uint8_t* rows) {
  const uint64_t b = wgmma_descriptor_mn_major(smem_address(rows), C::kRowBlockBytes);
  wgmma_fence();
#pragma unroll
  for (int step = 0; step < C::kTileQ / 16; ++step) {
    Wgmma<C::kHeadDim, typename C::Element>::template rs<true>(acc, weights[step], b + step * 16 * 128 / 16, true);
  }
  wgmma_commit_group();
}

template <class T>
__device__ float2 unpack(uint32_t packed);
template <>
__device__ inline float2 unpack<bf16>(uint32_t packed) {
  return {__uint_as_float(packed << 16), __uint_as_float(packed & 0xFFFF0000u)};
}
template <>
__device__ inline float2 unpack<f16>(uint32_t packed) {
  return __half22float2(*reinterpret_cast<const __half2*>(&packed));
}

/// -inf where a pair does not count. `first_key` of the warp.
template <class C>
__device__ void apply_pattern(float (&scores)[C::kTileQ / 2], const uint64_t* patterns, int pattern, int first_key) {
  const uint32_t thread = thread_index_again();
  const uint64_t* const from = patterns + (int64_t{pattern} * C::kTileK + first_key + thread % 32 / 4) * C::kQBlocks;
#pragma unroll
  for (int block = 0; block < C::kQBlocks; ++block) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const uint64_t seen = __ldg(from + r * 8 * C::kQBlocks + block) >> (thread % 4 * 2);
#pragma unroll
      for (int i = 0; i < 16; ++i) {
        if (!(seen >> (i / 2 * 8 + i % 2) & 1)) scores[(block * 8 + i / 2) * 4 + r * 2 + i % 2] = -INFINITY;
      }
    }
  }
}

/// P from scores, packed as the A operand; with softcap also P times the slope of the cap.
template <class C>
__device__ void probabilities(const BackwardArgs& args, const float (&scores)[C::kTileQ / 2], const float* row_facts,
                              uint32_t (&p)[C::kTileQ / 16][4], uint32_t (&sloped)[C::kHasSoftcap ? C::kTileQ / 16 : 1][4]) {
  const float4* const facts = reinterpret_cast<const float4*>(row_facts) + thread_index_again() % 4;
#pragma unroll
  for (int j = 0; j < C::kTileQ / 8; ++j) {
    const float4 of = facts[j * 4];
    float x[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) x[i] = ex2_approx(fmaf(scores[j * 4 + i], args.scale_log2, i % 2 ? of.y : of.x));
    p[j / 2][j % 2 * 2] = cvt_pack<typename C::Element>(x[0], x[1]);
    p[j / 2][j % 2 * 2 + 1] = cvt_pack<typename C::Element>(x[2], x[3]);
    if constexpr (C::kHasSoftcap) {
#pragma unroll
      for (int i = 0; i < 4; ++i) x[i] = x[i] == 0 ? 0 : x[i] * (1 - scores[j * 4 + i] * scores[j * 4 + i]);  // a masked score is -inf
      sloped[j / 2][j % 2 * 2] = cvt_pack<typename C::Element>(x[0], x[1]);
      sloped[j / 2][j % 2 * 2 + 1] = cvt_pack<typename C::Element>(x[2], x[3]);
    }
  }
}

/// P, or P times the slope of the cap, becomes dS = P (dP - delta), in its own registers. P is taken as it was rounded.
template <class C>
__device__ void differentiate(const float (&dp)[C::kTileQ / 2], const float* row_facts, uint32_t (&p)[C::kTileQ / 16][4]) {
  const float4* const facts = reinterpret_cast<const float4*>(row_facts) + thread_index_again() % 4;
#pragma unroll
  for (int j = 0; j < C::kTileQ / 8; ++j) {
    const float4 of = facts[j * 4];
    uint32_t* const pair = &p[j / 2][j % 2 * 2];
    const float2 low = unpack<typename C::Element>(pair[0]), high = unpack<typename C::Element>(pair[1]);
    const float* const x = &dp[j * 4];
    pair[0] = cvt_pack<typename C::Element>(low.x * (x[0] - of.z), low.y * (x[1] - of.w));
    pair[1] = cvt_pack<typename C::Element>(high.x * (x[2] - of.z), high.y * (x[3] - of.w));
  }
}

/// dS^T of the warp's 16 keys into shared memory.
template <class C>
__device__ void stage_ds(uint8_t (&to)[C::kQBlocks][C::kKeyBlockBytes], const uint32_t (&ds)[C::kTileQ / 16][4], int first_key) {
  const int lane = lane_of_warp(), r = lane % 16;
  const uint32_t row = smem_address(to[0]) + (first_key + r) * 128;
#pragma unroll
  for (int step = 0; step < C::kTileQ / 16; ++step) {
    const int chunk = step % 4 * 2 + lane / 16;
    stmatrix_x4(row + step / 4 * C::kKeyBlockBytes + (chunk ^ r % 8) * 16, ds[step]);
  }
}

/// Keys that nobody reads may be NaN, and 0 * NaN is NaN: they become zeros. By both key warpgroups.
template <class C>
__device__ void clear_dead_keys(BackwardShared<C>& shared, const ItemInfo& item, int group) {
  const int thread = group * 128 + static_cast<int>(thread_index_again() % 128), key = thread / 2, part = thread % 2 * 64;
  if (!(item.live[key / 64] >> (key % 64) & 1)) {
#pragma unroll
    for (int block = 0; block < C::kBlocks; ++block) {
      for (int i = 0; i < 64; i += 16) {
        *reinterpret_cast<uint4*>(&shared.k[block][key * 128 + part + i]) = uint4{0, 0, 0, 0};
        *reinterpret_cast<uint4*>(&shared.v[block][key * 128 + part + i]) = uint4{0, 0, 0, 0};
      }
    }
  }
  fence_proxy_async();
}

/// A gradient of the warp's 16 keys, through the rows of V that they have in shared memory.
template <class C>
__device__ void store_gradient(const CUtensorMap* map, bool is_flat, uint8_t (&stage)[C::kBlocks][C::kKeyBlockBytes],
                               const float (&acc)[C::kHeadDim / 2], float scale, const ItemInfo& item, int first_key) {
  using T = typename C::Element;
  const int lane = lane_of_warp(), r = lane % 16;
  if (lane == 0) cp_async_bulk_wait_group_read<0>();
  __syncwarp();
#pragma unroll
  for (int step = 0; step < C::kHeadDim / 16; ++step) {
    const int chunk = step % 4 * 2 + lane / 16;
    const float* const a = &acc[step * 8];
    const uint32_t packed[4] = {cvt_pack<T>(a[0] * scale, a[1] * scale), cvt_pack<T>(a[2] * scale, a[3] * scale),
                                cvt_pack<T>(a[4] * scale, a[5] * scale), cvt_pack<T>(a[6] * scale, a[7] * scale)};
    stmatrix_x4(smem_address(stage[step / 4]) + (first_key + r) * 128 + (chunk ^ r % 8) * 16, packed);
  }
  fence_proxy_async();
  __syncwarp();
  if (lane == 0) {
    for (int block = 0; block < C::kBlocks; ++block) {
      cp_async_bulk_tensor_store(map, box_of(is_flat, block, item.key_first + first_key, item.head_kv, item.batch), &stage[block][first_key * 128]);
    }
    cp_async_bulk_commit_group();
  }
}

/// dq[64, 64] = dS K: half `half` of the channels, or of the queries where a tile has 128.
template <class C>
__device__ void wgmma_dq(float (&dq)[32], const uint8_t (&ds)[C::kQBlocks][C::kKeyBlockBytes], const uint8_t (&k)[C::kBlocks][C::kKeyBlockBytes],
                         int half) {
  const uint64_t a = wgmma_descriptor_mn_major(smem_address(ds[C::kQBlocks == 2 ? half : 0]), C::kKeyBlockBytes);
  const uint64_t b = wgmma_descriptor_mn_major(smem_address(k[C::kBlocks == 2 ? half : 0]), C::kKeyBlockBytes);
  wgmma_fence();
#pragma unroll
  for (int step = 0; step < C::kTileK / 16; ++step) {
    Wgmma<64, typename C::Element>::ss_transposed(dq, a + step * 16 * 128 / 16, b + step * 16 * 128 / 16, step > 0);
  }
  wgmma_commit_group();
}

/// Registers of dq to the warp that adds them up, as they lie. `step` counts all that the thread block has done.
template <class C>
__device__ void stage_dq(BackwardShared<C>& shared, const float (&dq)[32], int half, uint32_t step) {
  mbarrier_wait(&shared.dq_empty[step % C::kStagesDq][half], step / C::kStagesDq % 2 ^ 1);
  const uint32_t thread = thread_index_again(), address = smem_address(shared.dq[step % C::kStagesDq][half]) + thread % 128 * 16;
#pragma unroll
  for (int i = 0; i < 8; ++i) st_shared_v4(address + i * 2048, dq[i * 4], dq[i * 4 + 1], dq[i * 4 + 2], dq[i * 4 + 3]);
  fence_proxy_async();
  __syncwarp();
  if (thread % 32 == 0) mbarrier_arrive(&shared.dq_full[step % C::kWriters][half]);
}

/// A warpgroup of 64 keys. Its own products hide little of its exponentials, the other warpgroup's do. What is in flight at once is chosen by registers:
/// dk, dv, the scores or dP, dq, and P or dS packed are 208 of 240.
template <class C>
__device__ void consume_keys(const BackwardArgs& args, BackwardShared<C>& shared, int group) {
  float dk[C::kHeadDim / 2], dv[C::kHeadDim / 2];
  const auto is_first = [] { return thread_index_again() % 32 == 0; };
  const auto first_key = [group] { return group * 64 + static_cast<int>(thread_index_again() / 32 % 4) * 16; };  // of the warp
  ItemPlace items;
  RingPlace<C::kStages> place;
  uint32_t steps = 0;  // so far: the places in the rings of dS and dq
  // From scores to dS, in `weights` and in shared memory. `meanwhile` runs while dP and dV are in flight.
  const auto weigh = [&](float(&scores)[C::kTileQ / 2], uint32_t(&weights)[C::kTileQ / 16][4], const auto& meanwhile) {
    const int pattern = shared.pattern[place.stage];
    if constexpr (C::kHasSoftcap) cap(scores, 1, args.inner_scale);
    if (pattern >= 0) apply_pattern<C>(scores, args.patterns, pattern, first_key());
    uint32_t sloped[C::kHasSoftcap ? C::kTileQ / 16 : 1][4];
    probabilities<C>(args, scores, shared.row_facts[place.stage], weights, sloped);
    wgmma_keys_rows<C>(scores, shared.v[0] + group * 64 * 128, shared.dout[place.stage][0]);  // dP
    wgmma_weights_rows<C>(dv, weights, shared.dout[place.stage][0]);
    meanwhile();
    wgmma_wait_group<0>(scores);
    if constexpr (C::kHasSoftcap) {
#pragma unroll
      for (int i = 0; i < C::kTileQ / 16; ++i) {
        for (int j = 0; j < 4; ++j) weights[i][j] = sloped[i][j];
      }
    }
    differentiate<C>(scores, shared.row_facts[place.stage], weights);
    mbarrier_wait(&shared.ds_ring.empty[steps % C::kStagesDs], steps / C::kStagesDs % 2 ^ 1);
    stage_ds<C>(shared.ds[steps % C::kStagesDs], weights, first_key());
    fence_proxy_async();
    __syncwarp();
    if (is_first()) mbarrier_arrive(&shared.ds_ring.full[steps % C::kStagesDs]);
    wgmma_weights_rows<C>(dk, weights, shared.q[place.stage][0]);
  };
  while (true) {
    int left = __shfl_sync(kAllThreads, items.wait(shared).steps, 0);  // uniform to the compiler: descriptors then lie in uniform registers
    if (left < 0) break;
#pragma unroll
    for (int i = 0; i < C::kHeadDim / 2; ++i) dk[i] = dv[i] = args.zero;
    items.wait_keys(shared.k_ring);
    items.wait_keys(shared.v_ring);
    if (left > 0) {
      if (shared.item[items.count % 2].has_dead()) {
        clear_dead_keys<C>(shared, shared.item[items.count % 2], group);
        bar_sync(readers_barrier, 2 * 128);
      }
      float scores[C::kTileQ / 2], dq[32];
      uint32_t weights[C::kTileQ / 16][4];
      place.wait_full(shared.row_ring);
      wgmma_keys_rows<C>(scores, shared.k[0] + group * 64 * 128, shared.q[place.stage][0]);
      wgmma_wait_group<0>(scores);
      weigh(scores, weights, [] {});
      wgmma_wait_group<0>(dk);  // in flight here, its operands would hold other registers than those of the loop
      while (--left > 0) {
        const int stage = place.stage;
        place.advance();
        place.wait_full(shared.row_ring);
        wgmma_keys_rows<C>(scores, shared.k[0] + group * 64 * 128, shared.q[place.stage][0]);
        mbarrier_wait(&shared.ds_ring.full[steps % C::kStagesDs], steps / C::kStagesDs % 2);
        wgmma_dq<C>(dq, shared.ds[steps % C::kStagesDs], shared.k, group);  // of the step before
        wgmma_wait_group<1>(scores);
        if (is_first()) mbarrier_arrive(&shared.row_ring.empty[stage]);
        ++steps;
        weigh(scores, weights, [&] {
          wgmma_wait_group<2>(dq);
          if (is_first()) mbarrier_arrive(&shared.ds_ring.empty[(steps - 1) % C::kStagesDs]);
          stage_dq<C>(shared, dq, group, steps - 1);
        });
      }
      mbarrier_wait(&shared.ds_ring.full[steps % C::kStagesDs], steps / C::kStagesDs % 2);
      wgmma_dq<C>(dq, shared.ds[steps % C::kStagesDs], shared.k, group);
      wgmma_wait_group<0>(dq);
#pragma unroll
      for (int i = 0; i < C::kHeadDim / 2; ++i) asm volatile("" : "+f"(dv[i]), "+f"(dk[i])::"memory");
      if (is_first()) {
        mbarrier_arrive(&shared.row_ring.empty[place.stage]);
        mbarrier_arrive(&shared.ds_ring.empty[steps % C::kStagesDs]);
      }
      stage_dq<C>(shared, dq, group, steps);
      place.advance();
      ++steps;
    }
    if (is_first()) mbarrier_arrive(&shared.k_ring.empty[0]);
    if (group == 0) {  // the warpgroup's last read of V
      bar_sync(first_keys_barrier, 128);
    } else {
      bar_sync(second_keys_barrier, 128);
    }
    const ItemInfo item = shared.item[items.count % 2];
    store_gradient<C>(&args.dv, args.is_flat_v, shared.v, dv, 1, item, first_key());
    store_gradient<C>(&args.dk, args.is_flat_q, shared.v, dk, args.scale, item, first_key());
    if (is_first()) {
      cp_async_bulk_wait_group_read<0>();
      mbarrier_arrive(&shared.v_ring.empty[0]);
    }
    items.advance(shared);
  }
}

}  // namespace tilewise::attend::sm90
