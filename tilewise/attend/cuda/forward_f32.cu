// SPDX-License-Identifier: Apache-2.0
#include "tilewise/attend/cuda/forward.cuh"

namespace tilewise::attend::cuda {

cudaError_t launch_forward_f32(const ForwardLaunch& launch, int head_dim, cudaStream_t stream) {
  return launch_forward_of<machine::cuda::F32>(launch, head_dim, stream);
}

}  // namespace tilewise::attend::cuda
