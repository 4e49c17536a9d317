// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <tuple>

#include "tilewise/attend/attend.h"
#include "tilewise_torch/ops/tensors.h"

// Attention on torch tensors with a plan in hand: what the operators `attend` (a plan as two tensors) and `attention` (a plan of a method) share.
namespace tilewise::ops {

struct AttendOptions {
  std::optional<double> scale;
  double softcap;
  const MaybeTensor& sink_logit;
};

/// out and lse. Errors: those of attend_forward.
std::tuple<TorchTensor, TorchTensor> attend_with(const Plan& plan, const TorchTensor& q, const TorchTensor& k, const TorchTensor& v,
                                                 const AttendOptions& options);

/// dq, dk, dv and dsink_logit (no elements where there is no sink_logit). Errors: those of attend_backward.
std::tuple<TorchTensor, TorchTensor, TorchTensor, TorchTensor> attend_backward_with(const Plan& plan, const TorchTensor& dout,
                                                                                    const MaybeTensor& dlse, const TorchTensor& q,
                                                                                    const TorchTensor& k, const TorchTensor& v,
                                                                                    const TorchTensor& out, const TorchTensor& lse,
                                                                                    const AttendOptions& options);

/// [B, Hq, Sq, Dv] of these operands where their shapes make sense; else anything, since attention names what is wrong before it writes.
Shape out_shape(const TorchTensor& q, const TorchTensor& v);
/// Its first three axes.
Shape lse_shape(const Shape& out);
std::optional<float> as_float(std::optional<double> value);

}  // namespace tilewise::ops
