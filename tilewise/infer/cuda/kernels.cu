// SPDX-License-Identifier: Apache-2.0
#include "tilewise/infer/cuda/launch.h"
#include "tilewise/machine/cuda/device_block.cuh"

namespace tilewise::infer::cuda {
namespace {

using machine::cuda::DeviceBlock;

extern __shared__ __align__(16) unsigned char shared_memory[];

__device__ void run(DeviceBlock& block, const EmbedArgs& args) { embed_kernel(block, args); }
__device__ void run(DeviceBlock& block, const NormArgs& args) { norm_kernel(block, args); }
__device__ void run(DeviceBlock& block, const TurnArgs& args) { turn_kernel(block, args); }
__device__ void run(DeviceBlock& block, const SiluArgs& args) { silu_kernel(block, args); }
__device__ void run(DeviceBlock& block, const BiasArgs& args) { bias_kernel(block, args); }
__device__ void run(DeviceBlock& block, const BitsArgs& args) { bits_kernel(block, args); }
__device__ void run(DeviceBlock& block, const DrawArgs& args) { draw_kernel(block, args); }

template <class Args>
__global__ void __launch_bounds__(Args::kBlockThreads) model_step(const __grid_constant__ Args args) {
  DeviceBlock block(shared_memory);
  run(block, args);
}

template <class Args>
cudaError_t launch_step(const Args& args, cudaStream_t stream) {
  if (args.blocks() > 0) model_step<<<static_cast<unsigned>(args.blocks()), Args::kBlockThreads, kSumBytes, stream>>>(args);
  return cudaGetLastError();
}

}  // namespace

cudaError_t launch(const EmbedArgs& args, cudaStream_t stream) { return launch_step(args, stream); }
cudaError_t launch(const NormArgs& args, cudaStream_t stream) { return launch_step(args, stream); }
cudaError_t launch(const TurnArgs& args, cudaStream_t stream) { return launch_step(args, stream); }
cudaError_t launch(const SiluArgs& args, cudaStream_t stream) { return launch_step(args, stream); }
cudaError_t launch(const BiasArgs& args, cudaStream_t stream) { return launch_step(args, stream); }
cudaError_t launch(const BitsArgs& args, cudaStream_t stream) { return launch_step(args, stream); }
cudaError_t launch(const DrawArgs& args, cudaStream_t stream) { return launch_step(args, stream); }

}  // namespace tilewise::infer::cuda
