// SPDX-License-Identifier: Apache-2.0
#include "tilewise/plan/cuda/complete.h"

#include <cuda_runtime_api.h>

#include <memory>

#include "tilewise/machine/cuda/check.h"
#include "tilewise/plan/cuda/complete_args.h"
#include "tilewise/plan/cuda/launch.h"

namespace tilewise::plan::cuda {
namespace {

using machine::cuda::check_cuda;

const PlanData& one_way(const char* function, const Plan& plan, const CompleteRoom& room) {
  check(plan != nullptr, Error::Kind::value, function, ": the plan is null; make one with a method or load one");
  check(!plan->by_query.has_runs() || !plan->by_key.has_runs(), Error::Kind::value, function, ": the plan has both directions already");
  check(room.tile == 0 || (room.tile >= 16 && room.tile <= 256), Error::Kind::value, function, ": tile ", room.tile, " is outside 16 to 256");
  check(room.whole >= 0 && room.masked >= 0, Error::Kind::value, function, ": room for ", room.whole, " whole and ", room.masked,
        " masked runs, takes 0 or more");
  return *plan;
}

}  // namespace

CompleteRoom most_complete_room(const Plan& plan, int tile) {
  return most_room_of(one_way("most_complete_room", plan, {.whole = 0, .masked = 0, .has_rows = true, .tile = tile}), tile);
}

size_t complete_bytes(const Plan& plan, const CompleteRoom& room) { return bytes_of(complete_space(one_way("complete_bytes", plan, room), room)); }

Plan complete_in(const Plan& plan, const CompleteRoom& room, void* memory) {
  const PlanData& from = one_way("complete_in", plan, room);
  auto data = std::make_shared<PlanData>(share(plan));
  const bool is_by_query = from.by_query.has_runs() || !from.by_key.has_runs();
  const Lists& lists = is_by_query ? from.by_query : from.by_key;
  Device device{};
  for (const RunList* list : {&lists.whole, &lists.masked, &lists.picked}) {
    if (list->has_runs()) device = list->begin.device();
  }
  data->is_by_key = !is_by_query;
  MemoryParts parts(memory);
  (is_by_query ? data->by_key : data->by_query) = place_lists(complete_space(from, room), parts, device);
  return data;
}

size_t complete_workspace_bytes() {
  PlaceRowsArgs place;
  CompleteArgs args;
  return complete_workspace(nullptr, place, args);
}

void complete_into(const Plan& plan, void* workspace, const Context& context) {
  check(plan != nullptr, Error::Kind::value, "complete_into: the plan is null");
  const Lists& made = plan->is_by_key ? plan->by_query : plan->by_key;
  check(made.status.has_value() && made.whole.begin.has_value() && made.masked.begin.has_value() && made.whole.stop.has_value(), Error::Kind::value,
        "complete_into: the plan has no room for the direction that it lacks; take one from complete_in()");
  require_on_device("complete_into", *plan, context);
  const machine::cuda::DeviceScope scope(context.device.index);
  check_cuda(launch_complete(complete_launch(*plan, workspace), static_cast<cudaStream_t>(context.stream)), "complete_into: the launch failed");
}

void require_on_device(const char* function, const PlanData& plan, const Context& context) {
  check(context.device.type == Device::Type::cuda, Error::Kind::device, function, ": the context runs on ", context.device,
        "; set Context::device to a GPU");
  for (const TensorView* view :
       {&plan.order_q.token, &plan.order_k.token, &plan.by_query.edge, &plan.by_key.edge, &plan.by_query.status, &plan.by_key.status}) {
    check(!view->has_value() || view->device() == context.device, Error::Kind::device, function, ": an array of the plan is on ", view->device(),
          ", the context runs on ", context.device);
    check(!view->has_value() || view->is_contiguous(), Error::Kind::shape, function, ": an array ", view->shape(),
          " of the plan is not contiguous; pack the plan");
  }
  for (const Lists* lists : {&plan.by_query, &plan.by_key}) {
    for (const RunList* list : {&lists->whole, &lists->masked, &lists->picked}) {
      for (const TensorView* view : {&list->begin, &list->count, &list->start, &list->stop, &list->rows}) {
        check(!view->has_value() || view->device() == context.device, Error::Kind::device, function, ": an array of the plan is on ", view->device(),
              ", the context runs on ", context.device);
        check(!view->has_value() || view->is_contiguous(), Error::Kind::shape, function, ": an array ", view->shape(),
              " of the plan is not contiguous; pack the plan");
      }
    }
  }
}

}  // namespace tilewise::plan::cuda
