// SPDX-License-Identifier: Apache-2.0
#include "tilewise/attend/cuda/backward_problem.h"

#include <numeric>
#include <utility>

#include "tilewise/attend/cuda/plan_view.h"
#include "tilewise/plan/cuda/run_list.h"
#include "tilewise/plan/rows.h"

namespace tilewise::attend::cuda {
namespace {

QueryNumbers query_numbers(const TensorView& view) {
  if (!view.has_value()) return {};
  return {static_cast<const float*>(view.raw()), view.stride(0), view.stride(1), view.stride(2)};
}

int backward_tile_q(Dtype dtype, int head_dim) { return dtype == Dtype::f32 && head_dim == 256 ? 16 : 64; }

constexpr int64_t blocks_of(int64_t items, int64_t of_block) { return (items + of_block - 1) / of_block; }

}  // namespace

std::optional<std::string> refusal_of_backward(const AttendBackwardParams& params) {
  const AttendParams& f = params.forward;
  for (const auto& [name, view] : {std::pair{"q", &f.q}, std::pair{"k", &f.k}, std::pair{"v", &f.v}}) {
    if (auto reason = refusal_of_tensor(name, *view)) return reason;
  }
  if ((params.dq.raw() == params.dk.raw() || params.dq.raw() == params.dv.raw() || params.dk.raw() == params.dv.raw()) && params.dk.numel() > 0) {
    return "gradients in one tensor are not built; give each its own";
  }
  const PlanData& plan = *f.plan;
  if (auto reason = refusal_of_pools(plan)) return reason;
  for (const Lists* lists : {&plan.by_query, &plan.by_key}) {
    if (auto reason = refusal_of_arrays(plan, *lists)) return reason;
  }
  return std::nullopt;
}

size_t backward_workspace(const AttendBackwardParams& params, const PlanData& plan, const Sizes& sizes) {
  return backward_launch(params, plan, sizes, nullptr).workspace_bytes;
}

BackwardLaunch backward_launch(const AttendBackwardParams& params, const PlanData& plan, const Sizes& sizes, void* workspace) {
  const AttendParams& f = params.forward;
  const Dtype dtype = f.q.dtype();
  BackwardLaunch launch;
  BackwardArgs& args = launch.args;
  const int tile_q = backward_tile_q(dtype, kernel_head_dim(sizes));
  set_plan(args, plan, sizes, f.in_slots, tile_q);
  WorkspaceParts parts(workspace);
  const Pools pools = make_pools(f, sizes, args, parts);
  launch.pool = pools.args;
  launch.pool_blocks = pools.blocks;
  args.pooled_k = pools.k;
  args.pooled_v = pools.v;
  args.lists_k[0] = plan::cuda::run_list(plan.by_key.masked);
  args.lists_k[1] = plan::cuda::run_list(plan.by_key.whole);
  args.lists_k[2] = plan::cuda::run_list(plan.by_key.picked);
  args.rows_k = plan::cuda::rows_view(plan.by_key, args.axis_k.slots());
  args.parts_per_row_k = (plan.by_key.tile + tile_q - 1) / tile_q;
  args.slot_heads = std::lcm(sizes.heads_kv, args.axis_k.groups);
  args.q = tensor_arg(f.q);
  args.k = tensor_arg(f.k);
  args.v = tensor_arg(f.v);
  args.out = tensor_arg(f.out);
  args.dout = tensor_arg(params.dout);
  args.dq = tensor_arg(params.dq);
  args.dk = tensor_arg(params.dk);
  args.dv = tensor_arg(params.dv);
  args.lse = query_numbers(f.lse);
  args.dlse = query_numbers(params.dlse);
  args.softmax_scale = static_cast<float>(scale_of(f.softmax_scale, sizes.head_dim));
  args.softcap = f.softcap;
  args.softcap_scale = f.softcap == 0 ? 0 : args.softmax_scale / f.softcap;
  args.scale = f.softcap == 0 ? args.softmax_scale : 1;
  if (params.dsink_logit.has_value()) {
    args.sink_logit = static_cast<const float*>(f.sink_logit.raw());
    args.dsink_logit = static_cast<float*>(params.dsink_logit.raw());
    launch.sink_blocks = sizes.heads_q;
  }
  args.batch = static_cast<int>(sizes.batch);
  args.rows_of_k = static_cast<int>(sizes.seqlen_k);
  const int64_t queries = sizes.batch * sizes.heads_q * args.axis_q.end[0], keys = sizes.batch * args.slot_heads * args.axis_k.slots();
  args.delta = parts.take<float>(queries);
  args.dk_slots = parts.take<float>(keys * sizes.head_dim);
  args.dv_slots = parts.take<float>(keys * sizes.head_dim_v);
  if (args.axis_k.token != nullptr && !f.in_slots) {
    args.slot_of = parts.take<int32_t>(int64_t{args.axis_k.batch} * args.axis_k.groups * plan.seqlen_k);
    launch.slot_blocks = blocks_of(int64_t{args.axis_k.batch} * args.axis_k.groups * args.axis_k.end[0], kSlotThreads);
  }
  launch.workspace_bytes = parts.bytes();
  launch.delta_blocks = blocks_of(queries, kDeltaRows);
  launch.query_blocks = sizes.batch * sizes.heads_q * args.rows.rows * args.parts_per_row;
  launch.key_blocks = sizes.batch * args.slot_heads * args.rows_k.rows * args.parts_per_row_k;
  launch.gather_blocks = sizes.batch * sizes.heads_kv * sizes.seqlen_k;
  return launch;
}

}  // namespace tilewise::attend::cuda
