// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>

#include "tilewise/attend/check.h"
#include "tilewise/attend/cuda/forward_args.h"

// From a caller's problem to what the kernels read. Nothing here needs a GPU.
namespace tilewise::attend::cuda {

constexpr int kMostChannels = 256;

/// Parts of a workspace, each aligned to 16.
class WorkspaceParts {
 public:
  explicit WorkspaceParts(void* base) : base_(static_cast<std::byte*>(base)) {}
  /// Null with a null base, which only counts.
  template <class T>
  T* take(int64_t count) {
    std::byte* const part = base_ == nullptr ? nullptr : base_ + bytes_;
    bytes_ += (static_cast<size_t>(count) * sizeof(T) + 15) / 16 * 16;
    return reinterpret_cast<T*>(part);
  }
  size_t bytes() const { return bytes_; }

 private:
  std::byte* base_;
  size_t bytes_ = 0;
};

/// Head_dim of the kernel that takes a problem, and the queries that its blocks hold.
int kernel_head_dim(const Sizes& sizes);
int forward_tile_q(Dtype dtype, int head_dim);

TensorArg tensor_arg(const TensorView& view);

/// Why no kernel of this folder takes a problem, whatever the device is.
std::optional<std::string> refusal_of_tensor(const char* name, const TensorView& view);
std::optional<std::string> refusal_of_pools(const PlanData& plan);
std::optional<std::string> refusal_of_plan(const PlanData& plan);
std::optional<std::string> refusal_of_forward(const AttendParams& params);

/// The plan's by_query. Pooled keys are yet to come.
void set_plan(PlanArgs& args, const PlanData& plan, const Sizes& sizes, bool is_in_slots, int tile_q);

/// Pooled keys and values of a problem, in `workspace`; none without pools. Sets the plan's.
struct Pools {
  TensorArg k, v;
  PoolArgs args;
  int64_t blocks = 0;
};
Pools make_pools(const AttendParams& params, const Sizes& sizes, PlanArgs& plan, WorkspaceParts& workspace);

/// Bytes of device memory that a forward needs beside its tensors, exactly, and what is launched.
size_t forward_workspace(const AttendParams& params, const Sizes& sizes);
ForwardLaunch forward_launch(const AttendParams& params, const Sizes& sizes, void* workspace);

}  // namespace tilewise::attend::cuda
