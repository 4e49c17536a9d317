// SPDX-License-Identifier: Apache-2.0
#include "tilewise/study/planner.h"

#include "tilewise/attend/attend.h"
#include "tilewise/infer/layer.h"
#include "tilewise/methods/registry.h"

namespace tilewise::study {
namespace {

constexpr size_t kMostPlans = 8;  // a model's layers have a mask or two; needles add lengths

}  // namespace

Planner planner_of(std::string name, OptionValues options) {
  return [name = std::move(name), options = std::move(options)](const Problem& problem, Context& context) {
    return RecipePlan{plan_with(name, problem, options, context).plan, {}};
  };
}

Plan DensePlans::of(const Problem& problem, Context& context) {
  Problem plain = problem;
  plain.layer = 0;
  const auto make = [&] { return plan_with("dense", plain, {}, context).plan; };
  const Mask& mask = problem.mask;
  if (mask.spans.has_value()) {
    last_ = {mask, make()};
    return last_.plan;
  }
  for (const Made& made : made_) {
    const bool is_size = made.plan->seqlen_q == problem.q.dim(2) && made.plan->seqlen_k == problem.k.dim(2) && made.plan->batch == problem.q.dim(0) &&
                         made.plan->heads_q == problem.q.dim(1);
    if (is_size && made.mask.bands == mask.bands && made.mask.grids == mask.grids && made.mask.first == mask.first &&
        made.mask.head_class == mask.head_class) {
      if (last_.plan != made.plan) last_ = made;
      return made.plan;
    }
  }
  if (made_.size() >= kMostPlans) made_.erase(made_.begin());
  made_.push_back({mask, make()});
  last_ = made_.back();
  return last_.plan;
}

const Plan& DensePlans::on_host(const Context& context) {
  if (last_.host == nullptr) last_.host = infer::plan_on_host(last_.plan, context);
  return last_.host;
}

Ran attend(const Problem& problem, const Plan& plan, const TensorView& out, const TensorView& lse, Context& context, const TensorView& sink_logit) {
  return attend_forward({.q = problem.q,
                         .k = problem.k,
                         .v = problem.v,
                         .out = out,
                         .lse = lse,
                         .plan = plan,
                         .softmax_scale = problem.softmax_scale,
                         .softcap = problem.softcap,
                         .sink_logit = sink_logit},
                        context);
}

std::string backend_name(const Ran& ran) { return ran.target.empty() ? ran.backend : ran.backend + "/" + ran.target; }

}  // namespace tilewise::study
