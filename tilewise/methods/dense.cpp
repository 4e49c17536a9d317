// SPDX-License-Identifier: Apache-2.0
#include "tilewise/methods/dense.h"

#include "tilewise/methods/problem.h"
#include "tilewise/select/plan.h"
#ifdef TILEWISE_WITH_CUDA
#include "tilewise/select/cuda/mask_plan.h"
#endif

namespace tilewise::method {

Planned dense(const Problem& problem, const DenseOptions& options, Context& context) {
  check_ranges("dense", options);
  const bool is_on_device = is_on_gpu(problem, context);
  const select::Inputs inputs = inputs_of("dense", problem, is_on_device ? context.device : Device{});
  Planned planned;
#ifdef TILEWISE_WITH_CUDA
  if (is_on_device) {
    planned.plan =
        select::cuda::mask_plan(inputs.mask, inputs.mask, select::plain_rows(inputs, options.tile), inputs.batch(), inputs.heads_q(), context);
    return planned;
  }
#endif
  planned.plan = select::plan_of_mask(inputs.mask, inputs.mask, select::plain_rows(inputs, options.tile), inputs.batch(), inputs.heads_q(), context);
  return planned;
}

}  // namespace tilewise::method
