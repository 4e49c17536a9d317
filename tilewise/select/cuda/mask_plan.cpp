// SPDX-License-Identifier: Apache-2.0
#include "tilewise/select/cuda/mask_plan.h"

#include <memory>
#include <utility>

#include "tilewise/attend/sm90/workspace.h"
#include "tilewise/machine/cuda/check.h"
#include "tilewise/plan/cuda/launch.h"
#include "tilewise/plan/pack.h"
#include "tilewise/select/cuda/launch.h"
#include "tilewise/select/cuda/mask_plan_args.h"

namespace tilewise::select::cuda {
namespace {

void require(const char* function, const Mask& read, const RowGrid& grid, int heads) {
  if (const auto reason = refusal_of(read, grid, heads)) fail(Error::Kind::unsupported, function, ": ", *reason);
}

}  // namespace

size_t mask_plan_bytes(const Mask& read, const RowGrid& grid, int heads) {
  require("select::cuda::mask_plan_bytes", read, grid, heads);
  return plan::cuda::bytes_of(mask_plan_space(read, grid, heads));
}

Plan mask_plan_in(const Mask& read, const Mask& model, const RowGrid& grid, int64_t batch, int heads, void* memory, Device device) {
  require("select::cuda::mask_plan_in", read, grid, heads);
  PlanData data = begin_plan(read, model, grid, batch, heads, Context{});
  plan::cuda::MemoryParts parts(memory);
  data.by_query = plan::cuda::place_lists(mask_plan_space(read, grid, heads), parts, device);
  return std::make_shared<const PlanData>(std::move(data));
}

void mask_plan_into(const Mask& read, const RowGrid& grid, const Plan& plan, const Context& context) {
  constexpr const char* kName = "select::cuda::mask_plan_into";
  check(plan != nullptr, Error::Kind::value, kName, ": the plan is null");
  require(kName, read, grid, plan->heads_q);
  const plan::cuda::ListsSpace space = mask_plan_space(read, grid, plan->heads_q);
  const Lists& lists = plan->by_query;
  check(lists.status.has_value() && lists.whole.stop.has_value() && lists.masked.stop.has_value() && lists.tile == grid.tile &&
            lists.edge.has_value() == space.has_edge && plan->seqlen_q == grid.seqlen_q && plan->seqlen_k == grid.seqlen_k &&
            lists.whole.begin.shape() == Shape({1, space.groups, space.rows}) && lists.whole.start.numel() == space.whole &&
            lists.masked.start.numel() == space.masked,
        Error::Kind::value, kName, ": the plan was not made for this mask and these rows; take one from mask_plan_in()");
  plan::cuda::require_on_device(kName, *plan, context);
  const machine::cuda::DeviceScope scope(context.device.index);
  machine::cuda::check_cuda(launch_mask_plan(mask_plan_args(read, grid, lists), static_cast<cudaStream_t>(context.stream)), kName,
                            ": the launch failed");
}

Plan mask_plan(const Mask& read, const Mask& model, const RowGrid& grid, int64_t batch, int heads, const Context& context) {
  const machine::cuda::DeviceScope scope(context.device.index);
  Buffer lists = attend::sm90::device_buffer("select::cuda::mask_plan", mask_plan_bytes(read, grid, heads), context);
  const Plan plan = mask_plan_in(read, model, grid, batch, heads, lists.data(), context.device);
  mask_plan_into(read, grid, plan, context);
  auto owner = std::make_shared<PlanData>(plan::share(plan));
  owner->memory.push_back(std::move(lists));
  return owner;
}

}  // namespace tilewise::select::cuda
