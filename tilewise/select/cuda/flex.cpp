// SPDX-License-Identifier: Apache-2.0
#include "tilewise/select/cuda/flex.h"

#include <utility>

#include "tilewise/attend/sm90/workspace.h"
#include "tilewise/machine/cuda/check.h"
#include "tilewise/plan/cuda/launch.h"
#include "tilewise/plan/pack.h"
#include "tilewise/select/cuda/flex_args.h"
#include "tilewise/select/cuda/launch.h"

namespace tilewise::select::cuda {
namespace {

void require(const char* function, const Inputs& inputs, const FlexParams& params) {
  require_shapes(function, inputs);
  check(params.tile >= 1 && params.min_budget >= 1 && params.max_budget >= 0, Error::Kind::value, function, ": tile is ", params.tile,
        ", min_budget ", params.min_budget, " and max_budget ", params.max_budget, "; they take at least 1, 1 and 0");
  check(params.gamma >= 0 && params.gamma <= 1 && params.tau >= 0, Error::Kind::value, function, ": gamma is ", params.gamma, " and tau ", params.tau,
        "; they take 0 to 1, and 0 or more");
  check(inputs.seqlen_q() >= 1 && inputs.seqlen_k() >= 1, Error::Kind::value, function, ": q is ", inputs.q.shape(), " and k ", inputs.k.shape(),
        "; give at least one query and one key");
  if (const auto reason = refusal_of(inputs, params)) fail(Error::Kind::unsupported, function, ": ", *reason);
}

plan::cuda::ListsSpace space_of(const Inputs& inputs, const FlexParams& params) {
  const Scores scores = score_space(inputs, params.tile, nullptr);
  return plan_space(scores, most_runs_of(scores, {}));
}

}  // namespace

std::optional<std::string> flex_refusal(const Inputs& inputs, const FlexParams& params) { return refusal_of(inputs, params); }

size_t flex_plan_bytes(const Inputs& inputs, const FlexParams& params) {
  require("select::cuda::flex_plan_bytes", inputs, params);
  return plan::cuda::bytes_of(space_of(inputs, params));
}

Plan flex_plan_in(const Inputs& inputs, const FlexParams& params, void* memory) {
  require("select::cuda::flex_plan_in", inputs, params);
  PlanData data = begin_plan(inputs.mask, inputs.mask, score_rows(inputs, params.tile), inputs.batch(), inputs.heads_q(), Context{});
  plan::cuda::MemoryParts parts(memory);
  data.by_query = plan::cuda::place_lists(space_of(inputs, params), parts, inputs.q.device());
  return std::make_shared<const PlanData>(std::move(data));
}

size_t flex_workspace_bytes(const Inputs& inputs, const FlexParams& params) {
  require("select::cuda::flex_workspace_bytes", inputs, params);
  FlexLaunch launch;
  return flex_launch(inputs, params, nullptr, nullptr, launch);
}

void flex_plan_into(const Inputs& inputs, const FlexParams& params, const Plan& plan, void* workspace, const Context& context) {
  constexpr const char* kName = "select::cuda::flex_plan_into";
  check(plan != nullptr, Error::Kind::value, kName, ": the plan is null");
  require(kName, inputs, params);
  require_tensors(kName, inputs, context);
  const plan::cuda::ListsSpace space = space_of(inputs, params);
  const Lists& lists = plan->by_query;
  check(lists.status.has_value() && lists.whole.stop.has_value() && lists.masked.stop.has_value() && lists.tile == params.tile &&
            lists.edge.has_value() == space.has_edge && plan->seqlen_q == inputs.seqlen_q() && plan->seqlen_k == inputs.seqlen_k() &&
            lists.whole.begin.shape() == Shape({space.batch, space.groups, space.rows}) && lists.whole.start.numel() == space.whole &&
            lists.masked.start.numel() == space.masked,
        Error::Kind::value, kName, ": the plan was not made for these inputs; take one from flex_plan_in()");
  plan::cuda::require_on_device(kName, *plan, context);
  FlexLaunch launch;
  flex_launch(inputs, params, plan.get(), workspace, launch);
  const machine::cuda::DeviceScope scope(context.device.index);
  machine::cuda::check_cuda(launch_flex(launch, static_cast<cudaStream_t>(context.stream)), kName, ": the launch failed");
}

Plan flex_plan(const Inputs& inputs, const FlexParams& params, const Context& context) {
  constexpr const char* kName = "select::cuda::flex_plan";
  const machine::cuda::DeviceScope scope(context.device.index);
  const Buffer workspace = attend::sm90::device_buffer(kName, flex_workspace_bytes(inputs, params), context);
  Buffer lists = attend::sm90::device_buffer(kName, flex_plan_bytes(inputs, params), context);
  const Plan plan = flex_plan_in(inputs, params, lists.data());
  flex_plan_into(inputs, params, plan, workspace.data(), context);
  auto owner = std::make_shared<PlanData>(plan::share(plan));
  owner->memory.push_back(std::move(lists));
  return owner;
}

}  // namespace tilewise::select::cuda
