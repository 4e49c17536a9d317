// SPDX-License-Identifier: Apache-2.0
#include "tilewise/select/cuda/mean_pool_plan.h"

#include <memory>

#include "tilewise/attend/sm90/workspace.h"
#include "tilewise/machine/cuda/check.h"
#include "tilewise/plan/pack.h"

namespace tilewise::select::cuda {

Plan mean_pool_plan(const Inputs& inputs, int tile, const Budget& budget, const Context& context) {
  constexpr const char* kName = "select::cuda::mean_pool_plan";
  const machine::cuda::DeviceScope scope(context.device.index);
  const auto buffer = [&](size_t bytes) { return attend::sm90::device_buffer(kName, bytes, context); };
  const Buffer values = buffer(mean_pool_bytes(inputs, tile)), pools = buffer(mean_pool_workspace_bytes(inputs, tile));
  const Scores scores = mean_pool_in(inputs, tile, values.data());
  const PlanRoom room = most_runs(scores, budget);
  const Buffer chosen = buffer(plan_workspace_bytes(scores));
  Buffer lists = buffer(plan_bytes(scores, room));
  const Plan plan = plan_in(scores, room, lists.data(), context.device);
  mean_pool_into(inputs, scores, pools.data(), context);
  plan_into(scores, budget, plan, chosen.data(), context);
  auto owner = std::make_shared<PlanData>(plan::share(plan));
  owner->memory.push_back(std::move(lists));
  return owner;
}

}  // namespace tilewise::select::cuda
