// SPDX-License-Identifier: Apache-2.0
// Memory that runs out at each place in turn, in infer/.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "tests/infer/tiny_checkpoint.h"
#include "tests/robustness/sites.h"
#include "tilewise/base/file.h"
#include "tilewise/cache/contiguous.h"
#include "tilewise/infer/config.h"
#include "tilewise/infer/recipe.h"
#include "tilewise/study/comparison.h"

namespace tilewise::testing {
namespace {

TEST(Allocation, EachSiteOfConfigsAndRecipesMayFail) {
  TemporaryFolder folder;
  const std::string config = read_file("models/reference-lm/config.json", 1 << 20), recipe = read_file("tests/infer/golden_recipe.json", 1 << 20);
  const std::string target = folder.file("recipe.json");
  write_file(target, recipe);
  const Recipe parsed = parse_recipe(recipe, "recipe.json");
  int64_t sites = 0;
  sites += fail_each_site("parse_config", [&](Context&) { infer::parse_config(config, "config.json"); });
  sites += fail_each_site("parse_recipe", [&](Context&) { parse_recipe(recipe, "recipe.json"); });
  sites += fail_each_site("format_recipe", [&](Context&) { format_recipe(parsed); });
  sites += fail_each_site(
      "write_recipe", [&](Context&) { write_recipe(target, parsed); },
      [&] { return std::to_string(folder.count()) + (read_recipe(target) == parsed ? "" : "changed"); });
  sites += fail_each_site("to_json", [&](Context&) { to_json(Comparison{}); });
  EXPECT_GE(sites, 100);
}

TEST(Allocation, EachSiteOfModelsMayFail) {
  TemporaryFolder folder;
  TinyCheckpoint checkpoint;
  checkpoint.make(1);
  checkpoint.write(folder.path());
  int64_t sites = 0;
  sites += fail_each_site("Model::load", [&](Context& c) { Model::load(folder.path(), c); });
  Context plain;
  const Model model = Model::load(folder.path(), plain);
  const ModelConfig& config = model.config();
  std::vector<int32_t> tokens(40, 3);
  const AttentionFunction attention = method_attention("a_shape", {{"tile", int64_t{16}}});
  sites += fail_each_site("Model::forward", [&](Context& c) {
    KvCache cache(config.num_layers, config.heads_kv, 64, config.head_dim, c.memory);
    model.forward(tokens, cache, {.attention = attention}, c);
  });
  EXPECT_GE(sites, 100);
}

}  // namespace
}  // namespace tilewise::testing
