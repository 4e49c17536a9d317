// SPDX-License-Identifier: Apache-2.0
#include "tilewise/attend/sm90/forward.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <string_view>

#include "tilewise/attend/check.h"
#include "tilewise/attend/cuda/launch.h"
#include "tilewise/attend/cuda/problem.h"
#include "tilewise/attend/sm90/operands.h"
#include "tilewise/attend/sm90/plan_view.h"
#include "tilewise/attend/sm90/schedule.h"
#include "tilewise/attend/sm90/workspace.h"
#include "tilewise/machine/cuda/check.h"
#include "tilewise/plan/rows.h"

namespace tilewise::attend::sm90 {
namespace {

using machine::cuda::check_cuda;
using machine::cuda::DeviceScope;
using machine::sm90::Tensor16;

constexpr int kMostChannels = 256;

bool is_asked_for(const char* variable) {
  const char* const value = std::getenv(variable);
  return value != nullptr && std::string_view(value) == "1";
}

std::optional<std::string> refusal_of_plan(const PlanData& plan) {
  if (!plan.pools.empty() && !takes_pools())
    return "pooled keys are left to attend/cuda until they have been measured; TILEWISE_SM90_POOLS=1 takes them";
  if (plan.pools.size() >= KeyParts::kMost) return text("the plan has ", plan.pools.size(), " pools, above ", KeyParts::kMost - 1);
  if (!plan.by_query.has_runs() && plan.by_key.has_runs()) return "the plan has only by_key, this backend reads by_query; complete() the plan";
  return cuda::refusal_of_arrays(plan, plan.by_query);
}

OrderView order_view(const Order& order) {
  OrderView view;
  if (!order.token.has_value()) return view;
  view.token = static_cast<const int32_t*>(order.token.raw());
  view.batch = static_cast<int>(order.token.dim(0));
  view.groups = static_cast<int>(order.token.dim(1));
  return view;
}

ForwardInput forward_input(const AttendParams& params, const Sizes& sizes) {
  const PlanData& plan = *params.plan;
  ForwardInput input;
  input.q = tensor16(params.q);
  input.k = tensor16(params.k);
  input.v = tensor16(params.v);
  input.out = tensor16(params.out);
  if (sizes.seqlen_k == 0) {  // nothing of k or v is read, but the copy engine wants an address
    input.k.data = input.q.data;
    if (params.v.has_value()) input.v.data = input.q.data;
  }
  if (params.lse.has_value()) {
    input.lse = static_cast<float*>(params.lse.raw());
    input.lse_stride_batch = params.lse.stride(0);
    input.lse_stride_head = params.lse.stride(1);
  }
  input.softmax_scale = static_cast<float>(scale_of(params.softmax_scale, sizes.head_dim));
  input.masked = run_list(plan.by_query.masked);
  input.whole = run_list(plan.by_query.whole);
  if (!plan.mask.bands.empty()) input.band = band_view(plan.mask.bands.front());
  input.tile = plan.by_query.tile;
  return input;
}

// The plain kernel copies whole column blocks.
bool is_built_head_dim(int64_t head_dim) { return head_dim == 64 || head_dim == 128 || head_dim == 256; }

// Whether the plain kernel leaves out something that the problem needs.
bool needs_general(const AttendParams& params) {
  const PlanData& plan = *params.plan;
  const Lists& lists = plan.by_query;
  const bool has_classes = plan.mask.bands.size() != 1 && !plan.mask.head_class.empty();
  const bool has_tile = lists.tile == 128 || (lists.tile == 64 && params.q.dim(3) <= 128);
  return !has_tile || !plan.pools.empty() || lists.edge.has_value() || lists.picked.has_runs() || lists.masked.rows.has_value() ||
         lists.whole.rows.has_value() || plan.order_q.token.has_value() || plan.order_k.token.has_value() || plan.mask.bands.empty() || has_classes ||
         params.softcap != 0 || params.sink_logit.has_value() || !params.out.has_value() || !is_built_head_dim(params.q.dim(3)) ||
         params.v.dim(3) != params.q.dim(3);
}

GeneralInput general_input(const AttendParams& params) {
  const PlanData& plan = *params.plan;
  GeneralInput input;
  input.picked = run_list(plan.by_query.picked);
  if (plan.by_query.edge.has_value()) {
    input.edge = static_cast<const int32_t*>(plan.by_query.edge.raw());
    input.num_rows = static_cast<int>(plan.by_query.edge.dim(0)) - 1;
  }
  input.slots_q = static_cast<int>(plan::slots_q(plan));
  input.slots_k = static_cast<int>(plan::slots_k(plan));
  input.order_q = order_view(plan.order_q);
  input.order_k = order_view(plan.order_k);
  input.parts.end[0] = input.slots_k;
  cuda::set_mask(input, plan.mask);
  if (params.sink_logit.has_value()) input.sink_logit = static_cast<const float*>(params.sink_logit.raw());
  input.softcap = params.softcap;
  return input;
}

Tensor16 tensor16(const cuda::TensorArg& mean, const Sizes& sizes, int pooled, bool is_bf16) {
  Tensor16 tensor;
  tensor.data = const_cast<void*>(mean.data);
  tensor.is_bf16 = is_bf16;
  tensor.batch = static_cast<int>(sizes.batch);
  tensor.heads = mean.heads;
  tensor.seqlen = pooled;
  tensor.head_dim = mean.channels;
  tensor.stride_batch = mean.stride_batch;
  tensor.stride_head = mean.stride_head;
  tensor.stride_token = mean.stride_row;
  return tensor;
}

// Means of the pools into `workspace`, and what the kernel reads of them.
cudaError_t pool(const AttendParams& params, const Sizes& sizes, GeneralInput& input, void* workspace, cudaStream_t stream) {
  cuda::PlanArgs plan;
  cuda::set_plan(plan, *params.plan, sizes, false, 128);
  cuda::WorkspaceParts space(workspace);
  const cuda::Pools pools = cuda::make_pools(params, sizes, plan, space);
  if (pools.blocks == 0) return cudaSuccess;
  const bool is_bf16 = params.q.dtype() == Dtype::bf16;
  const int pooled = static_cast<int>(plan.pooled);
  input.pooled_k = tensor16(pools.k, sizes, pooled, is_bf16);
  if (params.v.has_value()) input.pooled_v = tensor16(pools.v, sizes, pooled, is_bf16);
  input.parts.count = plan.axis_k.parts;
  for (int part = 0; part < plan.axis_k.parts; ++part) input.parts.end[part] = static_cast<int>(plan.axis_k.end[part]);
  input.pooled_token = plan.pooled_token;
  input.pooled_count = plan.pooled_count;
  return is_bf16 ? cuda::launch_pools_bf16(pools.args, pools.blocks, stream) : cuda::launch_pools_f16(pools.args, pools.blocks, stream);
}

}  // namespace

std::atomic<bool>& splits_rows() {
  static std::atomic<bool> is_on = is_asked_for("TILEWISE_SM90_SPLIT");
  return is_on;
}

std::atomic<bool>& takes_pools() {
  static std::atomic<bool> is_on = is_asked_for("TILEWISE_SM90_POOLS");
  return is_on;
}

std::optional<std::string> refusal(const AttendParams& params) {
  struct Named {
    const char* name;
    const TensorView& view;
  };
  for (const Named& operand : {Named{"q", params.q}, Named{"k", params.k}, Named{"v", params.v}, Named{"out", params.out}}) {
    if (!operand.view.has_value()) continue;
    if (auto reason = refusal_of_operand(operand.name, operand.view, kMostChannels)) return reason;
  }
  if (params.in_slots) return "in_slots is not built; give q, k and v in token order";
  if (auto reason = refusal_of_plan(*params.plan)) return reason;
  for (const TensorView* view : {&params.k, &params.v}) {
    if (!params.plan->pools.empty() && view->has_value() && view->dim(3) % 8 != 0)
      return text("pools take channels in multiples of 8, got ", view->dim(3));
  }
  if (!is_hopper(params.q.device().index)) return text(params.q.device(), " is no GPU of compute capability 9.0, which these kernels are made for");
  return std::nullopt;
}

Ran forward(const AttendParams& params, Context& context) {
  const Sizes sizes = check_forward(params, context);
  if (const auto reason = refusal(params)) fail(Error::Kind::unsupported, "attend_forward: sm90: ", *reason);
  context.check_cancel();
  const Ran ran = {.backend = "sm90", .target = "sm_90a", .pairs_read = -1};
  if (sizes.batch == 0 || sizes.seqlen_q == 0) return ran;
  const DeviceScope scope(context.device.index);
  const auto stream = static_cast<cudaStream_t>(context.stream);
  ForwardInput input = forward_input(params, sizes);
  GeneralInput general;
  const bool is_general = needs_general(params);
  if (is_general) general = general_input(params);
  const GeneralInput* const parts = is_general ? &general : nullptr;
  Buffer means;
  if (!params.plan->pools.empty()) {
    means = device_buffer("attend_forward", cuda::forward_workspace(params, sizes), context);
    check_cuda(pool(params, sizes, general, means.data(), stream), "attend_forward: sm90: the means of the pools");
  }
  const int64_t items = sizes.batch * sizes.heads_q * items_per_head(input, parts);
  check(items < (int64_t{1} << 30), Error::Kind::unsupported, "attend_forward: sm90: ", items, " rows, takes fewer than 2^30; split the batch");
  Buffer schedule;
  int multiprocessors = 0;
  check_cuda(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, context.device.index), "attend_forward: sm90");
  const bool is_split = !is_general && splits_rows() && can_split(input, multiprocessors);
  // Up to two rows a thread block it begins one block for each instead: that costs less than a launch more.
  if (items > 2 * int64_t{multiprocessors} * blocks_per_multiprocessor(input, parts) || is_split) {
    schedule = device_buffer("attend_forward", schedule_ints(items) * sizeof(int32_t), context);
    check_cuda(make_schedule(input, parts, static_cast<int32_t*>(schedule.data()), stream), "attend_forward: sm90: the order of rows");
  }
  Buffer split;
  if (is_split) {
    split = device_buffer("attend_forward", split_bytes(input, multiprocessors), context);
    check_cuda(make_split(input, static_cast<const int32_t*>(schedule.data()), split.data(), multiprocessors, stream),
               "attend_forward: sm90: the last rows' parts");
  }
  check_cuda(attend_sm90_forward(input, parts, kPlain, stream), "attend_forward: sm90: the launch failed");
  return ran;
}

}  // namespace tilewise::attend::sm90
