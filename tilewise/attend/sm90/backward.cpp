// SPDX-License-Identifier: Apache-2.0
#include "tilewise/attend/sm90/backward.h"

#include <algorithm>
#include <array>
#include <limits>
#include <memory>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

#include "tilewise/attend/check.h"
#include "tilewise/attend/schedule.h"
#include "tilewise/attend/sm90/backward_args.h"
#include "tilewise/attend/sm90/backward_slots.h"
#include "tilewise/attend/sm90/backward_steps.h"
#include "tilewise/attend/sm90/device_plan.h"
#include "tilewise/attend/sm90/operands.h"
#include "tilewise/attend/sm90/plan_view.h"
#include "tilewise/attend/sm90/workspace.h"
#include "tilewise/machine/cuda/check.h"
#include "tilewise/plan/cuda/launch.h"

namespace tilewise::attend::sm90 {
namespace {

using machine::cuda::check_cuda;
using machine::cuda::DeviceScope;
using machine::sm90::Tensor16;

constexpr int kMostChannels = 128;

// The order of work in device memory, or on its way there.
struct StepsOnDevice {
  StepsArgs args;
  std::vector<Buffer> buffers;
  bool may_lack_room = false;
};

void* add_buffer(StepsOnDevice& made, size_t bytes, const Context& context) {
  made.buffers.push_back(device_buffer("attend_backward", bytes, context));
  return made.buffers.back().data();
}

void check_order(cudaError_t error) { check_cuda(error, "attend_backward: sm90: the order of work"); }

StepsArgs order_of(const PlanData& plan, int heads_kv, int tile_q, const Context& context) {
  int multiprocessors = 0;
  check_order(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, context.device.index));
  return steps_args(plan, heads_kv, tile_q, multiprocessors);
}

// With as much room as it takes, which the device is asked for: waits.
StepsOnDevice make_exactly(const StepsArgs& sizes, const Context& context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  const StepsRoom most = most_steps_room(sizes);
  StepsOnDevice made;
  for (int64_t patterns = 1 << 12;; patterns *= 8) {
    made = {.args = sizes, .buffers = {}};
    StepsArgs& args = made.args;
    args.room = {.steps = most.steps, .patterns = std::min(patterns, most.patterns)};
    const Buffer scratch = device_buffer("attend_backward", place_steps_scratch(args, nullptr), context);
    place_steps_scratch(args, scratch.data());
    place_items(args, add_buffer(made, place_items(args, nullptr), context));
    args.patterns = static_cast<uint64_t*>(add_buffer(made, pattern_bytes(args), context));
    check_order(launch_dealt_items(args, stream));
    std::array<unsigned long long, kStatusWords> status{};
    check_order(cudaMemcpyAsync(status.data(), args.status, sizeof(status), cudaMemcpyDeviceToHost, stream));
    check_order(cudaStreamSynchronize(stream));
    if (status[kPatternsOutgrown] != 0) {
      check(args.room.patterns < most.patterns, Error::Kind::unsupported, "attend_backward: sm90: the plan has more than ", BackwardStep::kEvery,
            " tiles that differ in their pairs; give runs that are multiples of 64 queries and ", kKeyTile, " keys");
      continue;
    }
    args.room.steps = static_cast<int64_t>(status[kSteps]);
    args.steps = static_cast<uint64_t*>(add_buffer(made, step_bytes(args), context));
    check_order(launch_walked_steps(args, stream));
    check_order(cudaStreamSynchronize(stream));
    return made;
  }
}

bool is_capturing(const Context& context) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  check_order(cudaStreamIsCapturing(static_cast<cudaStream_t>(context.stream), &status));
  return status != cudaStreamCaptureStatusNone;
}

// For one call. Waits only where room for whatever the plan's shape allows would be too much; under capture nothing may, so that the room may be too little.
StepsOnDevice make_for_call(const StepsArgs& sizes, const Context& context) {
  constexpr size_t kMostBytes = size_t{1} << 30;
  StepsOnDevice made = {.args = sizes, .buffers = {}};
  StepsArgs& args = made.args;
  args.room = most_steps_room(args);
  if (pattern_bytes(args) + step_bytes(args) + place_steps_scratch(args, nullptr) > kMostBytes) {
    if (!is_capturing(context)) return make_exactly(sizes, context);
    const int64_t patterns = static_cast<int64_t>(kMostBytes / 2 / (kKeyTile * sizeof(uint64_t))) / args.words();
    made.may_lack_room = patterns < args.room.patterns;
    args.room.patterns = std::min(args.room.patterns, patterns);
  }
  place_steps_scratch(args, add_buffer(made, place_steps_scratch(args, nullptr), context));
  place_items(args, add_buffer(made, place_items(args, nullptr), context));
  args.patterns = static_cast<uint64_t*>(add_buffer(made, pattern_bytes(args), context));
  args.steps = static_cast<uint64_t*>(add_buffer(made, step_bytes(args), context));
  const auto stream = static_cast<cudaStream_t>(context.stream);
  check_order(launch_dealt_items(args, stream));
  check_order(launch_walked_steps(args, stream));
  return made;
}

// Made for the class of head_dim that is asked for first; the other when it is.
class BackwardSchedule {
 public:
  BackwardSchedule(const Plan& plan, int heads_kv, const Context& context) : plan_(plan), heads_kv_(heads_kv), memory_(context.memory) {}

  const StepsOnDevice& steps(int tile_q, const Context& context) const {
    const std::lock_guard<std::mutex> lock(mutex_);
    std::unique_ptr<StepsOnDevice>& made = made_[tile_q == 64 ? 0 : 1];
    if (!made) {
      Context with = context;
      with.memory = memory_;
      made = std::make_unique<StepsOnDevice>(make_exactly(order_of(*plan_, heads_kv_, tile_q, context), with));
    }
    return *made;
  }

 private:
  Plan plan_;
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
  input.items = steps.args.items;
  input.first_item = steps.args.first_item;
  input.steps = steps.args.steps;
  input.patterns = steps.args.patterns;
  input.thread_blocks = steps.args.num_items() == 0 ? 0 : steps.args.thread_blocks;
  if (steps.may_lack_room) input.status = steps.args.status;
  return input;
}

// The caller's tensors in the order of slots, in one buffer; their gradients go back from there.
class InSlots {
 public:
  InSlots(const AttendBackwardParams& params, const BackwardInput& caller, const Context& context)
      : stream_(static_cast<cudaStream_t>(context.stream)), input_(caller) {
    const PlanData& plan = *params.forward.plan;
    set_axis(queries_, plan.order_q, caller.q, static_cast<int>(plan::slots_q(plan)), params.forward.in_slots);
    set_axis(keys_, plan.order_k, caller.k, static_cast<int>(plan::slots_k(plan)), params.forward.in_slots);
    for (const int group : plan.pools) keys_.group[keys_.pools++] = group;
    queries_back_ = queries_;
    keys_back_ = keys_;
    queries_back_.is_back = keys_back_.is_back = true;
    const size_t bytes = place(caller, nullptr);
    buffer_ = device_buffer("attend_backward", bytes, context);
    place(caller, static_cast<std::byte*>(buffer_.data()));
    check_cuda(launch_moved_rows(queries_, stream_), "attend_backward: sm90: into slots");
    check_cuda(launch_moved_rows(keys_, stream_), "attend_backward: sm90: into slots");
  }
  const BackwardInput& input() const { return input_; }
  void move_back() const {
    check_cuda(launch_moved_rows(queries_back_, stream_), "attend_backward: sm90: from slots");
    check_cuda(launch_moved_rows(keys_back_, stream_), "attend_backward: sm90: from slots");
  }

 private:
  static void set_axis(MoveRowsArgs& args, const Order& order, const Tensor16& tensor, int slots, bool is_in_slots) {
    if (order.token.has_value()) {
      args.token = static_cast<const int32_t*>(order.token.raw());
      args.order_batch = static_cast<int>(order.token.dim(0));
      args.order_groups = static_cast<int>(order.token.dim(1));
    }
    args.batch = tensor.batch;
    args.heads = tensor.heads;
    args.slots = slots;
    args.is_in_slots = is_in_slots;
    args.is_bf16 = tensor.is_bf16;
  }
  static SlotRows rows_of(const Tensor16& tensor) {
    return {static_cast<uint16_t*>(tensor.data), tensor.stride_batch, tensor.stride_head, tensor.stride_token, tensor.head_dim};
  }

  size_t place(const BackwardInput& caller, std::byte* memory) {
    size_t total = 0;
    const auto take = [&](int64_t bytes) {
      std::byte* const part = memory == nullptr ? nullptr : memory + total;
      total += (static_cast<size_t>(bytes) + 255) / 256 * 256;
      return part;
    };
    const auto place_tensor = [&](const Tensor16& of_caller, Tensor16& in_slots, MoveRowsArgs& args, int number) {
      in_slots = of_caller;
      in_slots.seqlen = args.slots * (1 + args.pools);
      in_slots.stride_token = (of_caller.head_dim + 7) / 8 * 8;
      in_slots.stride_head = in_slots.stride_token * in_slots.seqlen;
      in_slots.stride_batch = in_slots.stride_head * of_caller.heads;
      in_slots.data = take(in_slots.stride_batch * of_caller.batch * 2);
      args.of_caller[number] = rows_of(of_caller);
      args.of_slots[number] = rows_of(in_slots);
    };
    place_tensor(caller.q, input_.q, queries_, 0);
    place_tensor(caller.out, input_.out, queries_, 1);
    place_tensor(caller.dout, input_.dout, queries_, 2);
    place_tensor(caller.k, input_.k, keys_, 0);
    place_tensor(caller.v, input_.v, keys_, 1);
    place_tensor(caller.dq, input_.dq, queries_back_, 0);
    place_tensor(caller.dk, input_.dk, keys_back_, 0);
    place_tensor(caller.dv, input_.dv, keys_back_, 1);
    const auto place_numbers = [&](const float* of_caller, const int64_t(&from)[3], const float*& in_slots, int64_t(&strides)[3], int number,
                                   float padding) {
      if (of_caller == nullptr) return;
      auto* const data = reinterpret_cast<float*>(take(int64_t{queries_.batch} * queries_.heads * queries_.slots * 4));
      in_slots = data;
      strides[0] = int64_t{queries_.heads} * queries_.slots;
      strides[1] = queries_.slots;
      strides[2] = 1;
      queries_.numbers_of_caller[number] = {const_cast<float*>(of_caller), from[0], from[1], from[2], 0};
      queries_.numbers_of_slots[number] = {data, strides[0], strides[1], strides[2], padding};
    };
    place_numbers(caller.lse, caller.lse_strides, input_.lse, input_.lse_strides, 0, -std::numeric_limits<float>::infinity());
    place_numbers(caller.dlse, caller.dlse_strides, input_.dlse, input_.dlse_strides, 1, 0);
    return total;
  }

  cudaStream_t stream_;
  BackwardInput input_;
  MoveRowsArgs queries_, keys_, queries_back_, keys_back_;
  Buffer buffer_;
};

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
  const PlanData& plan = *f.plan;
  if (auto reason = cuda::refusal_of_arrays(plan, plan.by_query)) return reason;
  if (plan.pools.size() > MoveRowsArgs::kPools) return text("the plan has ", plan.pools.size(), " pools, takes up to ", MoveRowsArgs::kPools);
  const TensorView& order_k = plan.order_k.token;
  if (order_k.has_value() && f.k.dim(1) % order_k.dim(1) != 0) {
    return text("order_k has ", order_k.dim(1), " head groups, takes a divisor of ", f.k.dim(1),
                " heads of k; give one order to the query heads of a head of k");
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
  const int64_t head_dim = std::max(sizes.head_dim, sizes.head_dim_v);
  const int tile_q = backward_tile_q(head_dim);
  StepsOnDevice own;
  if (f.schedule == nullptr) own = make_for_call(order_of(*f.plan, sizes.heads_kv, tile_q, context), context);
  const StepsOnDevice& steps =
      f.schedule == nullptr ? own : std::static_pointer_cast<const BackwardSchedule>(f.schedule->on_device)->steps(tile_q, context);
  const BackwardInput input = backward_input(params, sizes, steps);
  const bool has_order = f.plan->order_q.token.has_value() || f.plan->order_k.token.has_value() || !f.plan->pools.empty();
  std::optional<InSlots> in_slots;
  if (has_order) in_slots.emplace(params, input, context);
  const BackwardInput& run = has_order ? in_slots->input() : input;
  const size_t bytes = backward_workspace(sizes.batch, sizes.heads_q, run.q.seqlen, static_cast<int>(head_dim)).total();
  const Buffer workspace = device_buffer("attend_backward", bytes, context);
  check_cuda(attend_sm90_backward(run, workspace.data(), static_cast<cudaStream_t>(context.stream)), "attend_backward: sm90: the launch failed");
  if (has_order) in_slots->move_back();
  return ran;
}

std::shared_ptr<const void> prepare_backward(const Plan& plan, int heads_kv, const Context& context) {
  plan::cuda::require_on_device("attend_prepare", *plan, context);
  const DeviceScope scope(context.device.index);
  return std::make_shared<const BackwardSchedule>(plan, heads_kv, context);
}

}  // namespace tilewise::attend::sm90
