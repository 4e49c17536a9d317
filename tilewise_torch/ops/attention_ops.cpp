// SPDX-License-Identifier: Apache-2.0
// Operators that plan and attend in one: their outputs have sizes that do not depend on data, so graphs hold them under torch.compile's default settings.
#include "tilewise_torch/ops/attend_with.h"
#include "tilewise_torch/ops/kept_plan.h"
#include "tilewise_torch/ops/method_call.h"

namespace tilewise::ops {
namespace {

std::tuple<TorchTensor, TorchTensor, TorchTensor> attention(const TorchTensor& q, const TorchTensor& k, const TorchTensor& v, const Text& method,
                                                            const Text& options, const Ints& mask, const MaybeTensor& spans,
                                                            const MaybeTensor& order_q, const MaybeTensor& order_k, std::optional<double> scale,
                                                            double softcap, const MaybeTensor& sink_logit, int64_t layer, int64_t seed) {
  return guarded([&] {
    PlacedPlan made = placed_plan_by({method, options, mask, spans, order_q, order_k, scale, softcap, layer, seed}, q, k, v);
    auto [out, lse] = attend_with(made.plan, q, k, v, {scale, softcap, sink_logit});
    return std::tuple(std::move(out), std::move(lse), counts_that_keep(made.plan, std::move(made.tensors)));
  });
}

std::tuple<TorchTensor, TorchTensor, TorchTensor, TorchTensor> attention_backward(
    const TorchTensor& dout, const MaybeTensor& dlse, const TorchTensor& q, const TorchTensor& k, const TorchTensor& v, const TorchTensor& out,
    const TorchTensor& lse, const TorchTensor& counts, const Text& method, const Text& options, const Ints& mask, const MaybeTensor& spans,
    const MaybeTensor& order_q, const MaybeTensor& order_k, std::optional<double> scale, double softcap, const MaybeTensor& sink_logit, int64_t layer,
    int64_t seed) {
  return guarded([&] {
    PlacedPlan made{kept_plan(counts), {}};
    // A method gives the same plan for the same tensors, so this costs time alone.
    if (made.plan == nullptr) made = placed_plan_by({method, options, mask, spans, order_q, order_k, scale, softcap, layer, seed}, q, k, v);
    return attend_backward_with(made.plan, dout, dlse, q, k, v, out, lse, {scale, softcap, sink_logit});
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(tilewise, m) {
  m.def("attention(Tensor q, Tensor k, Tensor v, str method, str options, int[] mask, Tensor? spans, Tensor? order_q, Tensor? order_k, float? scale, "
        "float softcap, Tensor? sink_logit, int layer, int seed) -> (Tensor, Tensor, Tensor)");
  m.def("attention_backward(Tensor dout, Tensor? dlse, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, Tensor counts, str method, str options, "
        "int[] mask, Tensor? spans, Tensor? order_q, Tensor? order_k, float? scale, float softcap, Tensor? sink_logit, int layer, int seed) -> "
        "(Tensor, Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(tilewise, CPU, m) {
  m.impl("attention", TORCH_BOX(&attention));
  m.impl("attention_backward", TORCH_BOX(&attention_backward));
}

STABLE_TORCH_LIBRARY_IMPL(tilewise, CUDA, m) {
  m.impl("attention", TORCH_BOX(&attention));
  m.impl("attention_backward", TORCH_BOX(&attention_backward));
}

}  // namespace tilewise::ops
