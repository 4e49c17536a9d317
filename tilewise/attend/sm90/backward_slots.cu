// SPDX-License-Identifier: Apache-2.0
#include "tilewise/attend/sm90/backward_slots.h"

#include "tilewise/machine/cuda/device_block.cuh"

namespace tilewise::attend::sm90 {
namespace {

__global__ void __launch_bounds__(kMoveThreads) backward_move_rows(const __grid_constant__ MoveRowsArgs args) {
  machine::cuda::DeviceBlock block(nullptr);
  move_rows_kernel(block, args);
}

}  // namespace

cudaError_t launch_moved_rows(const MoveRowsArgs& args, cudaStream_t stream) {
  if (move_blocks(args) == 0) return cudaSuccess;
  backward_move_rows<<<static_cast<unsigned>(move_blocks(args)), kMoveThreads, 0, stream>>>(args);
  return cudaGetLastError();
}

}  // namespace tilewise::attend::sm90
