// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <chrono>
#include <memory>
#include <utility>

#include "tilewise/base/error.h"
#include "tilewise/infer/layer.h"
#include "tilewise/infer/recipe.h"
#include "tilewise/machine/device.h"
#include "tilewise/methods/registry.h"
#include "tilewise/plan/count.h"
#include "tilewise/plan/heads.h"

namespace tilewise::infer {
namespace {

using Clock = std::chrono::steady_clock;
double ms_since(Clock::time_point start) { return std::chrono::duration<double, std::milli>(Clock::now() - start).count(); }

/// Which query heads use which method, in the order of each method's first head.
std::vector<std::pair<RecipeMethod, std::vector<int>>> uses_of(const Recipe& recipe, int layer) {
  std::vector<std::pair<RecipeMethod, std::vector<int>>> uses;
  for (int head = 0; head < recipe.heads_q; ++head) {
    const RecipeMethod& use = recipe.of(layer, head);
    const auto found = std::find_if(uses.begin(), uses.end(), [&](const auto& item) { return item.first == use; });
    if (found == uses.end()) {
      uses.push_back({use, {head}});
    } else {
      found->second.push_back(head);
    }
  }
  return uses;
}

}  // namespace

Problem problem_of(const LayerAttention& layer, uint64_t seed) {
  Problem problem;
  problem.q = layer.q;
  problem.k = layer.k;
  problem.v = layer.v;
  problem.layer = layer.layer;
  problem.seed = seed;
  return problem;
}

}  // namespace tilewise::infer

TILEWISE_BEGIN_PUBLIC

RecipePlan plan_recipe(const Recipe& recipe, const Problem& problem, Context& context) {
  check(problem.layer >= 0 && problem.layer < recipe.num_layers, Error::Kind::value, "plan_recipe: layer ", problem.layer,
        ", the recipe is for a model of ", recipe.num_layers);
  check(problem.q.rank() == 4 && problem.q.dim(1) == recipe.heads_q, Error::Kind::shape, "plan_recipe: q must have the recipe's ", recipe.heads_q,
        " heads, got ", problem.q.shape());
  const auto uses = infer::uses_of(recipe, problem.layer);
  if (uses.size() == 1) return {plan_with(uses[0].first.method, problem, uses[0].first.options, context).plan, {}};
  check(context.device.type == Device::Type::cpu, Error::Kind::unsupported, "plan_recipe: layer ", problem.layer,
        " has heads with different methods, whose plans are joined on the CPU alone; on ", context.device, " give a layer one method");
  std::vector<Plan> plans;
  std::vector<int> plan_of_head(static_cast<size_t>(recipe.heads_q));
  RecipePlan result;
  result.head_plans.resize(plan_of_head.size());
  for (const auto& [use, heads] : uses) {
    // A method sees all heads: what it draws or decides for a head must not depend on which others share the method.
    plans.push_back(plan_with(use.method, problem, use.options, context).plan);
    for (const int head : heads) {
      plan_of_head[static_cast<size_t>(head)] = static_cast<int>(plans.size()) - 1;
      result.head_plans[static_cast<size_t>(head)] = plans.back();
    }
  }
  result.plan = combine_heads(plans, plan_of_head, context);
  return result;
}

AttentionFunction recipe_attention(Recipe recipe, LayerObserver observer, uint64_t seed) {
  const auto check_method = [](const RecipeMethod& use) { check_options(use.method, use.options); };
  check_method(recipe.otherwise);
  for (const Recipe::Layer& layer : recipe.layers) {
    for (const Recipe::Heads& heads : layer.heads) check_method(heads.use);
  }
  return [recipe = std::make_shared<const Recipe>(std::move(recipe)), observer = std::move(observer), seed](const LayerAttention& layer,
                                                                                                            Context& context) {
    const auto planning = infer::Clock::now();
    const RecipePlan planned = plan_recipe(*recipe, infer::problem_of(layer, seed), context);
    LayerReport report;
    report.layer = layer.layer;
    machine::wait(context);
    report.plan_ms = infer::ms_since(planning);
    const auto attending = infer::Clock::now();
    report.ran = infer::attend_layer(layer, planned.plan, context);
    machine::wait(context);
    report.attend_ms = infer::ms_since(attending);
    if (!observer) return;
    report.plan = infer::plan_on_host(planned.plan, context);
    report.density = density(report.plan);
    observer(report);
  };
}

AttentionFunction method_attention(std::string_view method, OptionValues options, LayerObserver observer, uint64_t seed) {
  check_options(method, options);
  return [use = RecipeMethod{std::string(method), std::move(options)}, observer = std::move(observer), seed](const LayerAttention& layer,
                                                                                                             Context& context) {
    Recipe recipe;
    recipe.num_layers = layer.layer + 1;
    recipe.heads_q = static_cast<int>(layer.q.dim(1));
    recipe.otherwise = use;
    recipe_attention(std::move(recipe), observer, seed)(layer, context);
  };
}

TILEWISE_END_PUBLIC
