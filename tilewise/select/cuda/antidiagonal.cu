// SPDX-License-Identifier: Apache-2.0
#include "tilewise/machine/cuda/device_block.cuh"
#include "tilewise/select/cuda/launch.h"

namespace tilewise::select::cuda {
namespace {

using machine::cuda::DeviceBlock;

extern __shared__ __align__(128) unsigned char shared_memory[];

template <int kDtype>
__global__ void __launch_bounds__(kScoreThreads, 1) antidiagonal(const __grid_constant__ AntidiagonalArgs args) {
  DeviceBlock block(shared_memory);
  antidiagonal_kernel<kDtype>(block, args, gridDim.x);
}

}  // namespace

cudaError_t launch_antidiagonal(const AntidiagonalLaunch& launch, cudaStream_t stream) {
  if (launch.blocks == 0) return cudaSuccess;
  auto* const kernel = launch.dtype == 0 ? antidiagonal<0> : launch.dtype == 1 ? antidiagonal<1> : antidiagonal<2>;
  const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(kScoreSharedBytes));
  if (error != cudaSuccess) return error;
  kernel<<<static_cast<unsigned>(launch.blocks), kScoreThreads, kScoreSharedBytes, stream>>>(launch.args);
  return cudaGetLastError();
}

}  // namespace tilewise::select::cuda
