// SPDX-License-Identifier: Apache-2.0
// Forward attention over a plan on Hopper. A thread block owns up to 128 queries of a row at a time: producer warps walk the row's runs and copy keys
// and values into rings of stages, two consumer warpgroups own 64 queries each and stream the stages through online softmax.
#pragma once

#include <algorithm>

#include "tilewise/attend/sm90/consume.cuh"
#include "tilewise/attend/sm90/produce.cuh"

namespace tilewise::attend::sm90 {

template <class C>
constexpr bool fits_shared_memory() {  // of 228 KB a multiprocessor, 1 is taken for each thread block
  return sizeof(Shared<C>) <= (228 / C::kThreadBlocks - 1) * 1024;
}

template <class C>
__global__ void __launch_bounds__(C::kThreads, C::kThreadBlocks) attend_sm90_forward_kernel(const __grid_constant__ typename C::Args args) {
  static_assert(fits_shared_memory<C>());
  extern __shared__ __align__(1024) uint8_t dynamic_shared[];
  Shared<C>& shared = *reinterpret_cast<Shared<C>*>(dynamic_shared);
  if (threadIdx.x == 0) {
    shared.q_ring.init(4 * C::kConsumers);
    shared.item_ring.init(2);  // the warps that copy keys and values
    shared.k_ring.init(4 * C::kConsumers);
    shared.v_ring.init(4 * C::kConsumers);
    fence_mbarrier_init();
  }
  __syncthreads();
  const int warpgroup = __shfl_sync(kAllLanes, threadIdx.x / 128, 0);
  if (warpgroup == 0) {
    setmaxnreg_dec<C::kProducerRegisters>();
    const int warp = __shfl_sync(kAllLanes, threadIdx.x / 32, 0);
    if (warp == 0) {
      claim_items<C>(args, shared);
    } else if (warp == 1) {
      produce<C, Side::keys>(args, shared, shared.k_ring, RingPlace<C::kStagesK>());
    } else if (warp == 2) {
      produce<C, Side::values>(args, shared, shared.v_ring, RingPlace<C::kStagesV>());
    }
  } else {
    setmaxnreg_inc<C::kConsumerRegisters>();
    consume<C>(args, shared, warpgroup - 1);
    if (threadIdx.x % 32 == 0) cp_async_bulk_wait_group_read<0>();  // shared memory outlives the last store
  }
}

/// Starts the kernel of one configuration; `args` are what make_args() made.
template <class C>
cudaError_t launch(const typename C::Args& args, cudaStream_t stream) {
  static const cudaError_t raised =
      cudaFuncSetAttribute(attend_sm90_forward_kernel<C>, cudaFuncAttributeMaxDynamicSharedMemorySize, sizeof(Shared<C>));
  if (raised != cudaSuccess) return raised;
  int device = 0, multiprocessors = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
  if (error != cudaSuccess) return error;
  const void* parameters[] = {&args};
  return cudaLaunchKernel(reinterpret_cast<const void*>(attend_sm90_forward_kernel<C>),
                          dim3(C::kIsSplit    ? multiprocessors
                               : args.counter ? std::min(args.items, multiprocessors * C::kThreadBlocks)
                                              : args.items),
                          dim3(C::kThreads), const_cast<void**>(parameters), sizeof(Shared<C>), stream);
}

}  // namespace tilewise::attend::sm90
