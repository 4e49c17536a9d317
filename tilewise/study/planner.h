// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <functional>
#include <string>

#include "tilewise/attend/params.h"
#include "tilewise/infer/recipe.h"

namespace tilewise::study {

/// What a row reads in one layer: a method's plan, or a recipe's with one plan per head for the figures.
using Planner = std::function<RecipePlan(const Problem& problem, Context& context)>;

/// One method in every layer and head.
Planner planner_of(std::string name, OptionValues options);

/// Dense plans by lengths: of one source they depend on nothing else, so all layers of a run share one.
class DensePlans {
 public:
  const Plan& of(const Problem& problem, Context& context);

 private:
  Plan plan_;
};

/// Attention of a problem over a plan. Absent `out` and `lse` are not written.
Ran attend(const Problem& problem, const Plan& plan, const TensorView& out, const TensorView& lse, Context& context);

/// "cpu/avx512".
std::string backend_name(const Ran& ran);

}  // namespace tilewise::study
