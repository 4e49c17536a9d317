// SPDX-License-Identifier: Apache-2.0
#include "tilewise/methods/problem.h"

namespace tilewise::method {

select::Inputs inputs_of(std::string_view method, const Problem& problem) {
  select::Inputs inputs{problem.q, problem.k, problem.mask, 1.0f, problem.softcap};
  if (problem.q.rank() == 4 && problem.q.dim(3) > 0) inputs.softmax_scale = select::scale_or_default(problem.softmax_scale, problem.q.dim(3));
  select::check_inputs(method, inputs);
  return inputs;
}

void refuse_orders(std::string_view method, const Problem& problem) {
  check(!problem.order_q.token.has_value() && !problem.order_k.token.has_value(), Error::Kind::unsupported, method,
        ": a given order is not taken (the method scores tiles of neighbouring tokens); leave order_q and order_k absent, or use dense");
}

void refuse_grids(std::string_view method, const Problem& problem) {
  check(problem.mask.grids.empty(), Error::Kind::unsupported, method,
        ": neighbourhood masks are not taken; give bands or spans, or use dense, which reads all keys of a neighbourhood's sequence under test");
}

}  // namespace tilewise::method
