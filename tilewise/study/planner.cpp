// SPDX-License-Identifier: Apache-2.0
#include "tilewise/study/planner.h"

#include "tilewise/attend/attend.h"
#include "tilewise/methods/registry.h"

namespace tilewise::study {

Planner planner_of(std::string name, OptionValues options) {
  return [name = std::move(name), options = std::move(options)](const Problem& problem, Context& context) {
    return RecipePlan{plan_with(name, problem, options, context).plan, {}};
  };
}

const Plan& DensePlans::of(const Problem& problem, Context& context) {
  const int64_t seqlen_q = problem.q.dim(2), seqlen_k = problem.k.dim(2);
  if (plan_ == nullptr || plan_->seqlen_q != seqlen_q || plan_->seqlen_k != seqlen_k) plan_ = plan_with("dense", problem, {}, context).plan;
  return plan_;
}

Ran attend(const Problem& problem, const Plan& plan, const TensorView& out, const TensorView& lse, Context& context) {
  return attend_forward({.q = problem.q,
                         .k = problem.k,
                         .v = problem.v,
                         .out = out,
                         .lse = lse,
                         .plan = plan,
                         .softmax_scale = problem.softmax_scale,
                         .softcap = problem.softcap},
                        context);
}

std::string backend_name(const Ran& ran) { return ran.target.empty() ? ran.backend : ran.backend + "/" + ran.target; }

}  // namespace tilewise::study
