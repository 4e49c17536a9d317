// SPDX-License-Identifier: Apache-2.0
#include "tilewise/attend/cuda/backward.cuh"

namespace tilewise::attend::cuda {

cudaError_t launch_backward_f32(const BackwardLaunch& launch, int head_dim, cudaStream_t stream) {
  return launch_backward_of<machine::cuda::F32>(launch, head_dim, stream);
}

}  // namespace tilewise::attend::cuda
