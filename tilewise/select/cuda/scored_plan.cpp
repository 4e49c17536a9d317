// SPDX-License-Identifier: Apache-2.0
#include "tilewise/select/cuda/scored_plan.h"

#include <memory>

#include "tilewise/attend/sm90/workspace.h"
#include "tilewise/machine/cuda/check.h"
#include "tilewise/plan/pack.h"

namespace tilewise::select::cuda {
namespace {

/// The plan of scores that score(scores) writes; make(memory) places them.
template <class Make, class Score>
Plan scored_plan(const char* function, size_t score_bytes, const Make& make, const Score& score, const Budget& budget, const Context& context) {
  const machine::cuda::DeviceScope scope(context.device.index);
  const auto buffer = [&](size_t bytes) { return attend::sm90::device_buffer(function, bytes, context); };
  const Buffer values = buffer(score_bytes);
  const Scores scores = make(values.data());
  const PlanRoom room = most_runs(scores, budget);
  const Buffer chosen = buffer(plan_workspace_bytes(scores));
  Buffer lists = buffer(plan_bytes(scores, room));
  const Plan plan = plan_in(scores, room, lists.data(), context.device);
  score(scores);
  plan_into(scores, budget, plan, chosen.data(), context);
  auto owner = std::make_shared<PlanData>(plan::share(plan));
  owner->memory.push_back(std::move(lists));
  return owner;
}

}  // namespace

Plan mean_pool_plan(const Inputs& inputs, int tile, const Budget& budget, const Context& context) {
  constexpr const char* kName = "select::cuda::mean_pool_plan";
  const Buffer pools = attend::sm90::device_buffer(kName, mean_pool_workspace_bytes(inputs, tile), context);
  return scored_plan(
      kName, mean_pool_bytes(inputs, tile), [&](void* memory) { return mean_pool_in(inputs, tile, memory); },
      [&](const Scores& scores) { mean_pool_into(inputs, scores, pools.data(), context); }, budget, context);
}

Plan antidiagonal_plan(const Inputs& inputs, const AntidiagonalParams& params, const Budget& budget, const Context& context, bool takes_largest) {
  constexpr const char* kName = "select::cuda::antidiagonal_plan";
  const Buffer strips = attend::sm90::device_buffer(kName, antidiagonal_workspace_bytes(inputs, params), context);
  return scored_plan(
      kName, antidiagonal_bytes(inputs, params), [&](void* memory) { return antidiagonal_in(inputs, params, memory); },
      [&](const Scores& scores) { antidiagonal_into(inputs, params, scores, strips.data(), context, takes_largest); }, budget, context);
}

}  // namespace tilewise::select::cuda
