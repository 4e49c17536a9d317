// SPDX-License-Identifier: Apache-2.0
// The forward kernels of one dtype.
#pragma once

#include "tilewise/attend/cuda/forward_kernel.h"
#include "tilewise/attend/cuda/launch.cuh"
#include "tilewise/attend/cuda/launch.h"

namespace tilewise::attend::cuda {

template <class C>
__global__ void __launch_bounds__(C::kThreads) attend_cuda_forward_kernel(const __grid_constant__ ForwardArgs args) {
  machine::cuda::DeviceWarps block(shared_memory);
  forward_kernel<C>(block, args);
}

template <class E>
__global__ void __launch_bounds__(kPoolThreads) attend_cuda_pool_kernel(const __grid_constant__ PoolArgs args) {
  machine::cuda::DeviceWarps block(shared_memory);
  pool_kernel<E>(block, args);
}

template <class E>
cudaError_t launch_pools_of(const PoolArgs& args, int64_t blocks, cudaStream_t stream) {
  return launch_kernel<attend_cuda_pool_kernel<E>>(args, blocks, kPoolThreads, 0, stream);
}

template <class E>
cudaError_t launch_forward_of(const ForwardLaunch& launch, int head_dim, cudaStream_t stream) {
  if (const cudaError_t error = launch_pools_of<E>(launch.pool, launch.pool_blocks, stream); error != cudaSuccess) return error;
  return with_head_dim(head_dim, [&]<int kHeadDim>(HeadDim<kHeadDim>) {
    using C = ForwardTiling<E, kHeadDim>;
    return launch_kernel<attend_cuda_forward_kernel<C>>(launch.args, launch.blocks, C::kThreads, sizeof(ForwardShared<C>), stream);
  });
}

}  // namespace tilewise::attend::cuda
