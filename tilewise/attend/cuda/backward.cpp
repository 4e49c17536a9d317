// SPDX-License-Identifier: Apache-2.0
#include "tilewise/attend/cuda/backward.h"

#include <mutex>

#include "tilewise/attend/cuda/backward_problem.h"
#include "tilewise/attend/cuda/device.h"
#include "tilewise/attend/cuda/launch.h"
#include "tilewise/attend/cuda/workspace.h"
#include "tilewise/attend/schedule.h"
#include "tilewise/attend/sm90/device_plan.h"
#include "tilewise/plan/complete.h"

namespace tilewise::attend::cuda {
namespace {

using machine::cuda::check_cuda;
using machine::cuda::DeviceScope;

Plan with_both_directions(const Plan& plan, const Context& context) {
  if (plan->by_query.has_runs() == plan->by_key.has_runs()) return plan;  // both, or a plan without a run
  Context device = context, host;
  return copy_to_device(complete(copy_to_host(plan, device), host), device);
}

class BothDirections {
 public:
  BothDirections(const Plan& plan, const Context& context) : plan_(plan), memory_(context.memory) {}

  Plan get(const Context& context) const {
    const std::lock_guard<std::mutex> lock(mutex_);
    Context with = context;
    with.memory = memory_;
    if (!both_) both_ = with_both_directions(plan_, with);
    return both_;
  }

 private:
  Plan plan_;
  std::shared_ptr<Memory> memory_;
  mutable std::mutex mutex_;
  mutable Plan both_;
};

}  // namespace

std::optional<std::string> refusal(const AttendBackwardParams& params) {
  if (auto reason = refusal_of_place(params.forward.q)) return reason;
  return refusal_of_backward(params);
}

Ran backward(const AttendBackwardParams& params, Context& context) {
  const Sizes sizes = check_backward(params, context);
  if (const auto reason = refusal(params)) fail(Error::Kind::unsupported, "attend_backward: cuda: ", *reason);
  context.check_cancel();
  const Ran ran = {.backend = "cuda", .target = target_of(context.device.index), .pairs_read = -1};
  if (sizes.batch == 0) return ran;
  const DeviceScope scope(context.device.index);
  const AttendParams& f = params.forward;
  const bool is_prepared = f.schedule != nullptr && f.schedule->both_directions != nullptr;
  const Plan plan =
      is_prepared ? std::static_pointer_cast<const BothDirections>(f.schedule->both_directions)->get(context) : with_both_directions(f.plan, context);
  const Buffer workspace = device_buffer("attend_backward", backward_workspace(params, *plan, sizes), context);
  const BackwardLaunch launch = backward_launch(params, *plan, sizes, workspace.data());
  for (const int64_t blocks :
       {launch.pool_blocks, launch.delta_blocks, launch.slot_blocks, launch.query_blocks, launch.key_blocks, launch.gather_blocks}) {
    check_blocks("attend_backward", blocks);
  }
  const Dtype dtype = f.q.dtype();
  const auto start = dtype == Dtype::bf16 ? &launch_backward_bf16 : dtype == Dtype::f16 ? &launch_backward_f16 : &launch_backward_f32;
  check_cuda(start(launch, kernel_head_dim(sizes), static_cast<cudaStream_t>(context.stream)), "attend_backward: cuda: the launch failed");
  return ran;
}

std::shared_ptr<const void> prepare_backward(const Plan& plan, const Context& context) {
  return std::make_shared<const BothDirections>(plan, context);
}

}  // namespace tilewise::attend::cuda
