// SPDX-License-Identifier: Apache-2.0
#include "tilewise/methods/xattention.h"

#include "tilewise/methods/problem.h"
#include "tilewise/select/plan.h"
#ifdef TILEWISE_WITH_CUDA
#include "tilewise/select/cuda/scored_plan.h"
#endif

namespace tilewise::method {

Planned xattention(const Problem& problem, const XAttentionOptions& options, Context& context) {
  check_ranges("xattention", options);
  const bool is_on_device = is_on_gpu(problem, context);
  const select::Inputs inputs = inputs_of("xattention", problem, is_on_device ? context.device : Device{});
  const bool is_causal = select::is_causal(inputs.mask, inputs.seqlen_k());
  check(is_causal || select::is_full(inputs.mask, inputs.seqlen_q(), inputs.seqlen_k()), Error::Kind::unsupported,
        "xattention: the mask is neither causal nor full in every head; give Mask::causal() or Mask::full()");
  check(options.tile % (options.stride * options.kdb) == 0, Error::Kind::value, "xattention: option tile is ", options.tile,
        "; it takes a multiple of stride ", options.stride, " times kdb ", options.kdb);
  check(options.density == 0 || options.top_k == 0, Error::Kind::value, "xattention: density and top_k are two budgets for the same tiles; give one");

  select::Budget budget;
  if (options.density > 0) {
    budget.share = {options.density};
    budget.floor = 1;  // a small share of few tiles rounds to none
  } else if (options.top_k > 0) {
    budget.count = {options.top_k};
  } else {
    budget.mass = {options.threshold};
  }
  if (is_causal) {
    budget.sink = budget.diagonal = 1;
  } else {
    // `compat`: the released code sets tile 0 whenever one is unselected; where none is, tile 0 is selected anyway.
    budget.sink = options.keep_sink || options.compat ? 1 : 0;
    budget.diagonal = options.keep_recent ? 1 : 0;
    budget.forced = select::Budget::Forced::beside;
  }
  const uint64_t seed = static_cast<uint64_t>(options.seed) ^ problem.seed;
  const select::AntidiagonalParams params{options.tile, options.stride, options.selector, options.norm, options.kdb, seed};
  Planned planned;
#ifdef TILEWISE_WITH_CUDA
  if (is_on_device) {
    planned.plan = select::cuda::antidiagonal_plan(inputs, params, budget, context);
    return planned;
  }
#endif
  planned.plan = select::plan(select::antidiagonal_scores(inputs, params, context), budget, context);
  return planned;
}

}  // namespace tilewise::method
