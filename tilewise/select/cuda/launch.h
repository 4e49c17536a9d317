// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cuda_runtime_api.h>

#include "tilewise/select/cuda/antidiagonal_args.h"
#include "tilewise/select/cuda/flex_args.h"
#include "tilewise/select/cuda/mask_plan_kernel.h"
#include "tilewise/select/cuda/mean_pool_kernel.h"
#include "tilewise/select/cuda/patterns_args.h"
#include "tilewise/select/cuda/plan_args.h"

// The kernels of this folder, as its host code launches them.
namespace tilewise::select::cuda {

cudaError_t launch_choose(const PlanLaunch& launch, cudaStream_t stream);
cudaError_t launch_write_runs(const PlanLaunch& launch, cudaStream_t stream);
cudaError_t launch_plan(const PlanLaunch& launch, cudaStream_t stream);
cudaError_t launch_antidiagonal(const AntidiagonalLaunch& launch, cudaStream_t stream);
cudaError_t launch_mask_plan(const MaskPlanArgs& args, cudaStream_t stream);
cudaError_t launch_mean_pool(const MeanPoolLaunch& launch, cudaStream_t stream);
cudaError_t launch_flex(const FlexLaunch& launch, cudaStream_t stream);
cudaError_t launch_patterns(const PatternLaunch& launch, cudaStream_t stream);

}  // namespace tilewise::select::cuda
