// SPDX-License-Identifier: Apache-2.0
#include "tilewise_torch/ops/method_call.h"

#include "tilewise/methods/registry.h"

namespace tilewise::ops {
namespace {

TorchTensor on_host(const TorchTensor& tensor) {
  const TensorView view = view_of(tensor);
  TorchTensor copy = empty_on_host(view.shape(), view.dtype());
  return torch::stable::copy_(copy, tensor);
}
MaybeTensor on_host(const MaybeTensor& tensor) { return tensor.has_value() ? MaybeTensor(on_host(*tensor)) : tensor; }

}  // namespace

Plan plan_by(const MethodCall& call, const TorchTensor& q_in, const TorchTensor& k_in, const MaybeTensor& v_in) {
  const TorchTensor q = with_contiguous_rows(q_in), k = with_contiguous_rows(k_in);
  const MaybeTensor v = with_contiguous_rows(v_in);
  Problem problem;
  problem.q = view_of(q);
  problem.k = view_of(k);
  problem.v = view_of(v);
  problem.mask = mask_of(call.mask, call.spans);
  problem.order_q.token = view_of(call.order_q);
  problem.order_k.token = view_of(call.order_k);
  if (call.scale.has_value()) problem.softmax_scale = static_cast<float>(*call.scale);
  problem.softcap = static_cast<float>(call.softcap);
  problem.layer = as_int("layer", call.layer);
  problem.seed = static_cast<uint64_t>(call.seed);
  Context context = context_of(q);
  const std::string& method = call.method.value;
  const OptionValues options = parse_options(method, call.options.value);
  if (context.device.type == Device::Type::cpu) return plan_with(method, problem, options, context).plan;
  try {
    return plan_with(method, problem, options, context).plan;
  } catch (const Error& error) {
    if (error.kind() != Error::Kind::unsupported && error.kind() != Error::Kind::device) throw;
    fail(Error::Kind::unsupported, error.what(), "; or plan with q.cpu() and k.cpu() and move the plan with Plan.to");
  }
}

PlacedPlan placed_plan_by(const MethodCall& call, const TorchTensor& q, const TorchTensor& k, const TorchTensor& v) {
  PlacedPlan placed;
  try {
    placed.plan = plan_by(call, q, k, v);
    for (const MaybeTensor* tensor : {&call.spans, &call.order_q, &call.order_k}) {
      if (tensor->has_value()) placed.tensors.push_back(**tensor);
    }
    return placed;
  } catch (const Error& error) {
    if (error.kind() != Error::Kind::unsupported || view_of(q).device().type == Device::Type::cpu) throw;
  }
  const MaybeTensor spans = on_host(call.spans), order_q = on_host(call.order_q), order_k = on_host(call.order_k);
  MethodCall there{call.method, call.options, call.mask, spans, order_q, order_k, call.scale, call.softcap, call.layer, call.seed};
  const auto [memory, layout] = tensors_of(plan_by(there, on_host(q), on_host(k), on_host(v)));
  TorchTensor moved = empty({memory.size(0)}, Dtype::u8, q);
  torch::stable::copy_(moved, memory);
  placed.plan = plan_of(moved, layout);
  placed.tensors.push_back(std::move(moved));
  return placed;
}

}  // namespace tilewise::ops
