// SPDX-License-Identifier: Apache-2.0
#include "tilewise/methods/flexprefill.h"

#include <algorithm>
#include <numeric>
#include <random>
#include <set>

#include "tests/methods/definition_testing.h"
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

/// The definition, head by head, in plain loops and f64.
struct Definition {
  const TestProblem& test;
  FlexPrefillOptions options;
  double distance = HUGE_VAL;  // how near some choice came to its cut
  bool is_by_map = false;

  int64_t sq() const { return test.q.view.dim(2); }
  int64_t sk() const { return test.k.view.dim(2); }
  int64_t tiles() const { return (sk() + options.tile - 1) / options.tile; }
  double scale() const { return 1 / std::sqrt(static_cast<double>(test.q.view.dim(3))); }

  double product(int64_t b, int h, int64_t q0, int64_t q1, int64_t k0, int64_t k1) const {
    double dot = 0;
    for (int64_t d = 0; d < test.q.view.dim(3); ++d) {
      double mean_q = 0, mean_k = 0;
      for (int64_t i = q0; i < q1; ++i) mean_q += test.q.get(b, h, i, d);
      for (int64_t k = k0; k < k1; ++k) mean_k += test.k.get(b, test.head_kv(h), k, d);
      dot += mean_q / static_cast<double>(q1 - q0) * mean_k / static_cast<double>(k1 - k0);
    }
    return dot * scale();
  }
  std::vector<double> softmax(std::vector<double> x) const {
    const double most = *std::max_element(x.begin(), x.end());
    double total = 0;
    for (double& value : x) total += value = std::exp(value - most);
    for (double& value : x) value /= total;
    return x;
  }
  void cut_near(double gap) { distance = std::min(distance, std::abs(gap)); }

  int64_t cover(std::vector<double> values) {
    std::sort(values.rbegin(), values.rend());
    double held = 0;
    int64_t count = 1;
    for (const double value : values) {
      held += value;
      const double gap = held - static_cast<double>(options.gamma);
      if (gap <= 0) ++count;
      // Only a change of the tile count matters, which a change by one token rarely is.
      if (count % options.tile <= 1 || count % options.tile == options.tile - 1) cut_near(gap);
    }
    return std::min(count, static_cast<int64_t>(values.size()));
  }
  /// Number 0 comes first and counts.
  std::set<int64_t> best(const std::vector<double>& values, int64_t count) {
    std::vector<int64_t> order(values.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin() + 1, order.end(),
                     [&](int64_t x, int64_t y) { return values[static_cast<size_t>(x)] > values[static_cast<size_t>(y)]; });
    count = std::min<int64_t>(count, static_cast<int64_t>(order.size()));
    if (count > 1 && count < static_cast<int64_t>(order.size()))
      cut_near(values[static_cast<size_t>(order[static_cast<size_t>(count - 1)])] - values[static_cast<size_t>(order[static_cast<size_t>(count)])]);
    return {order.begin(), order.begin() + count};
  }

  /// has[m][j]: the row whose queries lie in token tile m reads key tile j.
  std::vector<std::vector<bool>> head(int64_t b, int h) {
    const int64_t tile = options.tile, last = std::min(tile, sq()), offset = sk() - sq();
    const auto stop = [&](int64_t j) { return std::min(sk(), (j + 1) * tile); };
    std::vector<std::vector<bool>> has(static_cast<size_t>(tiles()), std::vector<bool>(static_cast<size_t>(tiles()), false));
    std::vector<double> vertical(static_cast<size_t>(sk()), 0.0), slash(vertical);
    for (int64_t i = sq() - last; i < sq(); ++i) {
      std::vector<double> s;
      for (int64_t k = 0; k <= i + offset; ++k) {
        double dot = 0;
        for (int64_t d = 0; d < test.q.view.dim(3); ++d) dot += test.q.get(b, h, i, d) * test.k.get(b, test.head_kv(h), k, d);
        s.push_back(dot * scale());
      }
      const std::vector<double> p = softmax(s);
      for (size_t k = 0; k < p.size(); ++k) {
        vertical[k] += p[k] / static_cast<double>(last);
        slash[static_cast<size_t>(i + offset) - k] += p[k] / static_cast<double>(last);
      }
    }
    const auto pool = [&](const std::vector<double>& values) {
      std::vector<double> sums(static_cast<size_t>(tiles()), 0.0);
      for (size_t i = 0; i < values.size(); ++i) sums[i / static_cast<size_t>(tile)] += values[i];
      return sums;
    };
    const std::vector<double> by_column = pool(vertical), by_diagonal = pool(slash);
    std::vector<double> means;
    for (int64_t j = 0; j < tiles(); ++j) means.push_back(product(b, h, sq() - last, sq(), j * tile, stop(j)));
    const double js = jensen_shannon_distance(softmax(means), by_column);
    cut_near(js - static_cast<double>(options.tau));
    is_by_map = js < static_cast<double>(options.tau);
    int64_t columns = options.min_budget, diagonals = options.min_budget;
    if (!is_by_map) {
      columns = std::max<int64_t>(columns, cover(vertical) / tile + 1);
      diagonals = std::max<int64_t>(diagonals, cover(slash) / tile + 1);
      if (options.max_budget > 0) {
        columns = std::min<int64_t>(columns, options.max_budget);
        diagonals = std::min<int64_t>(diagonals, options.max_budget);
      }
    }
    const std::set<int64_t> chosen_columns = best(by_column, columns), chosen_diagonals = best(by_diagonal, diagonals);
    std::vector<std::tuple<double, int64_t, int64_t>> map;  // minus the value, row, tile
    for (int64_t m = std::max<int64_t>(0, offset / tile); m < tiles(); ++m) {
      const int64_t first = std::max<int64_t>(m * tile - offset, 0), past = std::min(sq(), (m + 1) * tile - offset);
      std::vector<double> row;
      for (int64_t j = 0; j <= m; ++j) {
        has[static_cast<size_t>(m)][static_cast<size_t>(j)] = chosen_columns.count(j) != 0 || chosen_diagonals.count(m - j) != 0;
        if (is_by_map) row.push_back(product(b, h, first, past, j * tile, stop(j)));
      }
      if (!is_by_map) continue;
      row = softmax(row);
      for (size_t j = 0; j < row.size(); ++j) map.emplace_back(-row[j], m, static_cast<int64_t>(j));
    }
    std::sort(map.begin(), map.end());
    double total = 0, held = 0;
    for (const auto& [value, m, j] : map) total -= value;
    for (const auto& [value, m, j] : map) {
      held -= value;
      cut_near(held - static_cast<double>(options.gamma) * total);
      if (held > static_cast<double>(options.gamma) * total) break;
      has[static_cast<size_t>(m)][static_cast<size_t>(j)] = true;
    }
    return has;
  }
};

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
          Definition definition{test, options};
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
