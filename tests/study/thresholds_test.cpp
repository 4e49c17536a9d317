// SPDX-License-Identifier: Apache-2.0
#include "tilewise/study/thresholds.h"

#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <random>

#include "tilewise/base/error.h"

namespace tilewise::study {
namespace {

const std::vector<double> kLoss1 = {0, .1, .5}, kLoss2 = {0, .05, .3};

// XAttention spec 6, oracle 7.
TEST(Thresholds, SolveTheSpecsKnapsacks) {
  const std::vector<std::vector<double>> losses = {kLoss1, kLoss2};
  const StepChoice two = dp_adjustments(losses, 2);
  EXPECT_NEAR(two.loss, .15, 1e-12);
  EXPECT_EQ(two.steps, (std::vector<int>{1, 1}));
  const std::vector<StepTable> heads = {{kLoss1, {0, 20, 30}}, {kLoss2, {0, 10, 25}}};
  EXPECT_NEAR(dp_knapsack(heads, 30).loss, .15, 1e-12);
  EXPECT_NEAR(dp_knapsack(heads, 45).loss, .4, 1e-12);
  EXPECT_EQ(dp_knapsack(heads, 45).saved, 45);
  EXPECT_EQ(dp_knapsack(heads, 0).steps, (std::vector<int>{0, 0}));
  EXPECT_EQ(dp_knapsack_within(heads, .2).saved, 30);
  EXPECT_EQ(dp_knapsack_within(heads, .4 + 1e-9).saved, 45);
  EXPECT_EQ(dp_knapsack_within(heads, 9).saved, 55);
  EXPECT_EQ(dp_knapsack_within(heads, 0).saved, 0);
}

/// Calls `visit` with every vector of steps.
template <class Visit>
void for_all_steps(const std::vector<size_t>& counts, const Visit& visit) {
  std::vector<int> steps(counts.size(), 0);
  while (true) {
    visit(steps);
    size_t h = 0;
    while (h < steps.size() && ++steps[h] == static_cast<int>(counts[h])) steps[h++] = 0;
    if (h == steps.size()) return;
  }
}

TEST(Thresholds, EqualBruteForceOnRandomTables) {
  std::mt19937 engine(11);
  const auto draw = [&](int low, int high) { return std::uniform_int_distribution<int>(low, high)(engine); };
  for (int round = 0; round < 150; ++round) {
    std::vector<StepTable> heads(static_cast<size_t>(draw(1, 4)));
    std::vector<std::vector<double>> losses;
    std::vector<size_t> counts;
    for (StepTable& head : heads) {
      const int levels = draw(1, 4);
      for (int n = 0; n < levels; ++n) {
        head.loss.push_back(n == 0 ? 0 : draw(0, 50) * .125);
        head.save.push_back(n == 0 ? 0 : draw(0, 12));
      }
      losses.push_back(head.loss);
      counts.push_back(head.loss.size());
    }
    std::map<int64_t, double> least_by_saving, least_by_count;
    for_all_steps(counts, [&](const std::vector<int>& steps) {
      double loss = 0;
      int64_t saved = 0, count = 0;
      for (size_t h = 0; h < steps.size(); ++h) {
        loss += heads[h].loss[static_cast<size_t>(steps[h])];
        saved += heads[h].save[static_cast<size_t>(steps[h])];
        count += steps[h];
      }
      const auto take = [&](std::map<int64_t, double>& least, int64_t at) {
        const auto [place, is_new] = least.emplace(at, loss);
        if (!is_new) place->second = std::min(place->second, loss);
      };
      take(least_by_saving, saved);
      take(least_by_count, count);
    });
    const int64_t most = least_by_saving.rbegin()->first;
    for (int64_t saving = 0; saving <= most; ++saving) {
      double expected = HUGE_VAL;
      for (const auto& [saved, loss] : least_by_saving) expected = saved >= saving ? std::min(expected, loss) : expected;
      const StepChoice choice = dp_knapsack(heads, saving);
      ASSERT_NEAR(choice.loss, expected, 1e-12) << round;
      ASSERT_GE(choice.saved, saving);
      double loss = 0;
      for (size_t h = 0; h < heads.size(); ++h) loss += heads[h].loss[static_cast<size_t>(choice.steps[h])];
      ASSERT_NEAR(loss, expected, 1e-12) << "the steps are those of the loss";
    }
    for (const auto& [count, loss] : least_by_count) ASSERT_NEAR(dp_adjustments(losses, count).loss, loss, 1e-12) << round;
    const double epsilon = draw(0, 80) * .125;
    int64_t expected = 0;
    for (const auto& [saved, loss] : least_by_saving) expected = loss <= epsilon ? std::max(expected, saved) : expected;
    ASSERT_EQ(dp_knapsack_within(heads, epsilon).saved, expected) << round;
  }
}

TEST(Thresholds, LiteralSearchFollowsItsRecurrence) {
  // Performance adds up by head: lowering heads 1 and 2 once each helps, a second step of head 1 helps more, head 0 hurts.
  const std::vector<std::vector<double>> gain = {{0, -1, -2}, {0, .5, 2}, {0, .25, .125}};
  int64_t calls = 0;
  LiteralSearch search;
  search.heads = 3;
  search.max_steps = 2;
  search.evaluate = [&](std::span<const int> steps) {
    ++calls;
    StepEvaluation evaluation{0, 100};
    for (size_t h = 0; h < steps.size(); ++h) {
      evaluation.performance += gain[h][static_cast<size_t>(steps[h])];
      evaluation.tiles -= steps[h];
    }
    return evaluation;
  };
  const LiteralChoice all = dp_literal(search);
  EXPECT_EQ(all.steps, (std::vector<int>{0, 2, 1}));
  EXPECT_NEAR(all.evaluation.performance, 2.25, 1e-12);
  EXPECT_EQ(all.evaluations, calls);
  search.adjustments = 1;
  EXPECT_EQ(dp_literal(search).steps, (std::vector<int>{0, 1, 0})) << "one adjustment: the best single one";
  search.adjustments = 2;
  EXPECT_EQ(dp_literal(search).steps, (std::vector<int>{0, 1, 1})) << "a pass lowers a head once";
  search.adjustments = 0;
  EXPECT_EQ(dp_literal(search).steps, (std::vector<int>{0, 0, 0}));
  calls = 0;
  search.adjustments = 3;
  search.max_steps = 1;
  dp_literal(search);
  EXPECT_EQ(calls, 1 + 6 + 1) << "each of the cells (h, m <= h) once; one adjustment is left, and head 0 alone has a step";
}

TEST(Thresholds, LiteralSearchBreaksTiesByTiles) {
  LiteralSearch search;
  search.heads = 2;
  search.max_steps = 1;
  search.evaluate = [](std::span<const int> steps) { return StepEvaluation{1, 10 - 2 * steps[0] - 3 * steps[1]}; };
  EXPECT_EQ(dp_literal(search).steps, (std::vector<int>{1, 1}));
  search.adjustments = 1;
  EXPECT_EQ(dp_literal(search).steps, (std::vector<int>{0, 1}));
}

// XAttention spec 6, oracle 8.
TEST(Thresholds, ProfileTheSpecsRows) {
  const std::vector<float> truth = {.5f, .3f, .15f, .05f}, apart = {.4f, .3f, .2f, .1f}, tied = {.4f, .4f, .1f, .1f};
  EXPECT_NEAR(profile_threshold(truth, apart, 4), .9, 1e-6);
  EXPECT_NEAR(profile_threshold(truth, tied, 4), 1.0, 1e-6);
  std::vector<float> both_truth = truth, both = apart;
  both_truth.insert(both_truth.end(), truth.begin(), truth.end());
  both.insert(both.end(), tied.begin(), tied.end());
  EXPECT_NEAR(profile_threshold(both_truth, both, 4), .95, 1e-6) << "shares of all rows together";
  EXPECT_NEAR(profile_threshold(truth, apart, 4, .4), .4, 1e-6);
  EXPECT_NEAR(profile_threshold(std::vector<float>(4, 0.0f), apart, 4), 0, 1e-12) << "a row that sees nothing";
}

TEST(Thresholds, StepDownByTenths) {
  EXPECT_NEAR(stepped_threshold(.9, 0), .9, 1e-12);
  EXPECT_NEAR(stepped_threshold(.9, 20), .9 * std::pow(.9, 20), 1e-12);
  EXPECT_EQ(stepped_threshold(.9, 21), 0);
}

TEST(Thresholds, RefuseWhatDoesNotFit) {
  const std::vector<StepTable> heads = {{kLoss1, {0, 20, 30}}};
  const std::vector<float> four(4, .25f), three(3, .25f);
  const std::vector<std::function<void()>> calls = {
      [&] { dp_knapsack({}, 0); },
      [&] { dp_knapsack(heads, 31); },
      [&] { dp_knapsack(heads, -1); },
      [&] { dp_knapsack(std::vector<StepTable>{{kLoss1, {0, 1}}}, 0); },
      [&] { dp_knapsack(std::vector<StepTable>{{{0, std::nan("")}, {0, 1}}}, 0); },
      [&] { dp_knapsack(std::vector<StepTable>{{{0, 1}, {0, -1}}}, 0); },
      [&] { dp_knapsack_within(heads, -1); },
      [&] { dp_adjustments(std::vector<std::vector<double>>{kLoss1}, 3); },
      [&] { dp_literal({}); },
      [&] { dp_literal({.heads = 2, .evaluate = {}}); },
      [&] { profile_threshold(four, three, 1); },
      [&] { profile_threshold(three, three, 2); },
      [&] { profile_threshold(four, four, 4, 1.5); },
  };
  for (size_t i = 0; i < calls.size(); ++i) {
    try {
      calls[i]();
      ADD_FAILURE() << "call " << i << " passed";
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), Error::Kind::value) << i;
    }
  }
}

}  // namespace
}  // namespace tilewise::study
