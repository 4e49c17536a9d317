// SPDX-License-Identifier: Apache-2.0
#include "tilewise/select/plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>

#include "tests/select/testing.h"

namespace tilewise::select {
namespace {

constexpr int kTile = 16;

/// Scores of one causal (or full) problem, each from `value`.
Scores scores_from(int64_t batch, int heads, int64_t seqlen_q, int64_t seqlen_k, const Mask& mask,
                   const std::function<float(int64_t, int, int64_t, int64_t)>& value) {
  Context context;
  const testing::TestTensor q = testing::make_tensor(Dtype::f32, batch, heads, seqlen_q, 8),
                            k = testing::make_tensor(Dtype::f32, batch, 1, seqlen_k, 8);
  const RowGrid grid = is_causal(mask, seqlen_k) ? RowGrid::on_key_tiles(seqlen_q, seqlen_k, kTile) : RowGrid::plain(seqlen_q, seqlen_k, kTile);
  Scores scores = make_scores({q.view, k.view, mask, 1, 0}, grid, kTile, context);
  for (int64_t b = 0; b < batch; ++b) {
    for (int h = 0; h < heads; ++h) {
      for (int64_t row = 0; row < grid.rows(); ++row) {
        for (int64_t j = 0; j < scores.key_tiles(); ++j) scores.row(b, h, row)[j] = value(b, h, row, j);
      }
    }
  }
  return scores;
}

/// Tiles that a row reads, from the plan.
std::set<int64_t> tiles_of(const Plan& plan, int64_t b, int h, int64_t q) {
  const testing::Bits bits = testing::bits_of(*plan, false);
  std::set<int64_t> tiles;
  for (int64_t k = 0; k < bits.seqlen_k; ++k) {
    if (const_cast<testing::Bits&>(bits).at(b, h, q, k) != 0) tiles.insert(k / kTile);
  }
  return tiles;
}

Plan plan_row(const std::vector<float>& values, const Budget& budget, const Mask& mask = Mask::full()) {
  Context context;
  const int64_t sk = static_cast<int64_t>(values.size()) * kTile;
  return plan(scores_from(1, 1, kTile, sk, mask, [&](int64_t, int, int64_t, int64_t j) { return values[static_cast<size_t>(j)]; }), budget, context);
}

using Tiles = std::set<int64_t>;

TEST(Plan, StopsAtEachLimit) {
  const std::vector<float> values = {.1f, .4f, .2f, .05f, .25f};
  EXPECT_EQ(tiles_of(plan_row(values, {.mass = {.6f}}), 0, 0, 0), (Tiles{1, 4}));
  EXPECT_EQ(tiles_of(plan_row(values, {.mass = {.66f}}), 0, 0, 0), (Tiles{1, 2, 4}));
  EXPECT_EQ(tiles_of(plan_row(values, {.mass = {0.0f}}), 0, 0, 0), Tiles{});
  EXPECT_EQ(tiles_of(plan_row(values, {.mass = {1.0f}}), 0, 0, 0), (Tiles{0, 1, 2, 3, 4}));
  EXPECT_EQ(tiles_of(plan_row(values, {.count = {3}}), 0, 0, 0), (Tiles{1, 2, 4}));
  EXPECT_EQ(tiles_of(plan_row(values, {.share = {.4f}}), 0, 0, 0), (Tiles{1, 4}));
  EXPECT_EQ(tiles_of(plan_row(values, {.mass = {.9f}, .count = {1}}), 0, 0, 0), (Tiles{1})) << "the first limit that is reached holds";
  EXPECT_EQ(tiles_of(plan_row(values, {.mass = {.1f}, .floor = 2}), 0, 0, 0), (Tiles{1, 4}));
  EXPECT_EQ(tiles_of(plan_row(values, {.at_least = {.2f}}), 0, 0, 0), (Tiles{1, 2, 4}));
  EXPECT_EQ(tiles_of(plan_row(values, {}), 0, 0, 0), (Tiles{0, 1, 2, 3, 4}));
}

TEST(Plan, CountsForcedTilesOrPutsThemBeside) {
  const std::vector<float> values = {.1f, .4f, .2f, .05f, .25f};
  // One query tile at the end of the keys: its diagonal is tile 4.
  EXPECT_EQ(tiles_of(plan_row(values, {.mass = {.6f}, .sink = 1, .diagonal = 1}, Mask::causal()), 0, 0, 0), (Tiles{0, 1, 4}));
  EXPECT_EQ(tiles_of(plan_row(values, {.mass = {.35f}, .sink = 1, .diagonal = 1}, Mask::causal()), 0, 0, 0), (Tiles{0, 4}));
  EXPECT_EQ(tiles_of(plan_row(values, {.mass = {.35f}, .sink = 1, .diagonal = 1, .forced = Budget::Forced::beside}, Mask::causal()), 0, 0, 0),
            (Tiles{0, 1, 4}));
  EXPECT_EQ(tiles_of(plan_row(values, {.count = {2}, .sink = 1, .diagonal = 2}, Mask::causal()), 0, 0, 0), (Tiles{0, 3, 4}));
  EXPECT_EQ(tiles_of(plan_row(values, {.count = {2}, .diagonal = 1, .forced = Budget::Forced::beside}, Mask::causal()), 0, 0, 0), (Tiles{1, 4}));
}

TEST(Plan, BreaksTiesToTheSmallerIndexAndLeavesZerosOut) {
  EXPECT_EQ(tiles_of(plan_row({.2f, .3f, .2f, .3f, 0}, {.count = {3}}), 0, 0, 0), (Tiles{0, 1, 3}));
  EXPECT_EQ(tiles_of(plan_row({0, 0, .5f, 0, 0}, {.count = {3}}), 0, 0, 0), (Tiles{2}));
  EXPECT_EQ(tiles_of(plan_row({0, 0, .5f, 0, 0}, {.mass = {1.0f}}), 0, 0, 0), (Tiles{2}));
  EXPECT_EQ(tiles_of(plan_row({0, 0, 0, 0, 0}, {.mass = {.9f}}), 0, 0, 0), Tiles{});
  EXPECT_EQ(tiles_of(plan_row({0, 0, 0, 0, 0}, {.mass = {.9f}, .floor = 2}), 0, 0, 0), Tiles{});
}

TEST(Plan, KeepsARowWithoutFiniteScoresWhole) {
  EXPECT_EQ(tiles_of(plan_row({.1f, std::nanf(""), 0, 0, 0}, {.mass = {.1f}}), 0, 0, 0), (Tiles{0, 1, 2, 3, 4}));
  EXPECT_EQ(tiles_of(plan_row({.1f, HUGE_VALF, 0, 0, 0}, {.count = {1}}), 0, 0, 0), (Tiles{0, 1, 2, 3, 4}));
}

TEST(Plan, SortsLongRowsRight) {
  std::vector<float> values(3000);
  std::mt19937 engine(3);
  for (float& value : values) value = static_cast<float>(engine() % 500) / 500;  // many ties
  std::vector<double> wide(values.begin(), values.end());
  for (const float tau : {.05f, .3f, .9f, .99f}) {
    EXPECT_EQ(tiles_of(plan_row(values, {.mass = {tau}}), 0, 0, 0), testing::prefix(wide, {}, static_cast<double>(tau))) << tau;
  }
}

TEST(Plan, ReadsWhatTheMaskAllowsOfTheTiles) {
  std::mt19937 engine(5);
  Mask window, mixed;
  window.bands = {Mask::Band{20, 3, 5}};
  mixed.bands = {Mask::causal().bands[0], Mask::Band{9, 0, 17}};
  mixed.head_class = {0, 1};
  std::vector<int32_t> spans;
  for (int q = 0; q < 37; ++q) spans.insert(spans.end(), {q / 10, 20 + q / 3, 30, 50});
  Mask of_spans;
  of_spans.spans = TensorView::of(spans.data(), {1, 1, 37, 4});
  for (const Mask& mask : {Mask::causal(), Mask::full(), window, mixed, of_spans}) {
    for (const auto& [sq, sk] : std::vector<std::pair<int64_t, int64_t>>{{37, 90}, {37, 37}, {37, 20}}) {
      std::vector<float> draws(4096);
      for (float& draw : draws) draw = static_cast<float>(engine() % 100) / 100;
      const Scores scores = scores_from(
          2, 2, sq, sk, mask, [&](int64_t b, int h, int64_t row, int64_t j) { return draws[static_cast<size_t>(((b * 2 + h) * 8 + row) * 8 + j)]; });
      Context context;
      const Plan made = plan(scores, {.count = {2}, .sink = 1}, context);
      testing::Bits expected(2, 2, sq, sk);
      for (int64_t b = 0; b < 2; ++b) {
        for (int h = 0; h < 2; ++h) {
          for (int64_t row = 0; row < scores.grid.rows(); ++row) {
            // Count by hand: visible tiles only, tile 0 first, then the best.
            std::vector<double> of_row(static_cast<size_t>(scores.key_tiles()), 0.0);
            Tiles visible;
            for (int64_t k = 0; k < sk; ++k) {
              for (int64_t q = scores.grid.first(row); q < scores.grid.last(row); ++q) {
                if (testing::mask_allows(mask, h, b, q, sk - sq, k)) visible.insert(k / kTile);
              }
            }
            for (const int64_t j : visible) of_row[static_cast<size_t>(j)] = static_cast<double>(scores.row(b, h, row)[j]);
            Tiles chosen;
            if (visible.count(0) != 0) chosen.insert(0);
            while (chosen.size() < 2) {
              int64_t best = -1;
              for (const int64_t j : visible) {
                const size_t at = static_cast<size_t>(j);
                if (chosen.count(j) == 0 && of_row[at] > 0 && (best < 0 || of_row[at] > of_row[static_cast<size_t>(best)])) best = j;
              }
              if (best < 0) break;
              chosen.insert(best);
            }
            testing::set_tiles(expected, mask, b, h, scores.grid.first(row), scores.grid.last(row), kTile, chosen);
          }
        }
      }
      EXPECT_TRUE(testing::bits_of(*made, true) == expected) << "Sq " << sq << " Sk " << sk;
    }
  }
}

TEST(Plan, CountsOverHeadAndLayer) {
  // 2 heads x 2 rows x 2 tiles, all visible.
  const std::vector<float> values = {.9f, .1f, .2f, .3f, .4f, .5f, .6f, .7f};
  const Scores scores = scores_from(1, 2, 2 * kTile, 2 * kTile, Mask::full(),
                                    [&](int64_t, int h, int64_t row, int64_t j) { return values[static_cast<size_t>((h * 2 + row) * 2 + j)]; });
  Context context;
  const auto tiles = [&](const Budget& budget) {
    const Plan made = plan(scores, budget, context);
    std::vector<Tiles> rows;
    for (int h = 0; h < 2; ++h) {
      for (int64_t row = 0; row < 2; ++row) rows.push_back(tiles_of(made, 0, h, row * kTile));
    }
    return rows;
  };
  EXPECT_EQ(tiles({.count = {2}, .scope = Budget::Scope::head}), (std::vector<Tiles>{{0}, {1}, {}, {0, 1}}));
  EXPECT_EQ(tiles({.count = {3}, .scope = Budget::Scope::layer}), (std::vector<Tiles>{{0}, {}, {}, {0, 1}}));
  EXPECT_EQ(tiles({.mass = {.79f}, .scope = Budget::Scope::head}),
            (std::vector<Tiles>{{0}, {1}, {1}, {0, 1}}));  // .9 + .3 of 1.5; .7 + .6 + .5 of 2.2
  EXPECT_EQ(tiles({.share = {.5f}, .scope = Budget::Scope::layer}), (std::vector<Tiles>{{0}, {}, {1}, {0, 1}}));
  EXPECT_EQ(tiles({.count = {1, 2}}), (std::vector<Tiles>{{0}, {1}, {0, 1}, {0, 1}})) << "one number per head";
  EXPECT_EQ(tiles({.mass = {.5f, 1.0f}}), (std::vector<Tiles>{{0}, {1}, {0, 1}, {0, 1}}));
}

TEST(Plan, RefusesNumbersOutsideTheirRange) {
  const std::vector<Budget> bad = {{.mass = {1.5f}}, {.mass = {-.1f}},     {.mass = {std::nanf("")}}, {.share = {2.0f}},
                                   {.count = {-1}},  {.mass = {.1f, .2f}}, {.at_least = {-1.0f}},     {.floor = -1},
                                   {.sink = -1},     {.diagonal = -2}};
  for (size_t i = 0; i < bad.size(); ++i) {
    try {
      plan_row({.5f, .5f}, bad[i]);
      ADD_FAILURE() << "budget " << i << " passed";
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), Error::Kind::value) << error.what();
    }
  }
}

TEST(Plan, JoinsNeighbours) {
  const Plan made = plan_row({.3f, .3f, 0, .3f}, {});
  const plan::Runs runs = plan::runs_of(made->by_query.whole, 0, 0, 1, 0);
  ASSERT_EQ(runs.count, 2);
  EXPECT_EQ(runs.start[0], 0);
  EXPECT_EQ(plan::run_stop(runs, 0, made->by_query.whole.grain, 64), 2 * kTile);
  EXPECT_EQ(runs.start[1], 3 * kTile);
}

TEST(PlanOfMask, ReadsExactlyTheMask) {
  Mask window, mixed;
  window.bands = {Mask::Band{20, 3, 5}};
  mixed.bands = {Mask::causal().bands[0], Mask::full().bands[0]};
  mixed.head_class = {0, 1, 1, 0};
  std::vector<int32_t> spans;
  for (int b = 0; b < 2; ++b) {
    for (int q = 0; q < 37; ++q) spans.insert(spans.end(), {b * 5, 20 + q / 3, 30, 50});
  }
  Mask of_spans;
  of_spans.spans = TensorView::of(spans.data(), {1, 2, 37, 4});
  for (const Mask& mask : {Mask::causal(), Mask::full(), window, mixed, of_spans}) {
    for (const int64_t sk : {37, 90, 20}) {
      Context context;
      const Plan made = plan_of_mask(mask, mask, RowGrid::plain(37, sk, kTile), 2, 4, context);
      EXPECT_TRUE(testing::bits_of(*made, true) == testing::bits_of_mask(mask, 2, 4, 37, sk)) << "Sk " << sk;
      EXPECT_EQ(testing::bits_of(*made, false).count(), made->dense_reads);
    }
  }
}

TEST(PlanOfMask, KeepsItsSpansAlive) {
  Context context;
  Plan made;
  {
    std::vector<int32_t> spans(static_cast<size_t>(20 * 4), 0);
    for (size_t q = 0; q < 20; ++q) spans[q * 4 + 1] = 20;
    Mask mask;
    mask.spans = TensorView::of(spans.data(), {1, 1, 20, 4});
    made = plan_of_mask(mask, mask, RowGrid::plain(20, 20, kTile), 1, 1, context);
    std::fill(spans.begin(), spans.end(), -1);
  }
  EXPECT_EQ(made->mask.spans.at<int32_t>(0, 0, 7, 1), 20);
}

}  // namespace
}  // namespace tilewise::select
