// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <vector>

#include "tilewise_torch/ops/tensors.h"

namespace tilewise::ops {

/// int64 [2] on the CPU: pairs that the plan reads (-1 for one on a GPU: to count them there would wait for it), and that the dense plan would. The tensor keeps the plan for kept_plan() as long as its memory lives, by the
/// address of that memory: an operator whose outputs have fixed sizes hands its plan to the one that computes its gradient. Nothing is lost where torch copies
/// the tensor (offloaded activations, pickles): the plan is then made again. `views`: tensors that the plan has views of.
TorchTensor counts_that_keep(const Plan& plan, std::vector<TorchTensor> views);

/// The plan of that tensor; null where it is a copy.
Plan kept_plan(const TorchTensor& counts);

}  // namespace tilewise::ops
