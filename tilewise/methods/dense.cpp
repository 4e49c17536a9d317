// SPDX-License-Identifier: Apache-2.0
#include "tilewise/methods/dense.h"

#include "tilewise/methods/problem.h"
#include "tilewise/select/plan.h"

namespace tilewise::method {

Planned dense(const Problem& problem, const DenseOptions& options, Context& context) {
  check_ranges("dense", options);
  const select::Inputs inputs = inputs_of("dense", problem);
  const auto grid = select::RowGrid::plain(inputs.seqlen_q(), inputs.seqlen_k(), options.tile);
  const bool has_order = problem.order_q.token.has_value() || problem.order_k.token.has_value();
  Planned planned;
  planned.plan = has_order
                     ? select::plan_of_mask_in_orders(inputs.mask, problem.order_q, problem.order_k, grid, inputs.batch(), inputs.heads_q(), context)
                     : select::plan_of_mask(inputs.mask, inputs.mask, grid, inputs.batch(), inputs.heads_q(), context);
  return planned;
}

}  // namespace tilewise::method
