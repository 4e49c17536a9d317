// SPDX-License-Identifier: Apache-2.0
#include "tilewise/attend/cuda/forward.cuh"

namespace tilewise::attend::cuda {

cudaError_t launch_forward_bf16(const ForwardLaunch& launch, int head_dim, cudaStream_t stream) {
  return launch_forward_of<machine::cuda::Bf16>(launch, head_dim, stream);
}

cudaError_t launch_pools_bf16(const PoolArgs& args, int64_t blocks, cudaStream_t stream) {
  return launch_pools_of<machine::cuda::Bf16>(args, blocks, stream);
}

}  // namespace tilewise::attend::cuda
