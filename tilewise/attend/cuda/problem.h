// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstddef>
#include <optional>
#include <string>

#include "tilewise/attend/check.h"
#include "tilewise/attend/cuda/forward_args.h"

// From a caller's problem to what the kernels read. Nothing here needs a GPU.
namespace tilewise::attend::cuda {

constexpr int kMostChannels = 256;

/// Head_dim of the kernel that takes a problem, and the queries that its blocks hold.
int kernel_head_dim(const Sizes& sizes);
int kernel_tile_q(Dtype dtype, int head_dim);

TensorArg tensor_arg(const TensorView& view);

/// Why no kernel of this folder takes a problem, whatever the device is.
std::optional<std::string> refusal_of_tensor(const char* name, const TensorView& view);
std::optional<std::string> refusal_of_plan(const PlanData& plan);
std::optional<std::string> refusal_of_forward(const AttendParams& params);

/// The plan's by_query. Pooled keys are yet to come.
void set_plan(PlanArgs& args, const PlanData& plan, const Sizes& sizes, bool is_in_slots, int tile_q);

/// Pooled keys and values of a problem, in `workspace` (pool_workspace() bytes, aligned to 16); none without pools.
struct Pools {
  TensorArg k, v;
  PoolArgs args;
  int64_t blocks = 0;
};
size_t pool_workspace(const PlanData& plan, const Sizes& sizes, Dtype dtype);
Pools make_pools(const AttendParams& params, const Sizes& sizes, PlanArgs& plan, void* workspace);

/// Bytes of device memory that a forward needs beside its tensors, exactly, and what is launched.
size_t forward_workspace(const AttendParams& params, const Sizes& sizes);
ForwardLaunch forward_launch(const AttendParams& params, const Sizes& sizes, void* workspace);

}  // namespace tilewise::attend::cuda
