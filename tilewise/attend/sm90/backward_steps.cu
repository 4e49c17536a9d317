// SPDX-License-Identifier: Apache-2.0
#include "tilewise/attend/sm90/backward_steps.h"

#include "tilewise/attend/sm90/backward_deal_kernel.h"
#include "tilewise/attend/sm90/backward_tiles_kernel.h"
#include "tilewise/attend/sm90/backward_walk_kernel.h"
#include "tilewise/machine/cuda/device_block.cuh"

namespace tilewise::attend::sm90 {
namespace {

using machine::cuda::DeviceBlock;

extern __shared__ __align__(16) unsigned char shared_memory[];

__global__ void __launch_bounds__(kTilesThreads) backward_tiles(const __grid_constant__ StepsArgs args) {
  DeviceBlock block(shared_memory);
  tiles_kernel(block, args);
}

__global__ void __launch_bounds__(kListThreads) backward_lists(const __grid_constant__ StepsArgs args) {
  DeviceBlock block(shared_memory);
  lists_kernel(block, args);
}

__global__ void __launch_bounds__(kSortItemsThreads) backward_sort_items(const __grid_constant__ StepsArgs args) {
  DeviceBlock block(shared_memory);
  sort_items_kernel(block, args);
}

__global__ void __launch_bounds__(kDealThreads) backward_deal(const __grid_constant__ StepsArgs args) {
  DeviceBlock block(shared_memory);
  deal_kernel(block, args);
}

__global__ void __launch_bounds__(kMostThreadBlocks) backward_walk(const __grid_constant__ StepsArgs args) {
  DeviceBlock block(shared_memory);
  walk_kernel(block, args);
}

}  // namespace

cudaError_t launch_dealt_items(const StepsArgs& args, cudaStream_t stream) {
  cudaError_t error = cudaMemsetAsync(args.status, 0, kStatusWords * sizeof(args.status[0]), stream);
  if (error == cudaSuccess && steps_zero_bytes(args) > 0) error = cudaMemsetAsync(args.known, 0, steps_zero_bytes(args), stream);
  if (error != cudaSuccess || args.num_items() == 0) return error;
  if (args.q_tiles > 0) backward_tiles<<<static_cast<unsigned>(tiles_blocks(args)), kTilesThreads, tiles_shared_bytes(), stream>>>(args);
  backward_lists<<<static_cast<unsigned>(args.readers() * args.key_tiles), kListThreads, list_shared_bytes(), stream>>>(args);
  backward_sort_items<<<static_cast<unsigned>(sort_items_blocks(args)), kSortItemsThreads, sort_items_shared_bytes(), stream>>>(args);
  backward_deal<<<1, kDealThreads, deal_shared_bytes(), stream>>>(args);
  return cudaGetLastError();
}

cudaError_t launch_walked_steps(const StepsArgs& args, cudaStream_t stream) {
  if (args.num_items() == 0 || args.q_tiles == 0) return cudaSuccess;
  const unsigned long shared = walk_shared_bytes(args);
  // The most that a launch may ask for, set once: calls from several threads do not undo one another.
  constexpr int kMostShared = 160 * 1024;
  static const cudaError_t raised = cudaFuncSetAttribute(backward_walk, cudaFuncAttributeMaxDynamicSharedMemorySize, kMostShared);
  if (raised != cudaSuccess) return raised;
  if (shared > kMostShared) return cudaErrorInvalidValue;
  backward_walk<<<static_cast<unsigned>(walk_blocks(args)), static_cast<unsigned>(walk_threads(args)), shared, stream>>>(args);
  return cudaGetLastError();
}

}  // namespace tilewise::attend::sm90
