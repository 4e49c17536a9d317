// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <vector>

#include "tilewise_torch/ops/tensors.h"

namespace tilewise::ops {

using Ints = std::vector<int64_t>;

/// What planning takes beside q, k and v, as operators get it.
struct MethodCall {
  const Text &method, &options;
  const Ints& mask;
  const MaybeTensor &spans, &order_q, &order_k;
  std::optional<double> scale;
  double softcap;
  int64_t layer, seed;
};

/// The plan of this method for these tensors, made where they are. Errors: those of plan_with; unsupported (a method that has no kernel for this on a GPU).
Plan plan_by(const MethodCall& call, const TorchTensor& q, const TorchTensor& k, const MaybeTensor& v);

/// A plan and the tensors that its arrays lie in.
struct PlacedPlan {
  Plan plan;
  std::vector<TorchTensor> tensors;
};
/// The same for tensors on a GPU whatever the method: one that has no kernel there plans on the CPU from copies, and the plan is moved.
PlacedPlan placed_plan_by(const MethodCall& call, const TorchTensor& q, const TorchTensor& k, const TorchTensor& v);

}  // namespace tilewise::ops
