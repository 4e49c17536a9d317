// SPDX-License-Identifier: Apache-2.0
#include "tilewise/study/tune.h"

#include <gtest/gtest.h>

#include <cmath>

#include "tilewise/base/hash.h"
#include "tilewise/methods/registry.h"

namespace tilewise::study {
namespace {

using Outcome = TunePoint::Outcome;

double of(const OptionValues& options, const char* name) {
  const OptionValue& value = options.at(name);
  return std::holds_alternative<int64_t>(value) ? static_cast<double>(std::get<int64_t>(value)) : std::get<double>(value);
}

/// A world in which everything is known: density, excess and cost of each setting of xattention. What the clock says is another matter.
struct World {
  double plan_ms = 100, tile_cost = 1, stride_excess = 0;
  uint64_t clock_seed = 0;
  int trials = 0;

  double density(const OptionValues& o) const { return .05 / (1.02 - of(o, "threshold")) * (of(o, "tile") == 128 ? 1.2 : 1.0); }
  double excess(const OptionValues& o) const { return .002 / density(o) - .004 + (of(o, "stride") == 16 ? stride_excess : 0); }
  double cost_ms(const OptionValues& o) const {
    return plan_ms * 16 / of(o, "stride") + 8000 * density(o) * (of(o, "tile") == 128 ? tile_cost : 1.0);
  }
  TuneCurve tune(double bound, OptionValues fixed = {}) {
    const MethodInfo& info = method_info("xattention");
    return tune_method(info, {.fixed = std::move(fixed), .bound = bound, .same_ms = 0, .most_ms = 1e9},
                       [&](const OptionValues& o, double most_ms, TunePoint& point) {
                         ++trials;
                         point.density = density(o);
                         point.cost_ms = cost_ms(o);
                         point.plan_ms = static_cast<double>(splitmix64(clock_seed * 1000 + static_cast<uint64_t>(trials)) % 10000);
                         point.attend_ms = static_cast<double>(splitmix64(clock_seed * 1000 + static_cast<uint64_t>(trials) + 500) % 10000);
                         if (point.cost_ms > most_ms) {
                           point.outcome = Outcome::slow;
                           return;
                         }
                         point.outcome = Outcome::over;
                         point.excess = excess(o);
                       });
  }
  /// Every setting of the grids.
  std::optional<double> cheapest(double bound) const {
    std::optional<double> best;
    for (const int64_t tile : {64, 128}) {
      for (const int64_t stride : {8, 16}) {
        for (const double threshold : {.8, .9, .95, .97, .99}) {
          const OptionValues o{{"tile", tile}, {"stride", stride}, {"threshold", threshold}};
          if (excess(o) <= bound && (!best || cost_ms(o) < *best)) best = cost_ms(o);
        }
      }
    }
    return best;
  }
};

TEST(Tune, FindsTheCheapestOfTheGridInFewTrials) {
  for (const double bound : {-.01, -.001, .001, .005, .012, .1}) {
    for (const double tile_cost : {.7, 1.0, 1.4}) {
      for (const double stride_excess : {0.0, .002}) {
        SCOPED_TRACE(testing::Message() << bound << " " << tile_cost << " " << stride_excess);
        World world{.tile_cost = tile_cost, .stride_excess = stride_excess};
        const TuneCurve curve = world.tune(bound);
        const auto expected = world.cheapest(bound);
        ASSERT_TRUE(curve.chosen.has_value());
        EXPECT_EQ(curve.is_within, expected.has_value());
        const TunePoint& chosen = curve.points[*curve.chosen];
        if (expected) {
          EXPECT_LE(chosen.cost_ms, *expected * 1.03 + 1e-9);
          EXPECT_LE(chosen.excess, bound);
        }
        EXPECT_LE(world.trials, 12) << "of 20 settings";
        EXPECT_EQ(world.trials, static_cast<int>(curve.points.size()));
      }
    }
  }
}

// The same counted costs make the same choice, whatever the clock saw: that is how a machine under load tunes as an idle one does.
TEST(Tune, TheClockChoosesNothing) {
  for (const double bound : {-.001, .005, .012}) {
    World world;
    const TuneCurve first = world.tune(bound);
    for (uint64_t seed = 1; seed < 20; ++seed) {
      World other{.clock_seed = seed};
      const TuneCurve curve = other.tune(bound);
      EXPECT_EQ(curve.chosen, first.chosen);
      ASSERT_EQ(curve.points.size(), first.points.size());
      bool is_time_equal = true;
      for (size_t i = 0; i < curve.points.size(); ++i) {
        EXPECT_EQ(curve.points[i].options, first.points[i].options);
        EXPECT_EQ(curve.points[i].outcome, first.points[i].outcome);
        is_time_equal &= curve.points[i].total_ms() == first.points[i].total_ms();
      }
      EXPECT_FALSE(is_time_equal) << "the test must see something";
    }
  }
}

TEST(Tune, ShowsTheNearestWhereNoneHolds) {
  World world;
  const TuneCurve curve = world.tune(-1);
  EXPECT_FALSE(curve.is_within);
  ASSERT_TRUE(curve.chosen.has_value());
  for (const TunePoint& point : curve.points) EXPECT_GE(point.excess, curve.points[*curve.chosen].excess);
}

TEST(Tune, LeavesGivenOptionsAlone) {
  World world;
  const TuneCurve curve = world.tune(.005, {{"tile", int64_t{128}}, {"stride", int64_t{8}}});
  for (const TunePoint& point : curve.points) {
    EXPECT_EQ(point.options.size(), 1u);
    EXPECT_NE(point.label.find("stride=8"), std::string::npos) << point.label;
  }
  EXPECT_LE(world.trials, 4);
}

TEST(Tune, EqualCostsGoToTheLowerDensity) {
  World world{.plan_ms = 1, .tile_cost = 1 / 1.21};  // a tile of 128 reads a fifth more and costs a hair less
  const TuneCurve curve = world.tune(.005);
  ASSERT_TRUE(curve.is_within);
  EXPECT_EQ(of(curve.points[*curve.chosen].options, "tile"), 64);
}

// What a clock cannot tell apart chooses nothing either: of short texts all costs are noise.
TEST(Tune, SmallDifferencesAreNoDifferences) {
  for (uint64_t seed = 0; seed < 20; ++seed) {
    uint64_t trial = 0;
    const TuneCurve curve = tune_method(method_info("xattention"), {.fixed = {}, .bound = 1, .same_ms = 2, .most_ms = 0},
                                        [&](const OptionValues& o, double most_ms, TunePoint& point) {
                                          point.cost_ms = .1 + static_cast<double>(splitmix64(seed * 100 + ++trial) % 1000) / 1000;
                                          EXPECT_LE(point.cost_ms, most_ms);
                                          point.density = of(o, "threshold") - .01 * (of(o, "tile") == 64 ? 1 : 0) + .001 * of(o, "stride");
                                          point.excess = 0;
                                          point.outcome = Outcome::over;
                                        });
    ASSERT_TRUE(curve.is_within);
    for (const TunePoint& point : curve.points) EXPECT_GE(point.density, curve.points[*curve.chosen].density);
  }
}

TEST(Tune, GridsThatFallAreFound) {
  const auto tune = [](double bound, int& trials) {
    // Of the oracle's own grid .05, .9, .95 the density here falls.
    return tune_method(method_info("oracle"), {.fixed = {{"tile", int64_t{64}}}, .bound = bound, .same_ms = 0, .most_ms = 0},
                       [&](const OptionValues& o, double, TunePoint& point) {
                         ++trials;
                         const double density = 1 - of(o, "threshold");
                         point.density = density;
                         point.cost_ms = 1 + 100 * density;
                         point.excess = density > .5 ? 0 : density > .07 ? .004 : .02;
                         point.outcome = Outcome::over;
                       });
  };
  int trials = 0;
  const TuneCurve curve = tune(.005, trials);
  ASSERT_TRUE(curve.is_within);
  EXPECT_DOUBLE_EQ(of(curve.points[*curve.chosen].options, "threshold"), .9);
  EXPECT_EQ(trials, 3);
}

TEST(Tune, RefusalsAreNoChoiceAndOfSlowSettingsTheSparsestIs) {
  const auto refused = [](const OptionValues&, double, TunePoint& point) { point.refused = "why"; };
  const TuneCurve none = tune_method(method_info("xattention"), {}, refused);
  EXPECT_FALSE(none.chosen.has_value());
  EXPECT_FALSE(none.is_within);
  const auto slow = [](const OptionValues& options, double, TunePoint& point) {
    point.outcome = Outcome::slow;
    point.density = of(options, "threshold");
  };
  const TuneCurve curve = tune_method(method_info("xattention"), {}, slow);
  ASSERT_TRUE(curve.chosen.has_value());
  EXPECT_FALSE(curve.is_within);
  for (const TunePoint& point : curve.points) EXPECT_GE(point.density, curve.points[*curve.chosen].density);
  // Of settings without a figure to hold the bound by (NaN in, NaN out) the same.
  const auto blind = [](const OptionValues& options, double, TunePoint& point) {
    point.outcome = Outcome::over;
    point.cost_ms = 1;
    point.density = of(options, "threshold");
  };
  const TuneCurve of_nan = tune_method(method_info("xattention"), {}, blind);
  ASSERT_TRUE(of_nan.chosen.has_value());
  EXPECT_FALSE(of_nan.is_within);
  for (const TunePoint& point : of_nan.points) EXPECT_GE(point.density, of_nan.points[*of_nan.chosen].density);
  // A method without a grid is run as it is.
  int trials = 0;
  const TuneCurve dense =
      tune_method(method_info("dense"), {.fixed = {}, .bound = 1, .same_ms = 0, .most_ms = 0}, [&](const OptionValues& o, double, TunePoint& point) {
        ++trials;
        EXPECT_TRUE(o.empty());
        point.density = 1;
        point.cost_ms = 1;
        point.excess = 0;
        point.outcome = Outcome::over;
      });
  EXPECT_TRUE(dense.is_within);
  EXPECT_EQ(trials, 1);
}

}  // namespace
}  // namespace tilewise::study
