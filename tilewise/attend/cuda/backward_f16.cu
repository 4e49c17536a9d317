// SPDX-License-Identifier: Apache-2.0
#include "tilewise/attend/cuda/backward.cuh"

namespace tilewise::attend::cuda {

cudaError_t launch_backward_f16(const BackwardLaunch& launch, int head_dim, cudaStream_t stream) {
  return launch_backward_of<machine::cuda::F16>(launch, head_dim, stream);
}

}  // namespace tilewise::attend::cuda
