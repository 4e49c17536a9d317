// SPDX-License-Identifier: Apache-2.0
#include "tilewise/attend/sm90/decode.h"

#include <algorithm>

#include "tilewise/attend/check.h"
#include "tilewise/attend/sm90/decode_args.h"
#include "tilewise/attend/sm90/plan_view.h"
#include "tilewise/attend/sm90/workspace.h"
#include "tilewise/machine/cuda/check.h"
#include "tilewise/plan/rows.h"

namespace tilewise::attend::sm90 {
namespace {

using machine::cuda::check_cuda;
using machine::cuda::DeviceScope;

DecodeScale scale_view(const TensorView& view) {
  DecodeScale scale;
  if (!view.has_value()) return scale;
  scale.data = static_cast<const float*>(view.raw());
  scale.stride_entry = view.dim(0) == 1 ? 0 : view.stride(0);
  scale.stride_head = view.dim(1) == 1 ? 0 : view.stride(1);
  scale.stride_group = view.dim(2) == 1 ? 0 : view.stride(2);
  return scale;
}

DecodeStore store_view(const Store& store) {
  DecodeStore view;
  if (!store.has_value()) return view;
  const TensorView& data = store.data;
  const auto bytes = static_cast<int64_t>(size_of(data.dtype()));
  view.storage = !store.is_quantised ? DecodeStorage::plain : store.is_int4 ? DecodeStorage::int4 : DecodeStorage::int8;
  view.data = data.raw();
  view.entries = data.dim(0);
  view.heads = data.dim(1);
  view.rows = data.dim(2);
  view.channels = store.channels;
  view.stride_entry = data.stride(0) * bytes;
  view.stride_head = data.stride(1) * bytes;
  view.stride_row = data.stride(2) * bytes;
  view.scale = scale_view(store.scale);
  view.zero = scale_view(store.zero);
  view.group_tokens = store.group.tokens;
  if (store.table.has_value()) {
    view.table = static_cast<const int32_t*>(store.table.raw());
    view.table_stride_batch = store.table.stride(0);
    view.table_stride_head = store.table.dim(1) == 1 ? 0 : store.table.stride(1);
  }
  return view;
}

DecodeInput decode_input(const DecodeProblem& problem) {
  const DecodeParams& params = problem.params;
  const PlanData& plan = *params.plan;
  const Sizes& sizes = problem.sizes;
  DecodeInput input;
  input.q = params.q.raw();
  input.out = params.out.has_value() ? params.out.raw() : nullptr;
  input.lse = params.lse.has_value() ? static_cast<float*>(params.lse.raw()) : nullptr;
  for (int axis = 0; axis < 3; ++axis) {
    input.q_stride[axis] = params.q.stride(axis);
    if (params.out.has_value()) input.out_stride[axis] = params.out.stride(axis);
    if (params.lse.has_value()) input.lse_stride[axis] = params.lse.stride(axis);
  }
  input.is_bf16 = params.q.dtype() == Dtype::bf16;
  input.batch = static_cast<int>(sizes.batch);
  input.heads_q = sizes.heads_q;
  input.heads_kv = sizes.heads_kv;
  input.seqlen_q = static_cast<int>(sizes.seqlen_q);
  const int64_t capacity = problem.v.has_value() ? std::min(problem.k.capacity, problem.v.capacity) : problem.k.capacity;
  input.capacity = static_cast<int>(std::min(capacity, sizes.seqlen_k));
  for (const Store* store : {&problem.k, &problem.v}) {
    if (store->has_value() && store->table.has_value()) input.page = static_cast<int>(store->page());
  }
  input.k = store_view(problem.k);
  input.v = store_view(problem.v);
  if (params.lengths.has_value()) input.lengths = static_cast<const int32_t*>(params.lengths.raw());
  input.is_dense = params.dense_band.has_value();
  if (!input.is_dense) {
    input.masked = run_list(plan.by_query.masked);
    input.whole = run_list(plan.by_query.whole);
    input.picked = run_list(plan.by_query.picked);
    if (plan.by_query.edge.has_value()) {
      input.edge = static_cast<const int32_t*>(plan.by_query.edge.raw());
      input.num_rows = static_cast<int>(plan.by_query.edge.dim(0)) - 1;
    }
  }
  const Mask& mask = plan.mask;
  for (size_t c = 0; c < mask.bands.size(); ++c) input.bands[c] = band_view(mask.bands[c]);
  std::copy(mask.head_class.begin(), mask.head_class.end(), input.head_class);
  if (params.sink_logit.has_value()) input.sink_logit = static_cast<const float*>(params.sink_logit.raw());
  input.softmax_scale = static_cast<float>(scale_of(params.softmax_scale, sizes.head_dim));
  input.softcap = params.softcap;
  return input;
}

std::optional<std::string> refusal_of_store(const std::string& name, const Store& store) {
  if (!store.is_quantised) return std::nullopt;
  if (store.group.channels < store.channels) {
    return name + " has a scale for " + std::to_string(store.group.channels) + " of " + std::to_string(store.channels) +
           " channels, which is not built; quantise with group.channels 0";
  }
  return std::nullopt;
}

}  // namespace

std::optional<std::string> refusal(const DecodeProblem& problem) {
  const DecodeParams& params = problem.params;
  const TensorView& q = params.q;
  const PlanData& plan = *params.plan;
  if (q.device().type != Device::Type::cuda) return "the tensors are not on a GPU";
  if (q.dtype() != Dtype::bf16 && q.dtype() != Dtype::f16) return "q is " + std::string(name(q.dtype())) + ", which is not built (has bf16, f16)";
  if (plan.mask.bands.empty()) return "the mask is of spans or a grid, which is not built for decode (has bands)";
  if (plan.mask.bands.size() > GeneralArgs::kClasses) {
    return "the mask has more than " + std::to_string(GeneralArgs::kClasses) + " classes of heads";
  }
  if (plan.mask.head_class.size() > GeneralArgs::kHeads) {
    return "the mask has classes for more than " + std::to_string(GeneralArgs::kHeads) + " heads";
  }
  for (const auto& [list_name, list] :
       {std::pair{"whole", &plan.by_query.whole}, std::pair{"masked", &plan.by_query.masked}, std::pair{"picked", &plan.by_query.picked}}) {
    if (auto reason = refusal_of_list(list_name, *list)) return reason;
  }
  if (plan.by_query.edge.has_value() && !plan.by_query.edge.is_contiguous()) return "the plan's edges are not contiguous; pack the plan";
  if (auto reason = refusal_of_store("k", problem.k)) return reason;
  if (auto reason = refusal_of_store("v", problem.v)) return reason;
  if (problem.k.table.has_value() && problem.v.has_value() && problem.v.table.has_value() && problem.k.page() != problem.v.page()) {
    return "k has pages of " + std::to_string(problem.k.page()) + " tokens and v of " + std::to_string(problem.v.page()) + ", takes one size";
  }
  if (const char* const reason = decode_refusal(decode_input(problem))) return reason;
  if (!is_hopper(q.device().index)) {
    return "device " + std::to_string(q.device().index) + " is no GPU of compute capability 9.0, which these kernels are made for";
  }
  return std::nullopt;
}

Ran decode(const DecodeProblem& problem, Context& context) {
  if (const auto reason = refusal(problem)) fail(Error::Kind::unsupported, "attend_decode: sm90: ", *reason);
  context.check_cancel();
  const Ran ran = {.backend = "sm90", .target = "sm_90a", .pairs_read = -1};
  if (problem.sizes.batch == 0) return ran;
  const DeviceScope scope(context.device.index);
  DecodeInput input = decode_input(problem);
  const Buffer workspace = device_buffer("attend_decode", decode_workspace(input), context);
  input.workspace = workspace.data();
  for (DecodeStore* store : {&input.k, &input.v}) {
    if (store->channels == 0 || store->entries * store->heads * store->rows > 0) continue;
    store->data = input.workspace;  // nothing of it is read, but the copy engine wants an address
    store->entries = store->heads = store->rows = 1;
  }
  check_cuda(attend_sm90_decode(input, static_cast<cudaStream_t>(context.stream)), "attend_decode: sm90: the launch failed");
  return ran;
}

}  // namespace tilewise::attend::sm90
