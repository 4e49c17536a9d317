// SPDX-License-Identifier: Apache-2.0
#include "tilewise/attend/sm90/schedule.h"
#include "tilewise/attend/sm90/split_rows_kernel.h"
#include "tilewise/machine/cuda/device_block.cuh"

namespace tilewise::attend::sm90 {
namespace {

extern __shared__ __align__(16) unsigned char shared_memory[];

__global__ void __launch_bounds__(kSplitThreads) split_rows(const __grid_constant__ SplitArgs args) {
  machine::cuda::DeviceBlock block(shared_memory);
  split_rows_kernel(block, args);
}

}  // namespace

cudaError_t launch_split_rows(const SplitArgs& args, cudaStream_t stream) {
  split_rows<<<1, kSplitThreads, split_shared_bytes(), stream>>>(args);
  return cudaGetLastError();
}

}  // namespace tilewise::attend::sm90
