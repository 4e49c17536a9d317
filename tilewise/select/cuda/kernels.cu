// SPDX-License-Identifier: Apache-2.0
#include "tilewise/machine/cuda/device_block.cuh"
#include "tilewise/plan/cuda/launch.h"
#include "tilewise/select/cuda/launch.h"

namespace tilewise::select::cuda {
namespace {

using machine::cuda::DeviceBlock;

extern __shared__ __align__(16) unsigned char shared_memory[];

__global__ void __launch_bounds__(512) choose(const __grid_constant__ ChooseArgs args) {
  DeviceBlock block(shared_memory);
  choose_kernel(block, args);
}

__global__ void __launch_bounds__(512) write_runs(const __grid_constant__ ChooseArgs args) {
  DeviceBlock block(shared_memory);
  write_runs_kernel(block, args);
}

__global__ void __launch_bounds__(kMaskPlanThreads) mask_plan_rows(const __grid_constant__ MaskPlanArgs args) {
  DeviceBlock block(shared_memory);
  mask_plan_kernel(block, args);
}

__global__ void __launch_bounds__(kPoolThreads) pool(const __grid_constant__ MeanPoolArgs args) {
  DeviceBlock block(shared_memory);
  pool_kernel(block, args);
}

__global__ void __launch_bounds__(kProductThreads) products(const __grid_constant__ MeanPoolArgs args) {
  DeviceBlock block(shared_memory);
  products_kernel(block, args);
}

__global__ void __launch_bounds__(kSoftmaxThreads) softmax(const __grid_constant__ MeanPoolArgs args) {
  DeviceBlock block(shared_memory);
  softmax_kernel(block, args);
}

}  // namespace

cudaError_t launch_plan(const PlanLaunch& launch, cudaStream_t stream) {
  const auto blocks = static_cast<unsigned>(launch.blocks);
  const int threads = choose_threads(launch.args.tiles);
  if (blocks > 0) {
    const unsigned long shared = choose_shared_bytes(launch.args.tiles);
    if (shared > 48 * 1024) {
      const cudaError_t error = cudaFuncSetAttribute(choose, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared));
      if (error != cudaSuccess) return error;
    }
    choose<<<blocks, threads, shared, stream>>>(launch.args);
  }
  if (const cudaError_t error = cudaGetLastError(); error != cudaSuccess) return error;
  if (const cudaError_t error = plan::cuda::launch_place_rows(launch.place, stream); error != cudaSuccess) return error;
  if (blocks > 0) write_runs<<<blocks, threads, write_shared_bytes(launch.args.tiles), stream>>>(launch.args);
  return cudaGetLastError();
}

cudaError_t launch_mask_plan(const MaskPlanArgs& args, cudaStream_t stream) {
  if (args.items > 0) mask_plan_rows<<<static_cast<unsigned>(mask_plan_blocks(args.items)), kMaskPlanThreads, 0, stream>>>(args);
  return cudaGetLastError();
}

cudaError_t launch_mean_pool(const MeanPoolLaunch& launch, cudaStream_t stream) {
  if (launch.pool_blocks > 0) pool<<<static_cast<unsigned>(launch.pool_blocks), kPoolThreads, kPoolSharedBytes, stream>>>(launch.args);
  if (launch.product_blocks > 0)
    products<<<static_cast<unsigned>(launch.product_blocks), kProductThreads, kProductSharedBytes, stream>>>(launch.args);
  if (launch.rows > 0) softmax<<<static_cast<unsigned>(launch.rows), kSoftmaxThreads, kSoftmaxSharedBytes, stream>>>(launch.args);
  return cudaGetLastError();
}

}  // namespace tilewise::select::cuda
