// SPDX-License-Identifier: Apache-2.0
#include "tilewise/select/cuda/patterns.h"

#include <utility>

#include "tilewise/attend/sm90/workspace.h"
#include "tilewise/machine/cuda/check.h"
#include "tilewise/plan/cuda/launch.h"
#include "tilewise/plan/pack.h"
#include "tilewise/select/cuda/launch.h"
#include "tilewise/select/cuda/patterns_args.h"

namespace tilewise::select::cuda {
namespace {

void require(const char* function, const Inputs& inputs, const PatternParams& params) {
  require_shapes(function, inputs);
  check(static_cast<int>(params.heads.size()) == inputs.heads_q(), Error::Kind::value, function, ": params name ", params.heads.size(),
        " heads, q has ", inputs.heads_q(), "; give a pattern for each");
  check(params.tile >= 1 && params.last >= 1 && params.nearest >= 1 && params.first >= 0, Error::Kind::value, function, ": tile is ", params.tile,
        ", last ", params.last, ", nearest ", params.nearest, " and first ", params.first, "; they take at least 1, 1, 1 and 0");
  for (const PatternHead& head : params.heads) {
    check(head.vertical >= 0 && head.slash >= (head.kind == PatternHead::Kind::lines ? 1 : 0) && head.tiles >= 0 && head.tiles <= INT32_MAX,
          Error::Kind::value, function, ": a head has ", head.vertical, " vertical lines, ", head.slash, " slash lines and ", head.tiles,
          " tiles; they take 0 or more, a head of lines 1 slash line");
  }
  if (const auto reason = refusal_of(inputs, params)) fail(Error::Kind::unsupported, function, ": ", *reason);
}

}  // namespace

std::optional<std::string> pattern_refusal(const Inputs& inputs, const PatternParams& params) { return refusal_of(inputs, params); }

size_t pattern_plan_bytes(const Inputs& inputs, const PatternParams& params) {
  require("select::cuda::pattern_plan_bytes", inputs, params);
  return plan::cuda::bytes_of(pattern_space(inputs, params));
}

Plan pattern_plan_in(const Inputs& inputs, const PatternParams& params, void* memory) {
  require("select::cuda::pattern_plan_in", inputs, params);
  PlanData data = begin_plan(params.read, inputs.mask, score_rows(inputs, params.tile), inputs.batch(), inputs.heads_q(), Context{});
  plan::cuda::MemoryParts parts(memory);
  data.by_query = plan::cuda::place_lists(pattern_space(inputs, params), parts, inputs.q.device());
  return std::make_shared<const PlanData>(std::move(data));
}

size_t pattern_workspace_bytes(const Inputs& inputs, const PatternParams& params) {
  require("select::cuda::pattern_workspace_bytes", inputs, params);
  PatternLaunch launch;
  return pattern_launch(inputs, params, nullptr, nullptr, launch);
}

void pattern_plan_into(const Inputs& inputs, const PatternParams& params, const Plan& plan, void* workspace, const Context& context) {
  constexpr const char* kName = "select::cuda::pattern_plan_into";
  check(plan != nullptr, Error::Kind::value, kName, ": the plan is null");
  require(kName, inputs, params);
  require_tensors(kName, inputs, context);
  const plan::cuda::ListsSpace space = pattern_space(inputs, params);
  const Lists& lists = plan->by_query;
  check(lists.status.has_value() && lists.whole.stop.has_value() && lists.masked.stop.has_value() && lists.picked.has_runs() == space.has_picked &&
            lists.tile == params.tile && lists.edge.has_value() == space.has_edge && plan->seqlen_q == inputs.seqlen_q() &&
            plan->seqlen_k == inputs.seqlen_k() && lists.whole.begin.shape() == Shape({space.batch, space.groups, space.rows}) &&
            lists.whole.start.numel() == space.whole && lists.masked.start.numel() == space.masked,
        Error::Kind::value, kName, ": the plan was not made for these inputs; take one from pattern_plan_in()");
  plan::cuda::require_on_device(kName, *plan, context);
  PatternLaunch launch;
  pattern_launch(inputs, params, plan.get(), workspace, launch);
  const machine::cuda::DeviceScope scope(context.device.index);
  machine::cuda::check_cuda(launch_patterns(launch, static_cast<cudaStream_t>(context.stream)), kName, ": the launch failed");
}

Plan pattern_plan(const Inputs& inputs, const PatternParams& params, const Context& context) {
  constexpr const char* kName = "select::cuda::pattern_plan";
  const machine::cuda::DeviceScope scope(context.device.index);
  const Buffer workspace = attend::sm90::device_buffer(kName, pattern_workspace_bytes(inputs, params), context);
  Buffer lists = attend::sm90::device_buffer(kName, pattern_plan_bytes(inputs, params), context);
  const Plan plan = pattern_plan_in(inputs, params, lists.data());
  pattern_plan_into(inputs, params, plan, workspace.data(), context);
  auto owner = std::make_shared<PlanData>(plan::share(plan));
  owner->memory.push_back(std::move(lists));
  return owner;
}

}  // namespace tilewise::select::cuda
