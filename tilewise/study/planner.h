// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <functional>
#include <string>
#include <vector>

#include "tilewise/attend/params.h"
#include "tilewise/infer/recipe.h"

namespace tilewise::study {

/// What a row reads in one layer: a method's plan, or a recipe's with one plan per head for the figures.
using Planner = std::function<RecipePlan(const Problem& problem, Context& context)>;

/// One method in every layer and head.
Planner planner_of(std::string name, OptionValues options);

/// Dense plans by sizes and mask: of one source they depend on nothing else, so the layers of a run share them. Those of spans are made anew each time.
class DensePlans {
 public:
  Plan of(const Problem& problem, Context& context);
  /// What of() gave last, where the host can read it.
  const Plan& on_host(const Context& context);

 private:
  struct Made {
    Mask mask;
    Plan plan;
    Plan host = {};  // made when asked for
  };
  std::vector<Made> made_;
  Made last_;
};

/// Attention of a problem over a plan. Absent `out` and `lse` are not written; an absent `sink_logit` is none.
Ran attend(const Problem& problem, const Plan& plan, const TensorView& out, const TensorView& lse, Context& context,
           const TensorView& sink_logit = {});

/// "cpu/avx512".
std::string backend_name(const Ran& ran);

}  // namespace tilewise::study
