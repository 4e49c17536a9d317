// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "tilewise/attend/params.h"
#include "tilewise/infer/model.h"
#include "tilewise/methods/method.h"

TILEWISE_BEGIN_PUBLIC

/// A method with its options.
struct RecipeMethod {
  std::string method = "dense";
  OptionValues options = {};
  bool operator==(const RecipeMethod&) const = default;
};

/// Which method each layer and head of a model uses: recipe.json, docs/formats/recipe.md.
struct Recipe {
  static constexpr int kSchema = 1;
  /// Query heads of one layer with a method of their own.
  struct Heads {
    std::vector<int> heads;  // ascending
    RecipeMethod use;
    bool operator==(const Heads&) const = default;
  };
  struct Layer {
    int layer = 0;
    std::vector<Heads> heads;
    bool operator==(const Layer&) const = default;
  };

  int num_layers = 0, heads_q = 0, heads_kv = 0, head_dim = 0;  // of the model that it was made for
  std::string config_hash;                                      // of that model's config.json; empty: any model of these sizes
  RecipeMethod otherwise;                                       // "default": heads and layers that are not listed
  std::vector<Layer> layers;
  std::string calibration;  // a JSON object, as text, on how the recipe was found; empty: none

  /// What a head uses. Errors: value (a layer or head that the recipe does not have).
  TILEWISE_API const RecipeMethod& of(int layer, int head) const;
  bool operator==(const Recipe&) const = default;
};

/// A recipe that uses one method everywhere.
TILEWISE_API Recipe uniform_recipe(const ModelConfig& config, RecipeMethod use);

/// Reads and checks a recipe: schema, every field and its type, layers and heads in range and named once, methods and options by the registry.
/// Errors: io (file missing, not JSON, another schema, a field unknown, missing or of another type), value (a number, method or option out of range).
TILEWISE_API Recipe read_recipe(const std::string& path);
/// The same of a text; `where` is for messages.
TILEWISE_API Recipe parse_recipe(std::string_view text, const std::string& where);
/// The JSON text that read_recipe reads, with every option of a method that was given. Errors: value (what parse_recipe would refuse).
TILEWISE_API std::string format_recipe(const Recipe& recipe);
/// format_recipe to a file, beside its target, then renamed. Errors: as format_recipe; io.
TILEWISE_API void write_recipe(const std::string& path, const Recipe& recipe);
/// Refuses a recipe that was made for another model: sizes, and the hash of config.json where the recipe has one. Errors: value.
TILEWISE_API void check_recipe(const Recipe& recipe, const ModelConfig& config);

/// What one layer's attention did.
struct LayerReport {
  int layer = 0;
  double plan_ms = 0, attend_ms = 0;
  double density = 0;  // of the plan that ran
  Plan plan = {};  // that plan
  Ran ran = {};
};
using LayerObserver = std::function<void(const LayerReport&)>;

/// What a layer of a recipe plans: the plan that runs, and for each query head the plan of its own method where heads differ (the same plan for
/// the heads of one method), from which figures per head are taken.
struct RecipePlan {
  Plan plan;
  std::vector<Plan> head_plans;  // [Hq], or empty: all heads use one method
};
/// Errors: value, shape (a layer or head count that the recipe does not have); unsupported (methods whose plans cannot be run together:
/// the message names the part); what plan_with throws.
TILEWISE_API RecipePlan plan_recipe(const Recipe& recipe, const Problem& problem, Context& context);

/// The attention of a model that runs a recipe: per layer plan_recipe, then attend_forward, then a report. `seed` reaches methods that draw.
TILEWISE_API AttentionFunction recipe_attention(Recipe recipe, LayerObserver observer = {}, uint64_t seed = 0);
/// One method in every layer and head. Errors: value (unknown method or option), at once.
TILEWISE_API AttentionFunction method_attention(std::string_view method, OptionValues options, LayerObserver observer = {}, uint64_t seed = 0);

TILEWISE_END_PUBLIC

namespace tilewise::infer {

/// What a method is asked to plan for in one layer.
Problem problem_of(const LayerAttention& layer, uint64_t seed);

}  // namespace tilewise::infer
