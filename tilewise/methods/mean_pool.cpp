// SPDX-License-Identifier: Apache-2.0
#include "tilewise/methods/mean_pool.h"

#include "tilewise/methods/problem.h"
#include "tilewise/select/mean_pool.h"
#include "tilewise/select/plan.h"

namespace tilewise::method {

Planned mean_pool(const Problem& problem, const MeanPoolOptions& options, Context& context) {
  check_ranges("mean_pool", options);
  const select::Inputs inputs = inputs_of("mean_pool", problem);
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
  planned.plan = select::plan(select::mean_pool_scores(inputs, options.tile, context), budget, context);
  return planned;
}

}  // namespace tilewise::method
