// SPDX-License-Identifier: Apache-2.0
#include "tilewise/machine/cuda/device_block.cuh"
#include "tilewise/plan/cuda/launch.h"
#include "tilewise/select/cuda/launch.h"

namespace tilewise::select::cuda {
namespace {

using machine::cuda::DeviceBlock;

extern __shared__ __align__(16) unsigned char shared_memory[];

template <bool kHasLines>
__global__ void __launch_bounds__(512, 1) choose(const __grid_constant__ ChooseArgs args) {
  DeviceBlock block(shared_memory);
  choose_kernel<kHasLines>(block, args);
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

cudaError_t launch_choose(const PlanLaunch& launch, cudaStream_t stream) {
  if (launch.blocks == 0) return cudaSuccess;
  const unsigned long shared = choose_shared_bytes(launch.args.tiles);
  auto* const kernel = launch.args.lines[0] != nullptr || launch.args.columns != nullptr ? choose<true> : choose<false>;
  if (shared > 48 * 1024) {
    const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared));
    if (error != cudaSuccess) return error;
  }
  kernel<<<static_cast<unsigned>(launch.blocks), choose_threads(launch.args.tiles), shared, stream>>>(launch.args);
  return cudaGetLastError();
}

cudaError_t launch_write_runs(const PlanLaunch& launch, cudaStream_t stream) {
  const int tiles = launch.args.tiles;
  if (launch.blocks > 0) write_runs<<<static_cast<unsigned>(launch.blocks), choose_threads(tiles), write_shared_bytes(tiles), stream>>>(launch.args);
  return cudaGetLastError();
}

cudaError_t launch_plan(const PlanLaunch& launch, cudaStream_t stream) {
  if (const cudaError_t error = launch_choose(launch, stream); error != cudaSuccess) return error;
  if (const cudaError_t error = plan::cuda::launch_place_rows(launch.place, stream); error != cudaSuccess) return error;
  return launch_write_runs(launch, stream);
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
