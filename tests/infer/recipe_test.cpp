// SPDX-License-Identifier: Apache-2.0
#include "tilewise/infer/recipe.h"

#include <gtest/gtest.h>

#include <vector>

#include "tilewise/attend/attend.h"
#include "tilewise/cache/contiguous.h"
#include "tilewise/methods/registry.h"
#include "tilewise/plan/count.h"
#include "tiny_checkpoint.h"

namespace tilewise {
namespace {

constexpr const char* kGood = R"({"schema":1,"model":{"layers":2,"heads_q":6,"heads_kv":2,"head_dim":8,"config_hash":"00ff"},
 "default":{"method":"xattention","options":{"threshold":1,"stride":8}},
 "layers":[{"layer":1,"heads":[{"heads":[4,0],"method":"a_shape","options":{"local":64}},{"heads":[1],"method":"dense"}]}],
 "calibration":{"text":"a","lengths":[1,2.5,null]}})";

std::string replaced(const std::string& from, const std::string& to) {
  std::string text = kGood;
  const size_t at = text.find(from);
  EXPECT_NE(at, std::string::npos) << from;
  return text.replace(at, from.size(), to);
}

TEST(Recipe, ReadsWhatItWrites) {
  const Recipe recipe = parse_recipe(kGood, "text");
  EXPECT_EQ(recipe.num_layers, 2);
  EXPECT_EQ(recipe.config_hash, "00ff");
  EXPECT_EQ(recipe.otherwise, (RecipeMethod{"xattention", {{"threshold", 1.0}, {"stride", int64_t{8}}}}));
  ASSERT_EQ(recipe.layers.size(), 1u);
  EXPECT_EQ(recipe.layers[0].heads[0].heads, (std::vector<int>{0, 4}));
  EXPECT_EQ(recipe.of(0, 0).method, "xattention");
  EXPECT_EQ(recipe.of(1, 0).method, "a_shape");
  EXPECT_EQ(recipe.of(1, 1).method, "dense");
  EXPECT_EQ(recipe.of(1, 2).method, "xattention");

  TemporaryFolder folder;
  write_recipe(folder.file("recipe.json"), recipe);
  EXPECT_EQ(read_recipe(folder.file("recipe.json")), recipe);
  EXPECT_EQ(format_recipe(read_recipe(folder.file("recipe.json"))), TemporaryFolder::read(folder.file("recipe.json")));
  const Recipe small =
      parse_recipe(R"({"schema":1,"model":{"layers":1,"heads_q":1,"heads_kv":1,"head_dim":8},"default":{"method":"dense"}})", "text");
  EXPECT_EQ(parse_recipe(format_recipe(small), "text"), small);
}

// A recipe of schema 1 that every later version must read: each method with every option that it had, by name.
TEST(Recipe, ReadsTheGoldenFile) {
  const Recipe recipe = read_recipe("tests/infer/golden_recipe.json");
  EXPECT_EQ(recipe.num_layers, 3);
  EXPECT_EQ(recipe.heads_q, 6);
  EXPECT_EQ(recipe.heads_kv, 2);
  EXPECT_EQ(recipe.head_dim, 64);
  EXPECT_EQ(recipe.config_hash, "0123456789abcdef");
  const RecipeMethod otherwise{"xattention",
                               {{"tile", int64_t{128}},
                                {"stride", int64_t{16}},
                                {"threshold", .9},
                                {"density", 0.},
                                {"top_k", int64_t{0}},
                                {"selector", std::string("inverse")},
                                {"norm", 1.},
                                {"kdb", int64_t{1}},
                                {"keep_sink", false},
                                {"keep_recent", false},
                                {"compat", false},
                                {"seed", int64_t{0}},
                                {"chunk_size", int64_t{0}}}};
  EXPECT_EQ(recipe.otherwise.method, otherwise.method);
  EXPECT_EQ(recipe.otherwise.options, otherwise.options);
  EXPECT_EQ(recipe.of(0, 3), (RecipeMethod{"a_shape", {{"init", int64_t{64}}, {"local", int64_t{2048}}, {"tile", int64_t{64}}}}));
  EXPECT_EQ(recipe.of(0, 5), (RecipeMethod{"dense", {{"tile", int64_t{64}}}}));
  EXPECT_EQ(recipe.of(1, 0).method, "xattention");
  EXPECT_EQ(recipe.of(2, 1), (RecipeMethod{"mean_pool", {{"tile", int64_t{128}}, {"threshold", .9}, {"density", 0.}}}));
  EXPECT_EQ(recipe.of(2, 2), (RecipeMethod{"random", {{"density", .2}, {"tile", int64_t{64}}, {"seed", int64_t{7}}}}));
  EXPECT_EQ(recipe.of(2, 4),
            (RecipeMethod{"oracle", {{"rule", std::string("sum")}, {"threshold", .9}, {"density", 0.}, {"tile", int64_t{64}}, {"force", true}}}));
  EXPECT_NE(recipe.calibration.find("postgresql-wal.txt"), std::string::npos);
  EXPECT_EQ(parse_recipe(format_recipe(recipe), "text"), recipe);
}

// The methods that the first one lacks, as the searches write them: no hash, no calibration, options that are left out.
TEST(Recipe, ReadsTheGoldenFileOfASearch) {
  const Recipe recipe = read_recipe("tests/infer/golden_recipe_searched.json");
  EXPECT_EQ(recipe.config_hash, "");
  EXPECT_EQ(recipe.calibration, "");
  const RecipeMethod lines{"minference",
                           {{"pattern", std::string("vertical_slash")},
                            {"vertical", int64_t{500}},
                            {"slash", int64_t{700}},
                            {"init", int64_t{128}},
                            {"local", int64_t{512}},
                            {"blocks", int64_t{0}},
                            {"tile", int64_t{64}},
                            {"aligned", false},
                            {"last", int64_t{64}},
                            {"first", int64_t{4}},
                            {"nearest", int64_t{100}},
                            {"ratio", 1.5}}};
  EXPECT_EQ(recipe.of(0, 2), lines);
  EXPECT_EQ(
      recipe.of(1, 0),
      (RecipeMethod{"flexprefill", {{"gamma", .95}, {"tau", .1}, {"min_budget", int64_t{1}}, {"max_budget", int64_t{0}}, {"tile", int64_t{128}}}}));
  EXPECT_EQ(recipe.of(1, 1), (RecipeMethod{"minference", {{"pattern", std::string("block_sparse")}, {"blocks", int64_t{20}}}}));
  EXPECT_EQ(recipe.of(1, 3), recipe.of(1, 1));
  EXPECT_EQ(recipe.of(1, 2), lines);
  EXPECT_EQ(parse_recipe(format_recipe(recipe), "text"), recipe);
}

TEST(Recipe, RefusesEachFault) {
  struct Case {
    std::string text;
    const char *kind, *message;
  };
  const Case cases[] = {
      {"", "io", "is not JSON"},
      {"[]", "io", "takes an object"},
      {"{\"schema\":1", "io", "is not JSON"},
      {"{}", "io", "schema is missing"},
      {replaced("\"schema\":1", "\"schema\":2"), "io", "schema 2 is not known"},
      {replaced("\"schema\":1", "\"schema\":\"1\""), "io", "whole number"},
      {replaced("\"schema\":1", "\"schema\":1.5"), "io", "whole number"},
      {replaced("\"schema\":1", "\"schema\":1,\"schema\":1"), "io", "comes twice"},
      {replaced("\"schema\":1", "\"schema\":1,\"more\":0"), "io", "unknown key \"more\""},
      {replaced("\"layers\":2", "\"layers\":0"), "value", "takes 1 to 1024"},
      {replaced("\"layers\":2", "\"layers\":-3"), "value", "takes 1 to 1024"},
      {replaced("\"layers\":2", "\"layers\":18446744073709551615"), "value", "takes 1 to 1024"},
      {replaced("\"layers\":2,", ""), "io", "layers is missing"},
      {replaced("\"heads_kv\":2", "\"heads_kv\":4"), "value", "does not divide"},
      {replaced("\"head_dim\":8", "\"head_dim\":8,\"x\":1"), "io", "unknown key \"x\""},
      {replaced("\"config_hash\":\"00ff\"", "\"config_hash\":7"), "io", "takes a string"},
      {replaced("\"method\":\"xattention\"", "\"method\":\"yattention\""), "value", "yattention"},
      {replaced("\"method\":\"xattention\",", ""), "io", "method is missing"},
      {replaced("\"threshold\":1", "\"threshold\":1.5"), "value", "threshold"},
      {replaced("\"threshold\":1", "\"threshold\":\"high\""), "value", "threshold"},
      {replaced("\"threshold\":1", "\"threshold\":[1]"), "io", "takes a number, a string"},
      {replaced("\"threshold\":1", "\"treshold\":1"), "value", "treshold"},
      {replaced("\"stride\":8", "\"stride\":8.5"), "value", "stride"},
      {replaced("{\"threshold\":1,\"stride\":8}", "[]"), "io", "options is []"},
      {replaced("\"layer\":1", "\"layer\":2"), "value", "takes 0 to 1"},
      {replaced("\"layer\":1", "\"layer\":true"), "io", "whole number"},
      {replaced("[4,0]", "[4,4]"), "value", "head 4 is named twice"},
      {replaced("[4,0]", "[4,1]"), "value", "head 1 is named twice"},
      {replaced("[4,0]", "[6]"), "value", "takes 0 to 5"},
      {replaced("[4,0]", "[]"), "value", "heads is empty"},
      {replaced("[4,0]", "4"), "io", "takes a list"},
      {replaced("{\"layer\":1,", "{\"layer\":1,\"heads\":[]},{\"layer\":1,"), "value", "layer 1 is named twice"},
      {replaced("{\"text\":\"a\",\"lengths\":[1,2.5,null]}", "3"), "io", "calibration is 3"},
  };
  for (const Case& c : cases) {
    const std::string message = error_of([&] { parse_recipe(c.text, "the text"); });
    EXPECT_EQ(message.substr(0, message.find(':')), c.kind) << message;
    EXPECT_NE(message.find(c.message), std::string::npos) << "'" << message << "' should say '" << c.message << "'";
    EXPECT_NE(message.find("the text"), std::string::npos) << message;
  }
  EXPECT_EQ(error_of([] { read_recipe("/no/such/recipe.json"); }).substr(0, 3), "io:");
}

TEST(Recipe, WritingRefusesWhatCannotBeReadBack) {
  TemporaryFolder folder;
  const auto refusal = [&](auto&& change) {
    Recipe recipe = parse_recipe(kGood, "text");
    change(recipe);
    return error_of([&] { write_recipe(folder.file("recipe.json"), recipe); }).substr(0, 6);
  };
  EXPECT_EQ(refusal([](Recipe& r) { r.otherwise.method = "none"; }), "value:");
  EXPECT_EQ(refusal([](Recipe& r) { r.layers[0].layer = 2; }), "value:");
  EXPECT_EQ(refusal([](Recipe& r) { r.otherwise.options["threshold"] = NAN; }), "value:");
  EXPECT_EQ(refusal([](Recipe& r) { r.num_layers = 0; }), "value:");
  EXPECT_EQ(folder.count(), 0);
}

TEST(Recipe, IsHeldAgainstTheModel) {
  TinyCheckpoint checkpoint;
  checkpoint.make(1);
  TemporaryFolder folder;
  checkpoint.write(folder.path());
  Context context;
  const ModelConfig config = Model::load(folder.path(), context).config();
  Recipe recipe = uniform_recipe(config, {"a_shape", {}});
  EXPECT_EQ(error_of([&] { check_recipe(recipe, config); }), "no error");
  EXPECT_EQ(parse_recipe(format_recipe(recipe), "text"), recipe);
  recipe.config_hash = "0123";
  EXPECT_NE(error_of([&] { check_recipe(recipe, config); }).find("config.json hashes to 0123"), std::string::npos);
  recipe.config_hash.clear();
  EXPECT_EQ(error_of([&] { check_recipe(recipe, config); }), "no error");
  recipe.heads_q = 12;
  EXPECT_NE(error_of([&] { check_recipe(recipe, config); }).find("for another model"), std::string::npos);
}

/// Attention of `length` random tokens in a layer with 4 query and 2 K/V heads.
struct Layer {
  explicit Layer(int64_t length, int number = 0)
      : q(host_memory(), Dtype::f32, {1, 4, length, 16}),
        k(host_memory(), Dtype::f32, {1, 2, length, 16}),
        v(host_memory(), Dtype::f32, {1, 2, length, 16}),
        out(host_memory(), Dtype::f32, {1, 4, length, 16}) {
    std::mt19937 random(9);
    std::normal_distribution<float> normal;
    for (const Tensor* tensor : {&q, &k, &v}) {
      for (int64_t i = 0; i < tensor->view.numel(); ++i) tensor->view.data<float>()[i] = normal(random);
    }
    attention = {.layer = number, .q = q.view, .k = k.view, .v = v.view, .out = out.view};
  }
  Tensor q, k, v, out;
  LayerAttention attention;
};

TEST(RecipeAttention, GivesEachHeadItsOwnMethod) {
  Context context;
  const RecipeMethod shape = {"a_shape", {}}, tiles = {"random", {}}, dense = {"dense", {}};
  Recipe recipe;
  recipe.num_layers = 2, recipe.heads_q = 4, recipe.heads_kv = 2, recipe.head_dim = 16;
  recipe.otherwise = dense;
  recipe.layers = {{1, {{{0, 3}, shape}, {{2}, tiles}}}};
  Layer mixed(3000, 1);
  std::vector<LayerReport> reports;
  recipe_attention(recipe, [&](const LayerReport& report) { reports.push_back(report); })(mixed.attention, context);
  ASSERT_EQ(reports.size(), 1u);
  EXPECT_EQ(reports[0].layer, 1);
  EXPECT_GT(reports[0].plan_ms, 0);
  EXPECT_GT(reports[0].attend_ms, 0);
  EXPECT_FALSE(reports[0].ran.backend.empty());
  double density = 0;
  for (const auto& [use, heads] : {std::pair<RecipeMethod, std::vector<int>>{shape, {0, 3}}, {tiles, {2}}, {dense, {1}}}) {
    Layer alone(3000, 1);
    double own = 0;
    method_attention(use.method, use.options, [&](const LayerReport& report) { own = report.density; })(alone.attention, context);
    density += own * static_cast<double>(heads.size()) / 4;
    for (const int head : heads) {
      for (int64_t s = 0; s < 3000; ++s) {
        for (int64_t i = 0; i < 16; ++i)
          ASSERT_NEAR(mixed.out.view.at<float>(0, head, s, i), alone.out.view.at<float>(0, head, s, i), 2e-6) << use.method;
      }
    }
  }
  // Tiles differ between the methods, so the parts are close to, not equal to, the shares of the joined plan.
  EXPECT_NEAR(reports[0].density, density, 0.1 * density);

  Layer other(3000, 0), plain(3000, 0);
  recipe_attention(recipe)(other.attention, context);
  plain_attention(plain.attention, context);
  for (int64_t i = 0; i < plain.out.view.numel(); ++i) ASSERT_NEAR(other.out.view.data<float>()[i], plain.out.view.data<float>()[i], 1e-5);

  Problem problem;
  problem.q = mixed.q.view, problem.k = mixed.k.view, problem.v = mixed.v.view, problem.layer = 1;
  const RecipePlan planned = plan_recipe(recipe, problem, context);
  ASSERT_EQ(planned.head_plans.size(), 4u);
  EXPECT_EQ(planned.head_plans[0], planned.head_plans[3]);
  EXPECT_NE(planned.head_plans[0], planned.head_plans[1]);
  problem.layer = 0;
  EXPECT_TRUE(plan_recipe(recipe, problem, context).head_plans.empty());
}

TEST(RecipeAttention, RefusesBadCalls) {
  Context context;
  EXPECT_EQ(error_of([] { method_attention("none", {}); }).substr(0, 6), "value:");
  EXPECT_EQ(error_of([] { method_attention("a_shape", {{"none", int64_t{1}}}); }).substr(0, 6), "value:");
  Recipe recipe;
  recipe.num_layers = 1, recipe.heads_q = 4;
  Layer layer(100, 1);
  EXPECT_NE(error_of([&] { recipe_attention(recipe)(layer.attention, context); }).find("layer 1, the recipe is for a model of 1"), std::string::npos);
  recipe.num_layers = 2, recipe.heads_q = 8;
  EXPECT_EQ(error_of([&] { recipe_attention(recipe)(layer.attention, context); }).substr(0, 6), "shape:");
  recipe.layers = {{0, {{{1}, {"none", {}}}}}};
  EXPECT_EQ(error_of([&] { recipe_attention(recipe); }).substr(0, 6), "value:");
}

}  // namespace
}  // namespace tilewise
