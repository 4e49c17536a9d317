// SPDX-License-Identifier: Apache-2.0
#include "tilewise/machine/cuda/device_block.cuh"
#include "tilewise/plan/cuda/launch.h"

namespace tilewise::plan::cuda {
namespace {

using machine::cuda::DeviceBlock;

extern __shared__ __align__(16) unsigned char shared_memory[];

__global__ void __launch_bounds__(kPlaceRowsThreads) place_rows(const __grid_constant__ PlaceRowsArgs args) {
  DeviceBlock block(shared_memory);
  place_rows_kernel(block, args);
}

__global__ void cut_rows(const __grid_constant__ AxisView axis, int tile, int32_t* edge) { cut_axis(axis, tile, edge); }

template <int kWords, bool kWrites>
__global__ void __launch_bounds__(kCompleteThreads, kWords == 4 ? 3 : 4) complete(const __grid_constant__ CompleteArgs args) {
  DeviceBlock block(shared_memory);
  complete_kernel<kWords>(block, args, kWrites);
}

template <int kWords>
cudaError_t launch_passes(const CompleteLaunch& launch, cudaStream_t stream) {
  const auto blocks = static_cast<unsigned>(launch.blocks);
  const unsigned long shared = complete_shared_bytes<kWords>();
  if (blocks > 0) complete<kWords, false><<<blocks, kCompleteThreads, shared, stream>>>(launch.args);
  if (const cudaError_t error = launch_place_rows(launch.place, stream); error != cudaSuccess) return error;
  if (blocks > 0) complete<kWords, true><<<blocks, kCompleteThreads, shared, stream>>>(launch.args);
  return cudaGetLastError();
}

__global__ void __launch_bounds__(kLengthThreads) row_lengths(const __grid_constant__ LongestFirstArgs args) {
  DeviceBlock block(shared_memory);
  row_lengths_kernel(block, args);
}

__global__ void __launch_bounds__(kSortThreads) longest_first(const __grid_constant__ LongestFirstArgs args) {
  DeviceBlock block(shared_memory);
  longest_first_kernel(block, args);
}

__global__ void __launch_bounds__(kSortThreads) order_few(const __grid_constant__ LongestFirstArgs args) {
  DeviceBlock block(shared_memory);
  order_few_kernel(block, args);
}

__global__ void __launch_bounds__(kValidateThreads) validate_rows(const __grid_constant__ ValidateArgs args) {
  DeviceBlock block(shared_memory);
  validate_kernel(block, args);
}

}  // namespace

cudaError_t launch_validate(const ValidateLaunch& launch, cudaStream_t stream) {
  if (launch.blocks > 0) validate_rows<<<static_cast<unsigned>(launch.blocks), kValidateThreads, 0, stream>>>(launch.args);
  return cudaGetLastError();
}

cudaError_t launch_place_rows(const PlaceRowsArgs& args, cudaStream_t stream) {
  place_rows<<<1, kPlaceRowsThreads, place_rows_shared_bytes(), stream>>>(args);
  return cudaGetLastError();
}

cudaError_t launch_complete(const CompleteLaunch& launch, cudaStream_t stream) {
  if (launch.edge != nullptr) cut_rows<<<1, 1, 0, stream>>>(launch.args.to, launch.args.to_rows.tile, launch.edge);
  const cudaError_t error = cudaMemsetAsync(launch.args.needs_rows, 0, sizeof(int32_t), stream);
  if (error != cudaSuccess) return error;
  return launch.args.words == 1   ? launch_passes<1>(launch, stream)
         : launch.args.words == 2 ? launch_passes<2>(launch, stream)
                                  : launch_passes<4>(launch, stream);
}

cudaError_t launch_longest_first(const LongestFirstArgs& args, cudaStream_t stream) {
  if (args.items == 0) return cudaMemsetAsync(args.counter, 0, 2 * sizeof(int32_t), stream);
  if (are_few(args)) {
    order_few<<<1, kSortThreads, sort_shared_bytes(), stream>>>(args);
    return cudaGetLastError();
  }
  row_lengths<<<static_cast<unsigned>(length_blocks(args.items)), kLengthThreads, kLengthSharedBytes, stream>>>(args);
  if (const cudaError_t error = cudaGetLastError(); error != cudaSuccess) return error;
  longest_first<<<static_cast<unsigned>((args.items + args.section - 1) / args.section), kSortThreads, sort_shared_bytes(), stream>>>(args);
  return cudaGetLastError();
}

}  // namespace tilewise::plan::cuda
