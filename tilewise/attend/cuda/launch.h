// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cuda_runtime_api.h>

#include "tilewise/attend/cuda/backward_args.h"
#include "tilewise/attend/cuda/measure_args.h"

// The kernels of this folder, as its host code launches them.
namespace tilewise::attend::cuda {

cudaError_t launch_forward_bf16(const ForwardLaunch& launch, int head_dim, cudaStream_t stream);
cudaError_t launch_forward_f16(const ForwardLaunch& launch, int head_dim, cudaStream_t stream);
cudaError_t launch_forward_f32(const ForwardLaunch& launch, int head_dim, cudaStream_t stream);
cudaError_t launch_backward_bf16(const BackwardLaunch& launch, int head_dim, cudaStream_t stream);
cudaError_t launch_backward_f16(const BackwardLaunch& launch, int head_dim, cudaStream_t stream);
cudaError_t launch_backward_f32(const BackwardLaunch& launch, int head_dim, cudaStream_t stream);
/// The means of the pools alone, which launch_forward_*() makes by itself.
cudaError_t launch_pools_bf16(const PoolArgs& args, int64_t blocks, cudaStream_t stream);
cudaError_t launch_pools_f16(const PoolArgs& args, int64_t blocks, cudaStream_t stream);

cudaError_t launch_measure_bf16(const MeasureWork& work, int head_dim, cudaStream_t stream);
cudaError_t launch_measure_f16(const MeasureWork& work, int head_dim, cudaStream_t stream);
cudaError_t launch_measure_f32(const MeasureWork& work, int head_dim, cudaStream_t stream);

}  // namespace tilewise::attend::cuda
