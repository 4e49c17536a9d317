// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "tilewise/select/cuda/antidiagonal.h"
#include "tilewise/select/cuda/mean_pool.h"
#include "tilewise/select/cuda/plan.h"

// From q and k to a plan on the GPU of the context, in memory of context.memory and with room for whatever the scores say. Nothing waits for the device: the plan may be
// given to attend on the same stream at once.
namespace tilewise::select::cuda {

/// plan(mean_pool_scores()). Errors: as mean_pool_into and plan_into; memory.
TILEWISE_API Plan mean_pool_plan(const Inputs& inputs, int tile, const Budget& budget, const Context& context);

/// plan(antidiagonal_scores()). Errors: as antidiagonal_into and plan_into; memory.
TILEWISE_API Plan antidiagonal_plan(const Inputs& inputs, const AntidiagonalParams& params, const Budget& budget, const Context& context,
                                    bool takes_largest = false);

}  // namespace tilewise::select::cuda
