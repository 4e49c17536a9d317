// SPDX-License-Identifier: Apache-2.0
#include "tilewise/study/head_search.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "tests/select/testing.h"
#include "tests/study/tiny_model.h"
#include "tilewise/machine/cpu/context.h"
#include "tilewise/methods/registry.h"
#include "tilewise/plan/count.h"
#include "tilewise/study/thresholds.h"

namespace tilewise::study {
namespace {

using testing::TestTensor;

/// Heads of known shape, [1, H, N, 128]: every head has keys of its own.
class Heads {
 public:
  static constexpr int64_t kDim = 128;
  Heads(int heads, int64_t length)
      : q(testing::make_tensor(Dtype::f32, 1, heads, length, kDim)),
        k(testing::make_tensor(Dtype::f32, 1, heads, length, kDim)),
        v(testing::random_tensor(Dtype::f32, 1, heads, length, kDim, 3)),
        length_(length) {}

  /// Equal attention to the first 100 keys and to whole blocks of 25 keys among the last 800.
  void set_sink_and_window(int head) {
    for (int64_t t = 0; t < length_; ++t) {
      k.set(0, head, t, t / 25, 1);
      for (int64_t block = 0; block <= t / 25; ++block) {
        if (block < 4 || block * 25 >= t - 799) q.set(0, head, t, block, 340);  // a logit of 30
      }
    }
  }
  /// Attention to the keys 0, 911 and 1,302 tokens back.
  void set_offsets(int head) {
    std::mt19937 engine(5);
    for (int64_t t = 0; t < length_; ++t) {
      for (int64_t d = 0; d < kDim; ++d) k.set(0, head, t, d, engine() % 2 == 0 ? 1.0f : -1.0f);
      for (const int64_t offset : {0, 911, 1302}) {
        for (int64_t d = 0; d < kDim && offset <= t; ++d)
          q.set(0, head, t, d, static_cast<float>(q.get(0, head, t, d) + 2.65 * k.get(0, head, t - offset, d)));
      }
    }
  }
  /// Attention that falls off with distance: logit -distance / 40.
  void set_falling(int head) {
    const float scale = std::sqrt(static_cast<float>(kDim)) / 40;
    for (int64_t t = 0; t < length_; ++t) {
      q.set(0, head, t, 0, scale);
      q.set(0, head, t, 1, -scale * static_cast<float>(t));
      k.set(0, head, t, 0, static_cast<float>(t));
      k.set(0, head, t, 1, 1);
    }
  }
  Problem problem() const { return {.q = q.view, .k = k.view, .v = v.view}; }

  TestTensor q, k, v;

 private:
  int64_t length_;
};

std::string pattern_of(const RecipeMethod& use) {
  const auto at = use.options.find("pattern");
  return at == use.options.end() ? "vertical_slash" : std::get<std::string>(at->second);
}

// MInference spec 6, oracle 6.
TEST(HeadSearch, LabelsHeadsOfKnownShape) {
  Heads heads(2, 1600);
  heads.set_sink_and_window(0);
  heads.set_offsets(1);
  Context context = cpu_context(2);
  HeadSearch search;
  search.candidates = released_mass_candidates(1600);
  search.objective = HeadSearch::Objective::mass;
  search.first_row = 1000;
  const std::vector<HeadPick> by_mass = search_layer(heads.problem(), search, context);
  EXPECT_EQ(pattern_of(by_mass[0].use), "a_shape");
  EXPECT_NEAR(by_mass[0].scores[0], 1, 1e-5);
  for (const size_t other : {size_t{1}, size_t{2}, size_t{3}, size_t{5}}) EXPECT_LT(by_mass[0].scores[other], 1 - 1e-4) << other;
  EXPECT_EQ(pattern_of(by_mass[1].use), "vertical_slash");
  EXPECT_NEAR(by_mass[1].scores[1], 1, 1e-4);
  EXPECT_LT(by_mass[1].scores[0], .7) << "of three offsets the window holds one";

  search.becomes_vertical_slash = true;
  const RecipeMethod rewritten = search_layer(heads.problem(), search, context)[0].use;
  EXPECT_EQ(rewritten, (RecipeMethod{"minference", {{"vertical", int64_t{100}}, {"slash", int64_t{800}}}}));

  search = {};
  search.candidates = released_output_candidates();
  search.tolerance = 5e-3;
  const std::vector<HeadPick> by_output = search_layer(heads.problem(), search, context);
  EXPECT_EQ(by_output[0].scores[0], 0) << "a_shape moves no element";
  EXPECT_EQ(pattern_of(by_output[1].use), "vertical_slash");
  search.tolerance = 0;
  for (const HeadPick& pick : search_layer(heads.problem(), search, context)) {
    EXPECT_EQ(pick.scores[pick.candidate], *std::min_element(pick.scores.begin(), pick.scores.end()));
    for (const double score : pick.scores) EXPECT_GE(score, 0);
  }
}

TEST(HeadSearch, FitsEveryCandidateToTheCost) {
  Heads heads(2, 2500);
  heads.set_falling(0);
  heads.set_sink_and_window(1);
  Context context = cpu_context(2);
  HeadSearch search;
  search.candidates = paper_candidates();
  search.fit_init = 128;
  search.fit_local = 900;
  const std::vector<HeadPick> picks = search_layer(heads.problem(), search, context);
  const Plan target =
      plan_with("minference", heads.problem(), {{"pattern", std::string("a_shape")}, {"init", int64_t{128}}, {"local", int64_t{900}}}, context).plan;
  const Plan dense = plan_with("dense", heads.problem(), {}, context).plan;
  for (const HeadPick& pick : picks) {
    const double cost = static_cast<double>(reads(target, pick.head)) / static_cast<double>(reads(dense, pick.head));
    for (const size_t c : {size_t{1}, size_t{2}, size_t{3}, size_t{5}})
      EXPECT_NEAR(pick.costs[c], cost, .06 * cost) << "head " << pick.head << " candidate " << c;
    const Plan again = plan_with(pick.use.method, heads.problem(), pick.use.options, context).plan;
    EXPECT_NEAR(static_cast<double>(reads(again, pick.head)) / static_cast<double>(reads(dense, pick.head)), pick.costs[pick.candidate], 1e-12)
        << "the recipe holds the sizes that were found";
  }
}

TEST(HeadSearch, RefusesWhatItCannotSearch) {
  Heads heads(1, 64);
  heads.set_falling(0);
  Context context;
  const auto kind_of = [&](const HeadSearch& search) {
    try {
      search_layer(heads.problem(), search, context);
    } catch (const Error& error) {
      return error.kind();
    }
    return Error::Kind::io;
  };
  EXPECT_EQ(kind_of({}), Error::Kind::value);
  EXPECT_EQ(kind_of({.candidates = {{"no such method", {}}}}), Error::Kind::value);
  EXPECT_EQ(kind_of({.candidates = {{"a_shape", {{"local", int64_t{0}}}}}}), Error::Kind::value);
  EXPECT_EQ(kind_of({.candidates = {{"a_shape", {}}}, .tolerance = -1}), Error::Kind::value);
  EXPECT_EQ(kind_of({.candidates = {{"a_shape", {}}}}), Error::Kind::io) << "passes";
}

CompareText drawn_text(size_t length) {
  CompareText text{"drawn", {}};
  for (size_t i = 0; i < length; ++i) text.tokens.push_back(static_cast<int32_t>('a' + splitmix64(i) % 7));
  return text;
}

class SearchOfModel : public ::testing::Test {
 protected:
  SearchOfModel() {
    TinyModel().save(folder_.path());
    context_ = cpu_context(2);
    model_.emplace(Model::load(folder_.path(), context_));
  }
  TemporaryFolder folder_;
  Context context_;
  std::optional<Model> model_;
};

TEST_F(SearchOfModel, WritesARecipeThatRuns) {
  HeadSearch search;
  search.text = drawn_text(300);
  search.candidates = {{"a_shape", {{"init", int64_t{4}}, {"local", int64_t{40}}}},
                       {"minference", {{"vertical", int64_t{40}}, {"slash", int64_t{60}}}},
                       {"dense", {}}};
  int layers = 0;
  search.progress = [&](int, int) { ++layers; };
  const HeadSearchResult result = search_heads(*model_, search, context_);
  EXPECT_EQ(layers, TinyModel::kLayers + 1);
  ASSERT_EQ(result.picks.size(), static_cast<size_t>(TinyModel::kLayers * TinyModel::kHeadsQ));
  for (const HeadPick& pick : result.picks) {
    EXPECT_EQ(pick.use.method, "dense") << "nothing moves less than nothing";
    EXPECT_EQ(pick.scores.size(), 3u);
    EXPECT_LE(pick.scores[2], 1e-4);
    EXPECT_EQ(result.recipe.of(pick.layer, pick.head), pick.use);
  }
  search.candidates.pop_back();
  const HeadSearchResult sparse = search_heads(*model_, search, context_);
  const Recipe read = parse_recipe(format_recipe(sparse.recipe), "test");
  EXPECT_EQ(read, sparse.recipe);
  EXPECT_NE(read.calibration.find("\"objective\":\"output\""), std::string::npos) << read.calibration;
  CompareRequest request;
  request.texts = {drawn_text(200)};
  request.recipe = read;
  const Comparison comparison = compare(*model_, request, context_);
  ASSERT_EQ(comparison.methods.size(), 1u);
  EXPECT_FALSE(comparison.methods[0].is_refused()) << comparison.methods[0].refused;
}

TEST_F(SearchOfModel, ProfilesThresholds) {
  ProfileSearch search;
  search.texts = {drawn_text(300)};
  search.tile = 32;
  search.stride = 8;
  const Recipe recipe = profile_map(*model_, search, context_);
  for (int layer = 0; layer < TinyModel::kLayers; ++layer) {
    for (int head = 0; head < TinyModel::kHeadsQ; ++head) {
      const RecipeMethod& use = recipe.of(layer, head);
      EXPECT_EQ(use.method, "xattention");
      const double threshold = std::get<double>(use.options.at("threshold"));
      EXPECT_GT(threshold, .5);
      EXPECT_LE(threshold, 1);
    }
  }
  EXPECT_EQ(parse_recipe(format_recipe(recipe), "test"), recipe);
  search.texts.clear();
  EXPECT_THROW(profile_map(*model_, search, context_), Error);
}

// The threshold of a head, from the definition: true masses in f64, the spec's estimate, both in plain loops.
TEST(ProfileLayer, EqualsItsDefinition) {
  const int64_t length = 150, tile = 32;
  const TestTensor q = testing::random_tensor(Dtype::f32, 1, 2, length, 16, 71, 1.6f),
                   k = testing::random_tensor(Dtype::f32, 1, 1, length, 16, 72, 1.6f), v = testing::random_tensor(Dtype::f32, 1, 1, length, 16, 73);
  Context context = cpu_context(2);
  ProfileSearch search;
  search.tile = static_cast<int>(tile);
  search.stride = 8;
  const std::vector<double> thresholds = profile_layer({.q = q.view, .k = k.view, .v = v.view}, search, context);
  const int64_t tiles = (length + tile - 1) / tile;
  for (int h = 0; h < 2; ++h) {
    std::vector<float> truth(static_cast<size_t>(tiles * tiles), 0.0f), estimate(truth);
    for (int64_t i = 0; i < length; ++i) {
      std::vector<double> p;
      double total = 0;
      for (int64_t j = 0; j <= i; ++j) {
        double dot = 0;
        for (int64_t d = 0; d < 16; ++d) dot += q.get(0, h, i, d) * k.get(0, 0, j, d);
        p.push_back(std::exp(dot / 4));
        total += p.back();
      }
      for (int64_t j = 0; j <= i; ++j)
        truth[static_cast<size_t>(i / tile * tiles + j / tile)] += static_cast<float>(p[static_cast<size_t>(j)] / total);
    }
    // X[i, c] = 1 / (8 * 4) * sum over t of q[8 i + 7 - t] . k[8 c + t], softmax over c <= i.
    const int64_t groups = (length + 7) / 8;
    for (int64_t i = 0; i < groups; ++i) {
      std::vector<double> p;
      double total = 0;
      for (int64_t c = 0; c <= i; ++c) {
        double dot = 0;
        for (int64_t t = 0; t < 8; ++t) {
          if (8 * i + 7 - t >= length || 8 * c + t >= length) continue;
          for (int64_t d = 0; d < 16; ++d) dot += q.get(0, h, 8 * i + 7 - t, d) * k.get(0, 0, 8 * c + t, d);
        }
        p.push_back(std::exp(dot / 32));
        total += p.back();
      }
      for (int64_t c = 0; c <= i; ++c)
        estimate[static_cast<size_t>(i * 8 / tile * tiles + c * 8 / tile)] += static_cast<float>(p[static_cast<size_t>(c)] / total);
    }
    EXPECT_NEAR(thresholds[static_cast<size_t>(h)], profile_threshold(truth, estimate, tiles), 1e-4) << h;
  }
}

}  // namespace
}  // namespace tilewise::study
