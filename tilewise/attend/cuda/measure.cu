// SPDX-License-Identifier: Apache-2.0
#include "tilewise/attend/cuda/measure_kernel.h"

#include "tilewise/attend/cuda/forward_kernel.h"
#include "tilewise/attend/cuda/launch.cuh"
#include "tilewise/attend/cuda/launch.h"
#include "tilewise/attend/cuda/measure_problem.h"

namespace tilewise::attend::cuda {
namespace {

template <class C>
__global__ void __launch_bounds__(C::kThreads) attend_cuda_measure_kernel(const __grid_constant__ MeasureArgs args) {
  machine::cuda::DeviceWarps block(shared_memory);
  measure_kernel<C>(block, args);
}
template <class E>
__global__ void __launch_bounds__(kPoolThreads) attend_cuda_measure_pool_kernel(const __grid_constant__ PoolArgs args) {
  machine::cuda::DeviceWarps block(shared_memory);
  pool_kernel<E>(block, args);
}
__global__ void __launch_bounds__(kCellThreads) attend_cuda_measure_reduce_kernel(const __grid_constant__ ReduceArgs args) {
  machine::cuda::DeviceWarps block(shared_memory);
  reduce_kernel(block, args);
}
__global__ void __launch_bounds__(kCellThreads) attend_cuda_measure_clear_kernel(const __grid_constant__ ClearArgs args) {
  machine::cuda::DeviceWarps block(shared_memory);
  clear_kernel(block, args);
}

template <class E>
cudaError_t launch_measure_of(const MeasureWork& work, int head_dim, cudaStream_t stream) {
  cudaError_t error = cudaSuccess;
  const auto then = [&error](auto&& start) {
    if (error == cudaSuccess) error = start();
  };
  for_each_launch(
      work,
      [&](const ClearArgs& args, int64_t blocks) {
        then([&] { return launch_kernel<attend_cuda_measure_clear_kernel>(args, blocks, kCellThreads, 0, stream); });
      },
      [&](const PoolArgs& args, int64_t blocks) {
        then([&] { return launch_kernel<attend_cuda_measure_pool_kernel<E>>(args, blocks, kPoolThreads, 0, stream); });
      },
      [&](const MeasureArgs& args, int64_t blocks) {
        then([&] {
          return with_head_dim(head_dim <= 64    ? 64
                               : head_dim <= 128 ? 128
                                                 : 256,
                               [&]<int kHeadDim>(HeadDim<kHeadDim>) {
                                 using C = ForwardTiling<E, kHeadDim>;
                                 return launch_kernel<attend_cuda_measure_kernel<C>>(args, blocks, C::kThreads, sizeof(MeasureShared<C>), stream);
                               });
        });
      },
      [&](const ReduceArgs& args, int64_t blocks) {
        then([&] { return launch_kernel<attend_cuda_measure_reduce_kernel>(args, blocks, kCellThreads, 0, stream); });
      });
  return error;
}

}  // namespace

cudaError_t launch_measure_bf16(const MeasureWork& work, int head_dim, cudaStream_t stream) {
  return launch_measure_of<machine::cuda::Bf16>(work, head_dim, stream);
}
cudaError_t launch_measure_f16(const MeasureWork& work, int head_dim, cudaStream_t stream) {
  return launch_measure_of<machine::cuda::F16>(work, head_dim, stream);
}
cudaError_t launch_measure_f32(const MeasureWork& work, int head_dim, cudaStream_t stream) {
  return launch_measure_of<machine::cuda::F32>(work, head_dim, stream);
}

}  // namespace tilewise::attend::cuda
