// SPDX-License-Identifier: Apache-2.0
#include "tilewise/methods/dense.h"

#include "tilewise/methods/problem.h"
#include "tilewise/select/plan.h"

namespace tilewise::method {

Planned dense(const Problem& problem, const DenseOptions& options, Context& context) {
  check_ranges("dense", options);
  const select::Inputs inputs = inputs_of("dense", problem);
  Planned planned;
  planned.plan = select::plan_of_mask(inputs.mask, inputs.mask, select::plain_rows(inputs, options.tile), inputs.batch(), inputs.heads_q(), context);
  return planned;
}

}  // namespace tilewise::method
