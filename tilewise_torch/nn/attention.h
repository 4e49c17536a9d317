// SPDX-License-Identifier: Apache-2.0
#pragma once
// Attention over a plan for programs that use libtorch from C++: a differentiable function of at::Tensors, without a copy. Header only; link tilewise::tilewise and
// libtorch. From Python take the package tilewise, whose operators need no libtorch headers (docs/python.md).
#include <torch/torch.h>

#include <optional>
#include <string>
#include <tuple>
#include <utility>

#include "tilewise/attend/attend.h"
#include "tilewise/attend/prepare.h"
#include "tilewise/base/context.h"
#include "tilewise/machine/cpu/context.h"
#include "tilewise/plan/plan.h"

namespace tilewise::nn {

/// The tensor as tilewise sees it; it must outlive the view. Errors: dtype, shape (more than 5 axes), device.
inline TensorView view_of(const at::Tensor& tensor) {
  if (!tensor.defined()) return {};
  const auto dtype = [&] {
    switch (tensor.scalar_type()) {
      case at::kFloat: return Dtype::f32;
      case at::kDouble: return Dtype::f64;
      case at::kBFloat16: return Dtype::bf16;
      case at::kHalf: return Dtype::f16;
      case at::kInt: return Dtype::i32;
      case at::kLong: return Dtype::i64;
      case at::kBool: return Dtype::boolean;
      default:
        fail(Error::Kind::dtype, "nn::view_of: the tensor is ", c10::toString(tensor.scalar_type()),
             ", takes float, double, bfloat16, half, int, long or bool");
    }
  }();
  check(tensor.dim() >= 1 && tensor.dim() <= Shape::kMaxRank, Error::Kind::shape, "nn::view_of: the tensor has ", tensor.dim(), " axes, takes 1 to ",
        Shape::kMaxRank);
  check(tensor.is_cpu() || tensor.is_cuda(), Error::Kind::device, "nn::view_of: the tensor is on ", tensor.device().str(),
        ", takes the CPU or a CUDA device");
  Shape shape;
  shape.rank = static_cast<int>(tensor.dim());
  std::array<int64_t, Shape::kMaxRank> strides{};
  for (int axis = 0; axis < shape.rank; ++axis) {
    shape.sizes[static_cast<size_t>(axis)] = tensor.size(axis);
    strides[static_cast<size_t>(axis)] = tensor.stride(axis);
  }
  const Device device = tensor.is_cuda() ? Device{Device::Type::cuda, tensor.get_device()} : Device{};
  return {tensor.data_ptr(), dtype, shape, strides, device};
}

struct AttendOptions {
  std::optional<double> softmax_scale = {};  // default 1 / sqrt(D)
  double softcap = 0;  // 0: none
  at::Tensor sink_logit = {};  // [Hq] f32, or undefined
};

namespace detail {

/// What the backward needs beside tensors.
struct Call : torch::CustomClassHolder {
  Plan plan;
  AttendOptions options;
  Schedule schedule;  // made by the first backward
};

// Kernels read rows of contiguous channels; other strides are free.
inline at::Tensor with_contiguous_rows(const at::Tensor& tensor) {
  return !tensor.defined() || tensor.size(-1) <= 1 || tensor.stride(-1) == 1 ? tensor : tensor.contiguous();
}

inline AttendParams params_of(const Call& call, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& sink_logit) {
  AttendParams params;
  params.q = view_of(q);
  params.k = view_of(k);
  params.v = view_of(v);
  params.plan = call.plan;
  if (call.options.softmax_scale) params.softmax_scale = static_cast<float>(*call.options.softmax_scale);
  params.softcap = static_cast<float>(call.options.softcap);
  params.sink_logit = view_of(sink_logit);
  return params;
}

/// One pool for all calls of a process; a context belongs to one call.
inline Context context_of(const at::Tensor& tensor) {
  static const Context shared = cpu_context();
  check(tensor.is_cpu(), Error::Kind::unsupported, "nn::attend: q is on ", tensor.device().str(),
        ", takes the CPU; from Python CUDA tensors reach the kernels of the build");
  return shared;
}

class Attend : public torch::autograd::Function<Attend> {
 public:
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext* ctx, const at::Tensor& q_in, const at::Tensor& k_in,
                                                const at::Tensor& v_in, const std::optional<at::Tensor>& sink, const c10::intrusive_ptr<Call>& call) {
    const at::Tensor sink_logit = sink.value_or(at::Tensor());
    const at::Tensor q = with_contiguous_rows(q_in), k = with_contiguous_rows(k_in), v = with_contiguous_rows(v_in);
    Context context = context_of(q);
    AttendParams params = params_of(*call, q, k, v, sink_logit);
    const at::Tensor out = at::empty({q.size(0), q.size(1), q.size(2), v.size(3)}, q.options()),
                     lse = at::empty({q.size(0), q.size(1), q.size(2)}, q.options().dtype(at::kFloat));
    params.out = view_of(out);
    params.lse = view_of(lse);
    attend_forward(params, context);
    ctx->save_for_backward({q, k, v, sink_logit, out, lse});
    ctx->saved_data["call"] = c10::IValue::make_capsule(call);
    ctx->set_materialize_grads(false);
    return {out, lse};
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx, torch::autograd::variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const at::Tensor &q = saved[0], &k = saved[1], &v = saved[2], &sink_logit = saved[3], &out = saved[4], &lse = saved[5];
    const auto holder = ctx->saved_data["call"].toCapsule();
    auto& call = static_cast<Call&>(*holder);
    Context context = context_of(q);
    if (call.schedule == nullptr) call.schedule = attend_prepare(call.plan, static_cast<int>(k.size(1)), context);
    const at::Tensor dout = grads[0].defined() ? with_contiguous_rows(grads[0]) : at::zeros_like(out),
                     dlse = grads[1].defined() ? grads[1].contiguous() : grads[1];
    const at::Tensor dq = at::empty(q.sizes(), q.options()), dk = at::empty(k.sizes(), k.options()), dv = at::empty(v.sizes(), v.options());
    const at::Tensor dsink = sink_logit.defined() ? at::empty(sink_logit.sizes(), sink_logit.options()) : at::Tensor();
    AttendBackwardParams params;
    params.forward = params_of(call, q, k, v, sink_logit);
    params.forward.schedule = call.schedule;
    params.forward.out = view_of(out);
    params.forward.lse = view_of(lse);
    params.dout = view_of(dout);
    params.dlse = view_of(dlse);
    params.dq = view_of(dq);
    params.dk = view_of(dk);
    params.dv = view_of(dv);
    params.dsink_logit = view_of(dsink);
    attend_backward(params, context);
    return {dq, dk, dv, dsink, at::Tensor()};
  }
};

}  // namespace detail

/// softmax(softmax_scale * q k^T) v over the keys that the plan reads, and lse; differentiable in q, k, v and options.sink_logit.
/// Shapes  as AttendParams: q [B, Hq, Sq, D], k [B, Hkv, Sk, D], v [B, Hkv or 1, Sk, Dv]; any strides (a last axis that is not contiguous is copied).
/// Errors  those of attend_forward (tilewise::Error); unsupported, when the tensors are not on the CPU.
inline std::tuple<at::Tensor, at::Tensor> attend(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const Plan& plan,
                                                 const AttendOptions& options = {}) {
  auto call = c10::make_intrusive<detail::Call>();
  call->plan = plan;
  call->options = options;
  call->options.sink_logit = at::Tensor();  // the graph keeps it
  auto outputs = detail::Attend::apply(q, k, v, options.sink_logit.defined() ? std::optional(options.sink_logit) : std::nullopt, call);
  return {outputs[0], outputs[1]};
}

}  // namespace tilewise::nn
