// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cuda_runtime_api.h>

#include "tilewise/base/context.h"
#include "tilewise/plan/cuda/complete_args.h"
#include "tilewise/plan/cuda/longest_first_kernel.h"
#include "tilewise/plan/cuda/validate_args.h"

// The kernels of this folder, as its host code launches them.
namespace tilewise::plan::cuda {

cudaError_t launch_complete(const CompleteLaunch& launch, cudaStream_t stream);
cudaError_t launch_place_rows(const PlaceRowsArgs& args, cudaStream_t stream);
cudaError_t launch_validate(const ValidateLaunch& launch, cudaStream_t stream);
cudaError_t launch_longest_first(const LongestFirstArgs& args, cudaStream_t stream);

/// Errors: device (an array of the plan, or the context, is not on the context's GPU), shape (one is not contiguous).
void require_on_device(const char* function, const PlanData& plan, const Context& context);

}  // namespace tilewise::plan::cuda
