// SPDX-License-Identifier: Apache-2.0
#include "tilewise/select/cuda/plan.h"

#include "tilewise/machine/cuda/check.h"
#include "tilewise/plan/cuda/launch.h"
#include "tilewise/select/cuda/launch.h"

namespace tilewise::select::cuda {
namespace {

void require_shapes(const char* function, const Scores& scores, const PlanRoom& room) {
  if (const auto reason = refusal_of_shapes(scores)) fail(Error::Kind::unsupported, function, ": ", *reason);
  const int64_t rows = scores.batch * scores.heads * scores.grid.rows();
  check(room.whole >= 0 && room.masked >= rows, Error::Kind::value, function, ": room for ", room.whole, " whole and ", room.masked,
        " masked runs; it takes at least 0 and ", rows, ", a masked run for each row of a head");
}

}  // namespace

std::optional<std::string> refusal(const Scores& scores, const Budget& budget) { return refusal_of(scores, budget); }

PlanRoom most_runs(const Scores& scores, const Budget& budget) {
  if (const auto reason = refusal_of(scores, budget)) fail(Error::Kind::unsupported, "select::cuda::most_runs: ", *reason);
  check_budget(budget, scores.heads);
  return most_runs_of(scores, budget);
}

size_t plan_bytes(const Scores& scores, const PlanRoom& room) {
  require_shapes("select::cuda::plan_bytes", scores, room);
  return plan::cuda::bytes_of(plan_space(scores, room));
}

Plan plan_in(const Scores& scores, const PlanRoom& room, void* memory, Device device) {
  require_shapes("select::cuda::plan_in", scores, room);
  const Context host;
  PlanData data = begin_plan(scores.mask, scores.mask, scores.grid, scores.batch, scores.heads, host);
  plan::cuda::MemoryParts parts(memory);
  data.by_query = plan::cuda::place_lists(plan_space(scores, room), parts, device);
  return std::make_shared<const PlanData>(std::move(data));
}

size_t plan_workspace_bytes(const Scores& scores) {
  ChooseArgs args;
  plan::cuda::PlaceRowsArgs place;
  return plan_workspace(scores, nullptr, args, place);
}

void plan_into(const Scores& scores, const Budget& budget, const Plan& plan, void* workspace, const Context& context) {
  constexpr const char* kName = "select::cuda::plan_into";
  check(plan != nullptr, Error::Kind::value, kName, ": the plan is null");
  if (const auto reason = refusal_of(scores, budget)) fail(Error::Kind::unsupported, kName, ": ", *reason);
  check_budget(budget, scores.heads);
  const TensorView& values = scores.values.view;
  const Shape shape{scores.batch, scores.heads, scores.grid.rows(), scores.key_tiles()};
  check(values.dtype() == Dtype::f32 && values.shape() == shape && (values.numel() == 0 || values.stride(3) == 1), Error::Kind::shape, kName,
        ": scores are ", values.dtype(), " ", values.shape(), ", takes f32 ", shape, " with neighbouring tiles");
  check(values.device() == context.device, Error::Kind::device, kName, ": scores are on ", values.device(), ", the context runs on ", context.device);
  const Lists& lists = plan->by_query;
  check(lists.status.has_value() && lists.whole.stop.has_value() && lists.masked.stop.has_value() && lists.tile == scores.grid.tile &&
            lists.edge.has_value() == !scores.grid.edge.empty() && plan->seqlen_q == scores.grid.seqlen_q && plan->seqlen_k == scores.grid.seqlen_k &&
            lists.whole.begin.shape() == Shape({std::max<int64_t>(scores.batch, 1), scores.heads, scores.grid.rows()}),
        Error::Kind::value, kName, ": the plan was not made for these scores; take one from plan_in()");
  plan::cuda::require_on_device(kName, *plan, context);
  const machine::cuda::DeviceScope scope(context.device.index);
  machine::cuda::check_cuda(launch_plan(plan_launch(scores, budget, *plan, workspace), static_cast<cudaStream_t>(context.stream)), kName,
                            ": the launch failed");
}

}  // namespace tilewise::select::cuda
