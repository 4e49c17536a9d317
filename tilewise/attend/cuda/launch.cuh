// SPDX-License-Identifier: Apache-2.0
// From what a problem is to the instance of a kernel that takes it.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "tilewise/machine/cuda/device_warps.cuh"

namespace tilewise::attend::cuda {

extern __shared__ __align__(16) unsigned char shared_memory[];

template <int kNumber>
struct HeadDim {};

template <class Take>
cudaError_t with_head_dim(int head_dim, const Take& take) {
  return head_dim == 64 ? take(HeadDim<64>{}) : head_dim == 128 ? take(HeadDim<128>{}) : take(HeadDim<256>{});
}

/// Starts `blocks` blocks of a kernel, `across` times (blockIdx.y); none is no error.
template <auto kKernel, class Args>
cudaError_t launch_kernel(const Args& args, int64_t blocks, int threads, size_t shared_bytes, cudaStream_t stream, unsigned across = 1) {
  if (blocks == 0) return cudaSuccess;
  // Of the device that is current: raised again by each call, since another may be next.
  if (shared_bytes > 48 * 1024) {
    const cudaError_t error = cudaFuncSetAttribute(kKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
    if (error != cudaSuccess) return error;
  }
  kKernel<<<dim3(static_cast<unsigned>(blocks), across), static_cast<unsigned>(threads), shared_bytes, stream>>>(args);
  return cudaGetLastError();
}

}  // namespace tilewise::attend::cuda
