// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "tilewise/attend/cuda/backward_args.h"
#include "tilewise/attend/cuda/problem.h"

// problem.h for gradients.
namespace tilewise::attend::cuda {

std::optional<std::string> refusal_of_backward(const AttendBackwardParams& params);

/// Bytes of device memory beside the tensors, exactly, and what is launched. `plan`: that of `params` with both directions.
size_t backward_workspace(const AttendBackwardParams& params, const PlanData& plan, const Sizes& sizes);
BackwardLaunch backward_launch(const AttendBackwardParams& params, const PlanData& plan, const Sizes& sizes, void* workspace);

}  // namespace tilewise::attend::cuda
