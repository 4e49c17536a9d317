// SPDX-License-Identifier: Apache-2.0
#include "tilewise/select/cuda/inputs_args.h"

#include <cmath>

namespace tilewise::select::cuda {

void require_shapes(const char* function, const Inputs& inputs) {
  const TensorView &q = inputs.q, &k = inputs.k;
  check(q.rank() == 4 && k.rank() == 4 && q.dim(0) == k.dim(0) && q.dim(3) == k.dim(3) && k.dim(1) > 0 && q.dim(1) % k.dim(1) == 0,
        Error::Kind::shape, function, ": q is ", q.shape(), " and k ", k.shape(),
        ", takes [B, Hq, Sq, D] and [B, Hkv, Sk, D] with Hkv a divisor of Hq");
  if (const auto reason = refusal_of(inputs)) fail(Error::Kind::unsupported, function, ": ", *reason);
}

void require_tensors(const char* function, const Inputs& inputs, const Context& context) {
  for (const TensorView* view : {&inputs.q, &inputs.k}) {
    const bool is_q = view == &inputs.q;
    check(view->dtype() == Dtype::f32 || view->dtype() == Dtype::bf16 || view->dtype() == Dtype::f16, Error::Kind::dtype, function, ": ",
          is_q ? "q" : "k", " is ", view->dtype(), ", takes f32, bf16 or f16");
    check(view->numel() == 0 || view->dim(3) == 1 || view->stride(3) == 1, Error::Kind::shape, function, ": the last axis of ", is_q ? "q" : "k",
          " has stride ", view->stride(3), ", takes 1");
    check(view->device() == context.device && context.device.type == Device::Type::cuda, Error::Kind::device, function, ": ", is_q ? "q" : "k",
          " is on ", view->device(), ", the context runs on ", context.device, "; it takes one GPU");
  }
  check(std::isfinite(inputs.softmax_scale) && inputs.softmax_scale > 0 && std::isfinite(inputs.softcap) && inputs.softcap >= 0, Error::Kind::value,
        function, ": softmax_scale is ", inputs.softmax_scale, " and softcap ", inputs.softcap, ", takes a positive and one of 0 or more");
}

void require_scores(const char* function, const Inputs& inputs, const Scores& scores) {
  const Scores fitting = score_space(inputs, scores.tile_k, nullptr);
  const TensorView& values = scores.values.view;
  check(values.dtype() == Dtype::f32 && values.shape() == fitting.values.view.shape() && values.device() == inputs.q.device() &&
            scores.grid.edge == fitting.grid.edge && (values.numel() == 0 || values.stride(3) == 1),
        Error::Kind::value, function, ": scores ", values.shape(), " on ", values.device(), " were not made for these inputs");
}

}  // namespace tilewise::select::cuda
