// SPDX-License-Identifier: Apache-2.0
#include "tilewise/methods/mean_pool.h"

#include "tilewise/methods/problem.h"
#include "tilewise/select/mean_pool.h"
#include "tilewise/select/plan.h"
#ifdef TILEWISE_WITH_CUDA
#include "tilewise/select/cuda/scored_plan.h"
#endif

namespace tilewise::method {

Planned mean_pool(const Problem& problem, const MeanPoolOptions& options, Context& context) {
  check_ranges("mean_pool", options);
  const bool is_on_device = is_on_gpu(problem, context);
  const select::Inputs inputs = inputs_of("mean_pool", problem, is_on_device ? context.device : Device{});
  refuse_grids("mean_pool", problem);
  select::Budget budget;
  budget.sink = budget.diagonal = 1;
  if (options.density > 0) {
    budget.share = {options.density};
  } else {
    budget.mass = {options.threshold};
    budget.forced = select::Budget::Forced::beside;
  }
  Planned planned;
#ifdef TILEWISE_WITH_CUDA
  if (is_on_device) {
    planned.plan = select::cuda::mean_pool_plan(inputs, options.tile, budget, context);
    return planned;
  }
#endif
  planned.plan = select::plan(select::mean_pool_scores(inputs, options.tile, context), budget, context);
  return planned;
}

}  // namespace tilewise::method
