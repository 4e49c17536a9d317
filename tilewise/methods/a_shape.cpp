// SPDX-License-Identifier: Apache-2.0
#include "tilewise/methods/a_shape.h"

#include "tilewise/methods/problem.h"
#include "tilewise/select/plan.h"

namespace tilewise::method {

Planned a_shape(const Problem& problem, const AShapeOptions& options, Context& context) {
  check_ranges("a_shape", options);
  const select::Inputs inputs = inputs_of("a_shape", problem);
  check(select::is_causal(inputs.mask, inputs.seqlen_k()), Error::Kind::unsupported,
        "a_shape: the mask is not plainly causal; sink and window look back from a query, give Mask::causal()");
  Mask shape;
  shape.bands = {Mask::Band{options.local - 1, 0, options.init}};
  const select::RowGrid grid = select::plain_rows(inputs, options.tile);
  Planned planned;
  planned.plan = select::plan_of_mask(shape, inputs.mask, grid, inputs.batch(), inputs.heads_q(), context);
  return planned;
}

}  // namespace tilewise::method
