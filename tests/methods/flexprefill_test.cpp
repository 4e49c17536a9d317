// SPDX-License-Identifier: Apache-2.0
#include "tilewise/methods/flexprefill.h"

#include <algorithm>
#include <numeric>
#include <random>

#include "tests/methods/definition_testing.h"
#include "tests/methods/flexprefill_definition.h"
#include "tilewise/plan/validate.h"

namespace tilewise::method {
namespace {

using testing::TestProblem;

// MInference spec 6, oracle 7.
TEST(CountCover, CountsOneMoreThanThePrefixesWithin) {
  const auto count = [](std::vector<float> values, double share) { return count_cover(values, share); };
  EXPECT_EQ(count({.5f, .3f, .15f, .05f}, .9), 3);
  EXPECT_EQ(count({.5f, .25f, .25f}, .75), 3) << "a prefix that equals the share counts";
  EXPECT_EQ(count({.05f, .15f, .5f, .3f}, .9), 3) << "in any order";
  EXPECT_EQ(count({.5f, .5f}, 0), 1);
  EXPECT_EQ(count({.5f, .5f}, 1), 2) << "never more than there are";
  EXPECT_EQ(count({0, 0, 1, 0}, .5), 1);
  EXPECT_EQ(count({}, .5), 0);
}

TEST(CountCover, EqualsASortedWalk) {
  std::mt19937 engine(7);
  for (int round = 0; round < 200; ++round) {
    std::vector<float> values(static_cast<size_t>(std::uniform_int_distribution<int>(1, 400)(engine)));
    std::exponential_distribution<float> draw(1);
    for (float& value : values) value = std::pow(draw(engine), round % 2 == 0 ? 1.0f : 6.0f);
    const double total = std::accumulate(values.begin(), values.end(), 0.0);
    const double share = std::uniform_real_distribution<double>(0, 1)(engine) * total;
    std::vector<float> sorted = values;
    std::sort(sorted.rbegin(), sorted.rend());
    double held = 0, nearest = HUGE_VAL;
    int64_t expected = 1;
    for (const float value : sorted) {
      held += static_cast<double>(value);
      nearest = std::min(nearest, std::abs(held - share));
      expected += held <= share ? 1 : 0;
    }
    if (nearest < 1e-9 * total) continue;
    EXPECT_EQ(count_cover(values, share), std::min(expected, static_cast<int64_t>(values.size()))) << round;
  }
}

TEST(JensenShannonDistance, IsTheRootOfTheDivergence) {
  // ln 2 bounds the divergence. The spec prints .3195 for the third pair; its formula gives .31898.
  const auto distance = [](std::vector<double> p, std::vector<double> q) { return jensen_shannon_distance(p, q); };
  EXPECT_EQ(distance({.5, .5}, {.5, .5}), 0);
  EXPECT_NEAR(distance({1, 0}, {0, 1}), std::sqrt(std::log(2)), 1e-12);
  EXPECT_NEAR(distance({.5, .5}, {.9, .1}), .31898, 1e-5);
}

TEST(FlexPrefill, EqualsItsDefinition) {
  unsigned seed = 700;
  int64_t by_map = 0, by_lines = 0;
  for (const testing::Sizes& s : std::vector<testing::Sizes>{
           {1, 4, 2, 500, 500, 16}, {2, 2, 1, 131, 131, 16}, {1, 2, 1, 65, 300, 16}, {1, 2, 2, 64, 256, 16}, {1, 2, 1, 1, 177, 16}}) {
    for (const int variant : {0, 1, 2, 3}) {
      FlexPrefillOptions options;
      options.tile = 16;
      options.tau = variant == 0 ? 0.0f : variant == 1 ? 1.0f : .35f;
      options.gamma = variant == 3 ? .5f : .8f;
      if (variant == 2) options.min_budget = 3, options.max_budget = 4;
      SCOPED_TRACE(::testing::Message() << s << " variant " << variant);
      TestProblem test(s, Dtype::f32, Mask::causal(), ++seed);
      Context context;
      const Plan plan = flexprefill(test.problem, options, context).plan;
      ASSERT_NO_THROW(validate(plan, test.problem.mask));
      std::vector<std::pair<double, std::vector<std::vector<bool>>>> heads;
      for (int64_t b = 0; b < s.batch; ++b) {
        for (int h = 0; h < s.heads_q; ++h) {
          testing::FlexPrefillDefinition definition{test, options};
          auto has = definition.head(b, h);
          heads.emplace_back(definition.distance, std::move(has));
          (definition.is_by_map ? by_map : by_lines) += 1;
        }
      }
      testing::expect_tiles(
          plan, test, 16,
          [&](int64_t b, int h, size_t, int64_t, int64_t q_last) {
            const auto& [distance, has] = heads[static_cast<size_t>(b * s.heads_q + h)];
            testing::Choice choice{{}, distance};
            const int64_t m = (q_last - 1 + s.seqlen_k - s.seqlen_q) / 16;
            for (size_t j = 0; j < has.size(); ++j) {
              if (has[static_cast<size_t>(m)][j]) choice.tiles.insert(static_cast<int64_t>(j));
            }
            return choice;
          },
          1e-6);
    }
  }
  EXPECT_GT(by_map, 10);
  EXPECT_GT(by_lines, 10);
}

TEST(FlexPrefill, ReadsShortSequencesInFull) {
  for (const auto& [length, min_budget, is_dense] : std::vector<std::tuple<int64_t, int, bool>>{{256, 1, true}, {300, 3, true}, {600, 1, false}}) {
    const TestProblem test({1, 1, 1, length, length, 8}, Dtype::f32, Mask::causal(), 3);
    FlexPrefillOptions options;
    options.gamma = 0;
    options.min_budget = min_budget;
    Context context;
    const Plan plan = flexprefill(test.problem, options, context).plan;
    EXPECT_EQ(testing::bits_of(*plan, true) == testing::bits_of_mask(Mask::causal(), 1, 1, length, length), is_dense) << length;
  }
}

TEST(FlexPrefill, RefusesBudgetsThatCross) {
  const TestProblem test({1, 1, 1, 40, 40, 8}, Dtype::f32, Mask::causal(), 3);
  FlexPrefillOptions options;
  options.min_budget = 3;
  options.max_budget = 2;
  Context context;
  try {
    flexprefill(test.problem, options, context);
    ADD_FAILURE() << "passed";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), Error::Kind::value);
  }
}

}  // namespace
}  // namespace tilewise::method
