// SPDX-License-Identifier: Apache-2.0
#include "tilewise/infer/recipe.h"

#include <algorithm>
#include <cmath>
#include <set>
#include <utility>

#include "tilewise/base/error.h"
#include "tilewise/base/file.h"
#include "tilewise/infer/strict_json.h"
#include "tilewise/methods/registry.h"

namespace tilewise::infer {
namespace {

constexpr size_t kMaxRecipeBytes = size_t{64} << 20;  // 1,024 layers of 1,024 heads with options of their own stay below it

RecipeMethod parse_method(Object& object) {
  RecipeMethod use;
  use.method = object.string("method");
  const MethodInfo* info = nullptr;
  try {
    info = &method_info(use.method);
  } catch (const Error& error) {
    fail(error.kind(), object.where(), ": ", error.what());
  }
  if (const Json* options = object.find("options")) {
    check(options->is_object(), Error::Kind::io, object.where(), ": options is ", shown(*options), "; takes an object");
    for (const auto& [name, value] : options->items()) {
      use.options[name] = option_of(value, object.where() + ": option " + name);
      // JSON does not tell 1 from 1.0, and writers print a whole float without its point.
      for (const OptionInfo& option : info->options) {
        if (option.name != name || !std::holds_alternative<double>(option.default_value)) continue;
        if (const int64_t* whole = std::get_if<int64_t>(&use.options[name])) use.options[name] = static_cast<double>(*whole);
      }
    }
  }
  try {
    check_options(use.method, use.options);
  } catch (const Error& error) {
    fail(error.kind(), object.where(), ": ", error.what());
  }
  return use;
}

Recipe::Heads parse_heads(const Json& json, const std::string& where, int heads_q, std::set<int>& taken) {
  Object object(json, where);
  Recipe::Heads result;
  for (const Json& head : object.array("heads")) {
    const int number = static_cast<int>(Object::whole_of(head, where + ": heads", 0, heads_q - 1));
    check(taken.insert(number).second, Error::Kind::value, where, ": head ", number, " is named twice in this layer");
    result.heads.push_back(number);
  }
  check(!result.heads.empty(), Error::Kind::value, where, ": heads is empty; name at least one");
  std::sort(result.heads.begin(), result.heads.end());
  result.use = parse_method(object);
  object.finish();
  return result;
}

Recipe parse(const Json& json, const std::string& where) {
  Object root(json, where);
  const int schema = root.integer("schema", 0, INT32_MAX);
  check(schema == Recipe::kSchema, Error::Kind::io, where, ": schema ", schema, " is not known; this library reads ", Recipe::kSchema);
  Recipe recipe;
  Object model(root.get("model"), where + ": model");
  recipe.num_layers = model.integer("layers", 1, 1024);
  recipe.heads_q = model.integer("heads_q", 1, 1024);
  recipe.heads_kv = model.integer("heads_kv", 1, 1024);
  recipe.head_dim = model.integer("head_dim", 1, 1024);
  check(recipe.heads_q % recipe.heads_kv == 0, Error::Kind::value, where, ": heads_kv ", recipe.heads_kv, " does not divide heads_q ",
        recipe.heads_q);
  if (model.find("config_hash") != nullptr) recipe.config_hash = model.string("config_hash");
  model.finish();
  Object otherwise(root.get("default"), where + ": default");
  recipe.otherwise = parse_method(otherwise);
  otherwise.finish();
  if (root.find("layers") != nullptr) {
    std::set<int> layers_taken;
    for (const Json& item : root.array("layers")) {
      const std::string at = where + ": layers[" + std::to_string(recipe.layers.size()) + "]";
      Object object(item, at);
      Recipe::Layer layer;
      layer.layer = object.integer("layer", 0, recipe.num_layers - 1);
      check(layers_taken.insert(layer.layer).second, Error::Kind::value, at, ": layer ", layer.layer, " is named twice");
      std::set<int> heads_taken;
      for (const Json& heads : object.array("heads")) {
        layer.heads.push_back(parse_heads(heads, at + ".heads[" + std::to_string(layer.heads.size()) + "]", recipe.heads_q, heads_taken));
      }
      object.finish();
      recipe.layers.push_back(std::move(layer));
    }
  }
  if (const Json* calibration = root.find("calibration")) {
    check(calibration->is_object(), Error::Kind::io, where, ": calibration is ", shown(*calibration), "; takes an object");
    recipe.calibration = calibration->dump();
  }
  root.finish();
  return recipe;
}

void put_method(Json& to, const RecipeMethod& use) {
  to["method"] = use.method;
  if (use.options.empty()) return;
  Json& options = to["options"] = Json::object();
  for (const auto& [name, value] : use.options) {
    std::visit([&](const auto& held) { options[name] = held; }, value);
    // A number that is not finite would be written as null.
    const double* number = std::get_if<double>(&value);
    check(number == nullptr || std::isfinite(*number), Error::Kind::value, "format_recipe: option ", name, " of ", use.method, " is not finite");
  }
}

}  // namespace
}  // namespace tilewise::infer

TILEWISE_BEGIN_PUBLIC

const RecipeMethod& Recipe::of(int layer, int head) const {
  check(layer >= 0 && layer < num_layers && head >= 0 && head < heads_q, Error::Kind::value, "Recipe::of: layer ", layer, ", head ", head,
        ", the recipe is for ", num_layers, " layers of ", heads_q, " query heads");
  for (const Layer& listed : layers) {
    if (listed.layer != layer) continue;
    for (const Heads& group : listed.heads) {
      if (std::find(group.heads.begin(), group.heads.end(), head) != group.heads.end()) return group.use;
    }
  }
  return otherwise;
}

Recipe uniform_recipe(const ModelConfig& config, RecipeMethod use) {
  Recipe recipe;
  recipe.num_layers = config.num_layers;
  recipe.heads_q = config.heads_q;
  recipe.heads_kv = config.heads_kv;
  recipe.head_dim = config.head_dim;
  recipe.config_hash = config.hash;
  recipe.otherwise = std::move(use);
  return recipe;
}

Recipe parse_recipe(std::string_view text, const std::string& where) { return infer::parse(infer::parse_strict(text, where), where); }

Recipe read_recipe(const std::string& path) { return parse_recipe(read_file(path, infer::kMaxRecipeBytes), path); }

std::string format_recipe(const Recipe& recipe) {
  using infer::Json;
  Json root;
  root["schema"] = Recipe::kSchema;
  root["model"] = {{"layers", recipe.num_layers}, {"heads_q", recipe.heads_q}, {"heads_kv", recipe.heads_kv}, {"head_dim", recipe.head_dim}};
  if (!recipe.config_hash.empty()) root["model"]["config_hash"] = recipe.config_hash;
  infer::put_method(root["default"], recipe.otherwise);
  root["layers"] = Json::array();
  for (const Recipe::Layer& layer : recipe.layers) {
    Json item;
    item["layer"] = layer.layer;
    item["heads"] = Json::array();
    for (const Recipe::Heads& group : layer.heads) {
      Json heads;
      heads["heads"] = group.heads;
      infer::put_method(heads, group.use);
      item["heads"].push_back(std::move(heads));
    }
    root["layers"].push_back(std::move(item));
  }
  if (!recipe.calibration.empty()) root["calibration"] = infer::parse_strict(recipe.calibration, "format_recipe: calibration");
  std::string text;
  try {
    text = root.dump(1) + "\n";
  } catch (const Json::exception& error) {
    fail(Error::Kind::value, "format_recipe: a string is not UTF-8: ", error.what());
  }
  // What cannot be read back must not be written.
  try {
    parse_recipe(text, "format_recipe");
  } catch (const Error& error) {
    fail(Error::Kind::value, error.what());
  }
  return text;
}

void write_recipe(const std::string& path, const Recipe& recipe) { write_file(path, format_recipe(recipe)); }

void check_recipe(const Recipe& recipe, const ModelConfig& config) {
  check(recipe.num_layers == config.num_layers && recipe.heads_q == config.heads_q && recipe.heads_kv == config.heads_kv &&
            recipe.head_dim == config.head_dim,
        Error::Kind::value, "the recipe is for another model: ", recipe.num_layers, " layers, ", recipe.heads_q, " query and ", recipe.heads_kv,
        " K/V heads of ", recipe.head_dim, "; this one has ", config.num_layers, ", ", config.heads_q, ", ", config.heads_kv, " and ",
        config.head_dim);
  check(recipe.config_hash.empty() || recipe.config_hash == config.hash, Error::Kind::value,
        "the recipe is for another model: its config.json hashes to ", recipe.config_hash, ", this one's to ", config.hash,
        "; take the recipe's config_hash away to use it all the same");
}

TILEWISE_END_PUBLIC
