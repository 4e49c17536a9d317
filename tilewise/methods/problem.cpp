// SPDX-License-Identifier: Apache-2.0
#include "tilewise/methods/problem.h"

namespace tilewise::method {

select::Inputs inputs_of(std::string_view method, const Problem& problem, Device device) {
  select::Inputs inputs{problem.q, problem.k, problem.mask, 1.0f, problem.softcap};
  if (problem.q.rank() == 4 && problem.q.dim(3) > 0) inputs.softmax_scale = select::scale_or_default(problem.softmax_scale, problem.q.dim(3));
  inputs.order_q = problem.order_q;
  inputs.order_k = problem.order_k;
  select::check_inputs(method, inputs, device);
  select::drop_identity_orders(inputs);
  return inputs;
}

bool is_on_gpu([[maybe_unused]] const Problem& problem, [[maybe_unused]] const Context& context) {
#ifdef TILEWISE_WITH_CUDA
  return context.device.type == Device::Type::cuda && problem.q.device().type == Device::Type::cuda;
#else
  return false;
#endif
}

void refuse_grids(std::string_view method, const Problem& problem) {
  check(problem.mask.grids.empty(), Error::Kind::unsupported, method,
        ": neighbourhood masks are not taken; give bands or spans, or use dense, which reads all keys of a neighbourhood's sequence under test");
}

}  // namespace tilewise::method
