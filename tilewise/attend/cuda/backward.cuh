// SPDX-License-Identifier: Apache-2.0
// The backward kernels of one dtype.
#pragma once

#include "tilewise/attend/cuda/backward_passes.h"
#include "tilewise/attend/cuda/forward_kernel.h"
#include "tilewise/attend/cuda/launch.cuh"
#include "tilewise/attend/cuda/launch.h"

namespace tilewise::attend::cuda {

template <class C>
__global__ void __launch_bounds__(C::kThreads) attend_cuda_dq_kernel(const __grid_constant__ BackwardArgs args) {
  machine::cuda::DeviceWarps block(shared_memory);
  gradient_kernel<C, false>(block, args, Gradient::dq);
}
template <class C>
__global__ void __launch_bounds__(C::kThreads) attend_cuda_dk_kernel(const __grid_constant__ BackwardArgs args) {
  machine::cuda::DeviceWarps block(shared_memory);
  gradient_kernel<C, true>(block, args, blockIdx.y == 0 ? Gradient::dk : Gradient::dv);
}
template <class E>
__global__ void __launch_bounds__(kPoolThreads) attend_cuda_backward_pool_kernel(const __grid_constant__ PoolArgs args) {
  machine::cuda::DeviceWarps block(shared_memory);
  pool_kernel<E>(block, args);
}
template <class E>
__global__ void __launch_bounds__(kDeltaThreads) attend_cuda_delta_kernel(const __grid_constant__ BackwardArgs args) {
  machine::cuda::DeviceWarps block(shared_memory);
  delta_kernel<E>(block, args);
}
template <class E>
__global__ void __launch_bounds__(kSinkThreads) attend_cuda_sink_kernel(const __grid_constant__ BackwardArgs args) {
  machine::cuda::DeviceWarps block(shared_memory);
  sink_kernel(block, args);
}
template <class E>
__global__ void __launch_bounds__(kSlotThreads) attend_cuda_slot_kernel(const __grid_constant__ BackwardArgs args) {
  machine::cuda::DeviceWarps block(shared_memory);
  slot_kernel(block, args);
}
template <class E>
__global__ void __launch_bounds__(kGatherThreads) attend_cuda_gather_kernel(const __grid_constant__ BackwardArgs args) {
  machine::cuda::DeviceWarps block(shared_memory);
  gather_kernel<E>(block, args, blockIdx.y != 0);
}

template <class E>
cudaError_t launch_backward_of(const BackwardLaunch& work, int head_dim, cudaStream_t stream) {
  const BackwardArgs& args = work.args;
  cudaError_t error = launch_kernel<attend_cuda_backward_pool_kernel<E>>(work.pool, work.pool_blocks, kPoolThreads, 0, stream);
  const auto then = [&error](auto&& start) {
    if (error == cudaSuccess) error = start();
  };
  then([&] { return launch_kernel<attend_cuda_delta_kernel<E>>(args, work.delta_blocks, kDeltaThreads, 0, stream); });
  then([&] { return launch_kernel<attend_cuda_sink_kernel<E>>(args, work.sink_blocks, kSinkThreads, kSinkThreads * sizeof(float), stream); });
  then([&] { return launch_kernel<attend_cuda_slot_kernel<E>>(args, work.slot_blocks, kSlotThreads, 0, stream); });
  then([&] {
    return with_head_dim(head_dim, [&]<int kHeadDim>(HeadDim<kHeadDim>) {
      using C = BackwardTiling<E, kHeadDim>;
      const cudaError_t of_queries = launch_kernel<attend_cuda_dq_kernel<C>>(args, work.query_blocks, C::kThreads, sizeof(GradientShared<C>), stream);
      if (of_queries != cudaSuccess) return of_queries;
      return launch_kernel<attend_cuda_dk_kernel<C>>(args, work.key_blocks, C::kThreads, sizeof(GradientShared<C>), stream, 2);
    });
  });
  then([&] { return launch_kernel<attend_cuda_gather_kernel<E>>(args, work.gather_blocks, kGatherThreads, 0, stream, 2); });
  return error;
}

}  // namespace tilewise::attend::cuda
