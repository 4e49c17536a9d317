// SPDX-License-Identifier: Apache-2.0
#include "tilewise_torch/ops/method_call.h"

#include "tilewise/methods/registry.h"

namespace tilewise::ops {

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
  check(context.device.type == Device::Type::cpu, Error::Kind::unsupported, "plan: ", method, " runs on the CPU, q is on ", context.device,
        "; plan with q.cpu() and k.cpu(), then move the plan with Plan.to");
  return plan_with(method, problem, parse_options(method, call.options.value), context).plan;
}

}  // namespace tilewise::ops
