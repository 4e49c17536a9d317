// SPDX-License-Identifier: Apache-2.0
// Backward attention over a plan on Hopper: one kernel for all products, persistent, warp-specialised. A thread block holds 128 keys while the query tiles
// that read them pass by.
// Source  FlashAttention-2, arXiv 2307.08691, Algorithm 2, with the loop over queries taken from the plan.
#pragma once

#include "tilewise/attend/sm90/backward_consume.cuh"
#include "tilewise/attend/sm90/backward_produce.cuh"

namespace tilewise::attend::sm90 {

template <class C>
__global__ void __launch_bounds__(C::kThreads, 1) attend_sm90_backward_kernel(const __grid_constant__ BackwardArgs args) {
  static_assert(sizeof(BackwardShared<C>) <= 227 * 1024);
  extern __shared__ __align__(1024) uint8_t dynamic_shared[];
  BackwardShared<C>& shared = *reinterpret_cast<BackwardShared<C>*>(dynamic_shared);
  if (threadIdx.x == 0) {
    constexpr int kWarps = 8;  // of keys
    shared.item_ring.init(kWarps + C::kWriters);
    shared.k_ring.init(kWarps);
    shared.v_ring.init(kWarps);
    shared.row_ring.init(kWarps);
    for (int stage = 0; stage < C::kStagesDs; ++stage) {
      mbarrier_init(&shared.ds_ring.full[stage], kWarps);
      mbarrier_init(&shared.ds_ring.empty[stage], kWarps);
    }
    for (int half = 0; half < 2; ++half) {
      for (int writer = 0; writer < C::kWriters; ++writer) mbarrier_init(&shared.dq_full[writer][half], 4);
      for (int stage = 0; stage < C::kStagesDq; ++stage) mbarrier_init(&shared.dq_empty[stage][half], 1);
    }
    fence_mbarrier_init();
  }
  __syncthreads();
  const int warpgroup = __shfl_sync(kAllThreads, threadIdx.x / 128, 0);
  if (warpgroup == 0) {
    setmaxnreg_dec<C::kProducerRegisters>();
    const int warp = __shfl_sync(kAllThreads, threadIdx.x / 32, 0);
    if (lane_of_warp() == 0) {
      if (warp == 0) {
        load_rows<C>(args, shared);
      } else if (warp <= C::kWriters) {
        write_dq<C>(args, shared, warp - 1);
      }
    }
  } else {
    setmaxnreg_inc<C::kKeyRegisters>();
    consume_keys<C>(args, shared, warpgroup - 1);
  }
}

}  // namespace tilewise::attend::sm90
