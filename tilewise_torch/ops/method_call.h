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

/// The plan of this method for these tensors, which must be on the CPU. Errors: those of plan_with; unsupported (another device).
Plan plan_by(const MethodCall& call, const TorchTensor& q, const TorchTensor& k, const MaybeTensor& v);

}  // namespace tilewise::ops
