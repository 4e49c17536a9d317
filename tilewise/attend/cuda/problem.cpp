// SPDX-License-Identifier: Apache-2.0
#include "tilewise/attend/cuda/problem.h"

#include <algorithm>

#include "tilewise/attend/cuda/plan_view.h"
#include "tilewise/plan/cuda/run_list.h"
#include "tilewise/plan/rows.h"

namespace tilewise::attend::cuda {
namespace {

int64_t pooled_keys(const PlanData& plan) { return plan::slots_k_with_pools(plan) - plan::slots_k(plan); }

}  // namespace

int kernel_head_dim(const Sizes& sizes) {
  const int64_t most = std::max(sizes.head_dim, sizes.head_dim_v);
  return most <= 64 ? 64 : most <= 128 ? 128 : 256;
}

int forward_tile_q(Dtype dtype, int head_dim) { return dtype == Dtype::f32 && head_dim == 256 ? 32 : 64; }

TensorArg tensor_arg(const TensorView& view) {
  TensorArg arg;
  if (!view.has_value()) return arg;
  arg.data = view.raw();
  arg.stride_batch = view.stride(0);
  arg.stride_head = view.stride(1);
  arg.stride_row = view.stride(2);
  arg.heads = static_cast<int>(view.dim(1));
  arg.channels = static_cast<int>(view.dim(3));
  const auto piece = static_cast<int64_t>(16 / size_of(view.dtype()));
  arg.is_wide = reinterpret_cast<uintptr_t>(view.raw()) % 16 == 0 && view.dim(3) % piece == 0;
  for (int axis = 0; axis < 3; ++axis) arg.is_wide = arg.is_wide && (view.dim(axis) <= 1 || view.stride(axis) % piece == 0);
  return arg;
}

std::optional<std::string> refusal_of_tensor(const char* name, const TensorView& view) {
  if (!view.has_value()) return std::nullopt;
  const Dtype dtype = view.dtype();
  if (dtype != Dtype::bf16 && dtype != Dtype::f16 && dtype != Dtype::f32)
    return text(name, " is ", dtype, ", which is not built (has bf16, f16, f32)");
  if (view.dim(3) > kMostChannels) return text(name, " has ", view.dim(3), " channels, above ", kMostChannels);
  return std::nullopt;
}

std::optional<std::string> refusal_of_pools(const PlanData& plan) {
  if (plan.pools.size() < AxisView::kParts) return std::nullopt;
  return text("the plan has ", plan.pools.size(), " pools, above ", AxisView::kParts - 1);
}

std::optional<std::string> refusal_of_plan(const PlanData& plan) {
  if (!plan.by_query.has_runs() && plan.by_key.has_runs()) return "the plan has only by_key, this backend reads by_query; complete() the plan";
  if (auto reason = refusal_of_pools(plan)) return reason;
  return refusal_of_arrays(plan, plan.by_query);
}

std::optional<std::string> refusal_of_forward(const AttendParams& params) {
  for (const auto& [name, view] : {std::pair{"q", &params.q}, std::pair{"k", &params.k}, std::pair{"v", &params.v}, std::pair{"out", &params.out}}) {
    if (auto reason = refusal_of_tensor(name, *view)) return reason;
  }
  return refusal_of_plan(*params.plan);
}

void set_plan(PlanArgs& args, const PlanData& plan, const Sizes& sizes, bool is_in_slots, int tile_q) {
  set_mask(args, plan.mask);
  args.lists[0] = plan::cuda::run_list(plan.by_query.masked);
  args.lists[1] = plan::cuda::run_list(plan.by_query.whole);
  args.lists[2] = plan::cuda::run_list(plan.by_query.picked);
  args.axis_q = plan::cuda::query_axis(plan);
  args.axis_k = plan::cuda::key_axis(plan);
  args.rows = plan::cuda::rows_view(plan.by_query, args.axis_q.end[0]);
  args.seqlen_q = static_cast<int>(plan.seqlen_q);
  args.seqlen_k = static_cast<int>(plan.seqlen_k);
  args.is_in_slots = is_in_slots;
  args.heads_q = sizes.heads_q;
  args.heads_kv = sizes.heads_kv;
  args.parts_per_row = (plan.by_query.tile + tile_q - 1) / tile_q;
}

Pools make_pools(const AttendParams& params, const Sizes& sizes, PlanArgs& plan, WorkspaceParts& workspace) {
  Pools pools;
  const int64_t pooled = pooled_keys(*params.plan), means = sizes.batch * sizes.heads_kv * pooled;
  if (means == 0) return pools;
  const Dtype dtype = params.q.dtype();
  const auto means_of = [&](int64_t channels) {
    const Shape shape{sizes.batch, sizes.heads_kv, pooled, channels};
    return tensor_arg(TensorView(workspace.take<std::byte>(shape.numel() * static_cast<int64_t>(size_of(dtype))), dtype, shape, params.q.device()));
  };
  pools.k = means_of(sizes.head_dim);
  if (params.v.has_value()) pools.v = means_of(sizes.head_dim_v);
  PoolArgs& args = pools.args;
  args.k = tensor_arg(params.k);
  args.v = tensor_arg(params.v);
  args.pooled_k = pools.k;
  args.pooled_v = pools.v;
  args.axis_k = plan.axis_k;
  args.is_in_slots = params.in_slots;
  args.heads_kv = sizes.heads_kv;
  args.pooled = pooled;
  args.token = workspace.take<int32_t>(means);
  args.count = workspace.take<float>(means);
  plan.pooled_token = args.token;
  plan.pooled_count = args.count;
  plan.pooled = pooled;
  pools.blocks = means;
  return pools;
}

size_t forward_workspace(const AttendParams& params, const Sizes& sizes) {
  PlanArgs plan;
  WorkspaceParts parts(nullptr);
  make_pools(params, sizes, plan, parts);
  return parts.bytes();
}

ForwardLaunch forward_launch(const AttendParams& params, const Sizes& sizes, void* workspace) {
  ForwardLaunch launch;
  ForwardArgs& args = launch.args;
  set_plan(args, *params.plan, sizes, params.in_slots, forward_tile_q(params.q.dtype(), kernel_head_dim(sizes)));
  WorkspaceParts parts(workspace);
  const Pools pools = make_pools(params, sizes, args, parts);
  launch.pool = pools.args;
  launch.pool_blocks = pools.blocks;
  args.pooled_k = pools.k;
  args.pooled_v = pools.v;
  args.q = tensor_arg(params.q);
  args.k = tensor_arg(params.k);
  args.v = tensor_arg(params.v);
  args.out = tensor_arg(params.out);
  if (params.lse.has_value()) {
    args.lse = static_cast<float*>(params.lse.raw());
    args.lse_stride_batch = params.lse.stride(0);
    args.lse_stride_head = params.lse.stride(1);
    args.lse_stride_row = params.lse.stride(2);
  }
  const auto softmax_scale = static_cast<float>(scale_of(params.softmax_scale, sizes.head_dim));
  args.softcap = params.softcap;
  args.softcap_scale = params.softcap == 0 ? 0 : softmax_scale / params.softcap;
  args.scale = params.softcap == 0 ? softmax_scale : 1;
  if (params.sink_logit.has_value()) args.sink_logit = static_cast<const float*>(params.sink_logit.raw());
  launch.blocks = sizes.batch * sizes.heads_q * args.rows.rows * args.parts_per_row;
  return launch;
}

}  // namespace tilewise::attend::cuda
