// SPDX-License-Identifier: Apache-2.0
#include "tilewise/attend/sm90/measure.h"

#include <utility>

#include "tilewise/attend/check.h"
#include "tilewise/attend/sm90/measure_args.h"
#include "tilewise/attend/sm90/operands.h"
#include "tilewise/attend/sm90/plan_view.h"
#include "tilewise/machine/cuda/check.h"

namespace tilewise::attend::sm90 {
namespace {

using machine::cuda::check_cuda;
using machine::cuda::DeviceScope;

constexpr int kMostChannels = 256;

std::optional<std::string> refusal_of_plan(const PlanData& plan) {
  const Lists& lists = plan.by_query;
  if (!plan.pools.empty()) return "pooled keys are not built";
  if (!lists.has_runs() && plan.by_key.has_runs()) return "the plan has only by_key, this backend reads by_query; complete() the plan";
  if (auto reason = cuda::refusal_of_arrays(plan, lists)) return reason;
  if (lists.picked.has_runs()) return "picked keys are not built for measure; make runs of them";
  if (lists.whole.rows.has_value() || lists.masked.rows.has_value()) return "runs with `rows` bits are not built for measure";
  if (lists.edge.has_value()) return "rows with edges are not built for measure; rows of one tile are";
  if (plan.order_q.token.has_value() || plan.order_k.token.has_value())
    return "plans with orders are not built for measure; reorder q and k yourself";
  if (plan.mask.bands.empty()) return "the mask is of spans or a grid, which is not built for measure (has bands)";
  if (plan.mask.bands.size() > 1 && !plan.mask.head_class.empty()) return "the mask has classes of heads, which is not built for measure";
  return std::nullopt;
}

}  // namespace

std::optional<std::string> refusal(const MeasureParams& params) {
  for (const auto& [name, view] : {std::pair{"q", &params.q}, std::pair{"k", &params.k}}) {
    if (auto reason = refusal_of_operand(name, *view, kMostChannels)) return reason;
  }
  if (params.over != MeasureOver::tile) return "sums over anything but tiles are not built";
  if (params.sum.has_value() || params.count.has_value()) return "sum and count are not built (has max)";
  if (params.lse.has_value()) return "exp(s - lse) is not built (has s); its largest of a row is that of s";
  if (params.key_bias.has_value()) return "key_bias is not built";
  if (params.in_slots) return "in_slots is not built";
  if (params.q.dim(3) == 0 || params.q.dim(3) % 64 != 0)
    return text("q has ", params.q.dim(3), " channels, takes a multiple of 64; fill q and k up with zeros");
  if (measure_tile_q(params) % 64 != 0) return text("tile_q is ", measure_tile_q(params), ", takes a multiple of 64");
  if (auto reason = refusal_of_plan(*params.plan)) return reason;
  if (!is_hopper(params.q.device().index)) return text(params.q.device(), " is no GPU of compute capability 9.0, which these kernels are made for");
  return std::nullopt;
}

Ran measure(const MeasureParams& params, Context& context) {
  const Sizes sizes = check_measure(params, context);
  if (const auto reason = refusal(params)) fail(Error::Kind::unsupported, "measure: sm90: ", *reason);
  context.check_cancel();
  const DeviceScope scope(context.device.index);
  const PlanData& plan = *params.plan;
  MeasureInput input;
  input.q = tensor16(params.q);
  input.k = tensor16(params.k);
  input.max = {static_cast<float*>(params.max.raw()), static_cast<int>(params.max.dim(0)), static_cast<int>(params.max.dim(1)),
               static_cast<int>(params.max.dim(2)), static_cast<int>(params.max.dim(3))};
  for (int axis = 0; axis < 4; ++axis) input.max.stride[axis] = params.max.stride(axis);
  input.masked = run_list(plan.by_query.masked);
  input.whole = run_list(plan.by_query.whole);
  input.band = band_view(plan.mask.bands.front());
  input.tile = plan.by_query.tile;
  input.tile_q = measure_tile_q(params);
  input.tile_k = measure_tile_k(params);
  input.softmax_scale = static_cast<float>(scale_of(params.softmax_scale, sizes.head_dim));
  input.softcap = params.softcap;
  check_cuda(attend_sm90_measure(input, static_cast<cudaStream_t>(context.stream)), "measure: sm90: the launch failed");
  return {.backend = "sm90", .target = "sm_90a", .pairs_read = -1};
}

}  // namespace tilewise::attend::sm90
