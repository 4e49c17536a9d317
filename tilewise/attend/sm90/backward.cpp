// SPDX-License-Identifier: Apache-2.0
#include "tilewise/attend/sm90/backward.h"

#include <array>
#include <mutex>
#include <utility>

#include "tilewise/attend/check.h"
#include "tilewise/attend/schedule.h"
#include "tilewise/attend/sm90/backward_args.h"
#include "tilewise/attend/sm90/backward_steps.h"
#include "tilewise/attend/sm90/device_plan.h"
#include "tilewise/attend/sm90/operands.h"
#include "tilewise/attend/sm90/plan_view.h"
#include "tilewise/attend/sm90/workspace.h"
#include "tilewise/machine/cuda/check.h"

namespace tilewise::attend::sm90 {
namespace {

using machine::cuda::check_cuda;
using machine::cuda::DeviceScope;
using machine::sm90::Tensor16;

constexpr int kMostChannels = 128;

// The order of work in device memory.
struct StepsOnDevice {
  Buffer buffer;
  const BackwardItem* items = nullptr;
  const int32_t* first_item = nullptr;
  const uint64_t* steps = nullptr;
  const uint64_t* patterns = nullptr;
  int thread_blocks = 0;  // 0: no item
};

// Made for the class of head_dim that is asked for first; the other when it is.
class BackwardSchedule {
 public:
  BackwardSchedule(const Plan& plan, int heads_kv, const Context& context)
      : plan_(copy_to_host(plan, context)), heads_kv_(heads_kv), memory_(context.memory) {}

  const StepsOnDevice& steps(int tile_q, const Context& context) const {
    const std::lock_guard<std::mutex> lock(mutex_);
    std::unique_ptr<StepsOnDevice>& made = made_[tile_q == 64 ? 0 : 1];
    if (!made) made = make(tile_q, context);
    return *made;
  }

 private:
  std::unique_ptr<StepsOnDevice> make(int tile_q, const Context& context) const {
    int multiprocessors = 0;
    check_cuda(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, context.device.index), "attend_backward: sm90");
    const BackwardSteps host = make_backward_steps(*plan_, heads_kv_, tile_q, multiprocessors, context);
    auto made = std::make_unique<StepsOnDevice>();
    if (host.items.empty()) return made;
    const auto padded = [](size_t bytes) { return (bytes + 255) / 256 * 256; };
    const std::array<std::pair<const void*, size_t>, 4> parts{{{host.items.data(), host.items.size() * sizeof(BackwardItem)},
                                                               {host.first_item.data(), host.first_item.size() * sizeof(int32_t)},
                                                               {host.steps.data(), host.steps.size() * sizeof(uint64_t)},
                                                               {host.patterns.data(), host.patterns.size() * sizeof(uint64_t)}}};
    size_t total = 0;
    for (const auto& [data, bytes] : parts) total += padded(bytes);
    Context with = context;
    with.memory = memory_;
    made->buffer = device_buffer("attend_backward", total, with);
    const auto stream = static_cast<cudaStream_t>(context.stream);
    std::array<std::byte*, 4> at{};
    auto* next = static_cast<std::byte*>(made->buffer.data());
    for (size_t i = 0; i < parts.size(); ++i) {
      const auto& [data, bytes] = parts[i];
      at[i] = next;
      if (bytes > 0) check_cuda(cudaMemcpyAsync(next, data, bytes, cudaMemcpyHostToDevice, stream), "attend_backward: sm90: the order of work");
      next += padded(bytes);
    }
    check_cuda(cudaStreamSynchronize(stream), "attend_backward: sm90: the order of work");
    made->items = reinterpret_cast<const BackwardItem*>(at[0]);
    made->first_item = reinterpret_cast<const int32_t*>(at[1]);
    made->steps = reinterpret_cast<const uint64_t*>(at[2]);
    made->patterns = reinterpret_cast<const uint64_t*>(at[3]);
    made->thread_blocks = multiprocessors;
    return made;
  }

  Plan plan_;  // on the host
  int heads_kv_;
  std::shared_ptr<Memory> memory_;
  mutable std::mutex mutex_;
  mutable std::array<std::unique_ptr<StepsOnDevice>, 2> made_;
};

void set_strides(int64_t (&strides)[3], const TensorView& view) {
  for (int axis = 0; axis < 3; ++axis) strides[axis] = view.stride(axis);
}

BackwardInput backward_input(const AttendBackwardParams& params, const Sizes& sizes, const StepsOnDevice& steps) {
  const AttendParams& f = params.forward;
  BackwardInput input;
  input.q = tensor16(f.q);
  input.k = tensor16(f.k);
  input.v = tensor16(f.v);
  input.out = tensor16(f.out);
  input.dout = tensor16(params.dout);
  input.dq = tensor16(params.dq);
  input.dk = tensor16(params.dk);
  input.dv = tensor16(params.dv);
  if (sizes.seqlen_q == 0) input.q.data = input.dout.data = input.k.data;  // nothing of them is read, but the copy engine wants an address
  input.lse = static_cast<const float*>(f.lse.raw());
  set_strides(input.lse_strides, f.lse);
  if (params.dlse.has_value()) {
    input.dlse = static_cast<const float*>(params.dlse.raw());
    set_strides(input.dlse_strides, params.dlse);
  }
  if (params.dsink_logit.has_value()) {
    input.sink_logit = static_cast<const float*>(f.sink_logit.raw());
    input.dsink_logit = static_cast<float*>(params.dsink_logit.raw());
  }
  input.softmax_scale = static_cast<float>(scale_of(f.softmax_scale, sizes.head_dim));
  input.softcap = f.softcap;
  input.items = steps.items;
  input.first_item = steps.first_item;
  input.steps = steps.steps;
  input.patterns = steps.patterns;
  input.thread_blocks = steps.thread_blocks;
  return input;
}

}  // namespace

std::optional<std::string> refusal(const AttendBackwardParams& params) {
  struct Named {
    const char* name;
    const TensorView& view;
  };
  const AttendParams& f = params.forward;
  for (const Named& operand : {Named{"q", f.q}, Named{"k", f.k}, Named{"v", f.v}, Named{"out", f.out}, Named{"dout", params.dout},
                               Named{"dq", params.dq}, Named{"dk", params.dk}, Named{"dv", params.dv}}) {
    if (auto reason = refusal_of_operand(operand.name, operand.view, kMostChannels)) return reason;
  }
  if (f.in_slots) return "in_slots is not built; give q, k and v in token order";
  const PlanData& plan = *f.plan;
  if (!plan.pools.empty()) return "gradients through pooled keys are not built";
  if (plan.order_q.token.has_value() || plan.order_k.token.has_value()) {
    return "gradients through an order are not built; reorder q, k and v, and plan for them as they then stand";
  }
  if (!plan.by_query.has_runs() && plan.by_key.has_runs()) return "the plan has only by_key, this backend reads by_query; complete() the plan";
  if (f.v.dim(1) != f.k.dim(1)) return "one head of v for all heads of k is not built; repeat v";
  if (params.dq.raw() == params.dk.raw() || params.dq.raw() == params.dv.raw() || params.dk.raw() == params.dv.raw()) {
    if (params.dk.numel() > 0) return "gradients in one tensor are not built; give each its own";
  }
  if (!is_hopper(f.q.device().index)) return text(f.q.device(), " is no GPU of compute capability 9.0, which these kernels are made for");
  return std::nullopt;
}

Ran backward(const AttendBackwardParams& params, Context& context) {
  const Sizes sizes = check_backward(params, context);
  if (const auto reason = refusal(params)) fail(Error::Kind::unsupported, "attend_backward: sm90: ", *reason);
  context.check_cancel();
  const Ran ran = {.backend = "sm90", .target = "sm_90a", .pairs_read = -1};
  if (sizes.batch == 0) return ran;
  const DeviceScope scope(context.device.index);
  const AttendParams& f = params.forward;
  const auto schedule = f.schedule != nullptr ? std::static_pointer_cast<const BackwardSchedule>(f.schedule->on_device)
                                              : std::make_shared<const BackwardSchedule>(f.plan, sizes.heads_kv, context);
  const int64_t head_dim = std::max(sizes.head_dim, sizes.head_dim_v);
  const BackwardInput input = backward_input(params, sizes, schedule->steps(backward_tile_q(head_dim), context));
  const size_t bytes = backward_workspace(sizes.batch, sizes.heads_q, sizes.seqlen_q, static_cast<int>(head_dim)).total();
  const Buffer workspace = device_buffer("attend_backward", bytes, context);
  check_cuda(attend_sm90_backward(input, workspace.data(), static_cast<cudaStream_t>(context.stream)), "attend_backward: sm90: the launch failed");
  return ran;
}

std::shared_ptr<const void> prepare_backward(const Plan& plan, int heads_kv, const Context& context) {
  const DeviceScope scope(context.device.index);
  return std::make_shared<const BackwardSchedule>(plan, heads_kv, context);
}

}  // namespace tilewise::attend::sm90
