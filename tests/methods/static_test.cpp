// SPDX-License-Identifier: Apache-2.0
// The methods that do not look at q and k: dense, a_shape, random.
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "tests/methods/definition_testing.h"
#include "tilewise/attend/attend.h"
#include "tilewise/plan/validate.h"

namespace tilewise::method {
namespace {

using testing::Bits;
using testing::TestProblem;

Plan plan_of(const Problem& problem, const std::string& name, const std::string& options) {
  Context context;
  return plan_with(name, problem, parse_options(name, options), context).plan;
}

TEST(Dense, ReadsExactlyTheMask) {
  for (const testing::Sizes& s : testing::problem_sizes()) {
    for (const Mask& mask : {Mask::causal(), Mask::full()}) {
      for (const char* options : {"", "tile=16", "tile=256"}) {
        const TestProblem test(s, Dtype::f32, mask, 1);
        const Plan plan = plan_of(test.problem, "dense", options);
        EXPECT_TRUE(testing::bits_of(*plan, true) == testing::bits_of_mask(mask, s.batch, s.heads_q, s.seqlen_q, s.seqlen_k)) << s << " " << options;
        EXPECT_EQ(testing::bits_of(*plan, false).count(), plan->dense_reads) << "its density is 1";
      }
    }
  }
}

TEST(Dense, HasOneOrTwoRunsARow) {
  const TestProblem test({1, 8, 2, 1000, 1000, 16}, Dtype::f32, Mask::causal(), 1);
  const Plan plan = plan_of(test.problem, "dense", "");
  for (int64_t row = 0; row < 16; ++row) {
    EXPECT_LE(plan::runs_of(plan->by_query.whole, 0, 0, 8, row).count, 1);
    EXPECT_EQ(plan::runs_of(plan->by_query.masked, 0, 0, 8, row).count, 1);
  }
  EXPECT_EQ(plan->by_query.masked.begin.dim(1), 1) << "heads share the lists";
  EXPECT_EQ(plan->by_query.whole.grain, 64);
}

std::vector<int32_t> shuffled(int64_t tokens, int64_t padding, unsigned seed) {
  std::vector<int32_t> order(static_cast<size_t>(tokens));
  std::iota(order.begin(), order.end(), 0);
  order.insert(order.end(), static_cast<size_t>(padding), -1);
  std::shuffle(order.begin(), order.end(), std::mt19937(seed));
  return order;
}

// The output does not depend on the order in which slots hold the tokens.
TEST(Dense, UnderARandomOrderAttendsAlike) {
  const testing::OnReference on_reference;
  const testing::Sizes s{2, 4, 2, 70, 90, 16};
  Mask window;
  window.bands = {Mask::Band{25, 3, 6}};
  for (const Mask& mask : {Mask::causal(), Mask::full(), window}) {
    for (const int64_t padding : {0, 7}) {
      TestProblem test(s, Dtype::f32, mask, 5);
      const testing::TestTensor v = testing::random_tensor(Dtype::f32, 2, 2, 90, 16, 6);
      Context context;
      const auto attend = [&](const Plan& plan) {
        std::vector<float> out(2 * 4 * 70 * 16);
        attend_forward({.q = test.q.view, .k = test.k.view, .v = v.view, .out = TensorView::of(out.data(), {2, 4, 70, 16}), .plan = plan}, context);
        return out;
      };
      const std::vector<float> plain = attend(plan_of(test.problem, "dense", "tile=16"));
      std::vector<int32_t> order_q, order_k;
      for (unsigned i = 0; i < 4; ++i) {
        for (const int32_t token : shuffled(70, padding, i)) order_q.push_back(token);
      }
      for (unsigned i = 0; i < 4; ++i) {
        for (const int32_t token : shuffled(90, padding, 50 + i)) order_k.push_back(token);
      }
      test.problem.order_q.token = TensorView::of(order_q.data(), {1, 4, 70 + padding});
      test.problem.order_k.token = TensorView::of(order_k.data(), {2, 2, 90 + padding});
      const Plan ordered = plan_of(test.problem, "dense", "tile=16");
      EXPECT_TRUE(testing::bits_of(*ordered, true) == testing::bits_of_mask(mask, 2, 4, 70, 90));
      EXPECT_EQ(testing::bits_of(*ordered, false).count(), ordered->dense_reads);
      const std::vector<float> reordered = attend(ordered);
      for (size_t i = 0; i < plain.size(); ++i) ASSERT_NEAR(reordered[i], plain[i], 1e-6) << i;
    }
  }
}

TEST(Dense, RefusesOrdersThatLoseTokens) {
  TestProblem test({1, 1, 1, 40, 40, 16}, Dtype::f32, Mask::causal(), 5);
  std::vector<int32_t> order = shuffled(40, 0, 1);
  const auto kind_of = [&](const TensorView& token) {
    test.problem.order_k.token = token;
    try {
      plan_of(test.problem, "dense", "");
    } catch (const Error& error) {
      return std::string(name(error.kind()));
    }
    return std::string("nothing");
  };
  EXPECT_EQ(kind_of(TensorView::of(order.data(), {1, 1, 40})), "nothing");
  EXPECT_EQ(kind_of(TensorView::of(order.data(), {1, 1, 39})), "shape");
  EXPECT_EQ(kind_of(TensorView::of(order.data(), {40})), "shape");
  order[3] = order[4];
  EXPECT_EQ(kind_of(TensorView::of(order.data(), {1, 1, 40})), "value");
  order[3] = 40;
  EXPECT_EQ(kind_of(TensorView::of(order.data(), {1, 1, 40})), "value");
  order[3] = -1;
  EXPECT_EQ(kind_of(TensorView::of(order.data(), {1, 1, 40})), "value");
  std::vector<int64_t> wide(40);
  EXPECT_EQ(kind_of(TensorView::of(wide.data(), {1, 1, 40})), "dtype");
}

// MInference spec 6, oracle 4.
TEST(AShape, CountsTheSpecsPairs) {
  const TestProblem small({1, 1, 1, 8, 8, 16}, Dtype::f32, Mask::causal(), 1);
  EXPECT_EQ(testing::bits_of(*plan_of(small.problem, "a_shape", "init=2,local=3"), true).count(), 30);
  EXPECT_EQ(testing::bits_of(*plan_of(small.problem, "dense", ""), true).count(), 36);

  // At 8,192 pair by pair is slow; count from the runs: whole as it is, masked by the band.
  const testing::TestTensor x = testing::make_tensor(Dtype::f32, 1, 1, 8192, 8);
  Problem problem;
  problem.q = problem.k = x.view;
  const auto count = [](const PlanData& data) {
    int64_t pairs = 0;
    for (int64_t row = 0; row < plan::num_rows(data.by_query, 8192); ++row) {
      const int64_t first = plan::row_first(data.by_query, row), last = plan::row_last(data.by_query, row, 8192);
      const plan::Runs whole = plan::runs_of(data.by_query.whole, 0, 0, 1, row), masked = plan::runs_of(data.by_query.masked, 0, 0, 1, row);
      for (int i = 0; i < whole.count; ++i) pairs += (last - first) * (plan::run_stop(whole, i, data.by_query.whole.grain, 8192) - whole.start[i]);
      for (int i = 0; i < masked.count; ++i) {
        for (int64_t q = first; q < last; ++q) {
          for (int64_t k = masked.start[i]; k < plan::run_stop(masked, i, data.by_query.masked.grain, 8192); ++k)
            pairs += plan::band_allows(data.mask.bands[0], q, k) ? 1 : 0;
        }
      }
    }
    return pairs;
  };
  EXPECT_EQ(count(*plan_of(problem, "a_shape", "init=100,local=800")), 6968250);
  EXPECT_EQ(count(*plan_of(problem, "dense", "")), 33558528);
}

TEST(AShape, EqualsItsDefinition) {
  for (const testing::Sizes& s : testing::problem_sizes()) {
    for (const auto& [init, local, tile] :
         std::vector<std::tuple<int, int, int>>{{5, 40, 32}, {0, 1, 16}, {64, 64, 64}, {1000, 3, 32}, {3, 1000, 32}}) {
      const TestProblem test(s, Dtype::f32, Mask::causal(), 1);
      const std::string options = "init=" + std::to_string(init) + ",local=" + std::to_string(local) + ",tile=" + std::to_string(tile);
      const Plan plan = plan_of(test.problem, "a_shape", options);
      Bits expected(s.batch, s.heads_q, s.seqlen_q, s.seqlen_k);
      for (int64_t b = 0; b < s.batch; ++b) {
        for (int h = 0; h < s.heads_q; ++h) {
          for (int64_t q = 0; q < s.seqlen_q; ++q) {
            for (int64_t k = 0; k < s.seqlen_k; ++k) {
              const int64_t back = q + s.seqlen_k - s.seqlen_q - k;
              expected.at(b, h, q, k) = back >= 0 && (back < local || k < init) ? 1 : 0;
            }
          }
        }
      }
      EXPECT_TRUE(testing::bits_of(*plan, true) == expected) << s << " " << options;
    }
  }
}

TEST(AShape, ReadsAllForTheLastQueriesOfATriShape) {
  for (const testing::Sizes& s : testing::problem_sizes()) {
    for (const auto& [init, local, last] :
         std::vector<std::tuple<int, int, int>>{{5, 40, 1}, {0, 1, 17}, {64, 30, 64}, {1000, 3, 100000}, {3, 1000, 20}}) {
      const TestProblem test(s, Dtype::f32, Mask::causal(), 1);
      const std::string options =
          "init=" + std::to_string(init) + ",local=" + std::to_string(local) + ",dense_last=" + std::to_string(last) + ",tile=16";
      const Plan plan = plan_of(test.problem, "a_shape", options);
      ASSERT_NO_THROW(validate(plan, test.problem.mask)) << s << " " << options;
      Bits expected(s.batch, s.heads_q, s.seqlen_q, s.seqlen_k);
      for (int64_t b = 0; b < s.batch; ++b) {
        for (int h = 0; h < s.heads_q; ++h) {
          for (int64_t q = 0; q < s.seqlen_q; ++q) {
            for (int64_t k = 0; k < s.seqlen_k; ++k) {
              const int64_t back = q + s.seqlen_k - s.seqlen_q - k;
              expected.at(b, h, q, k) = back >= 0 && (back < local || k < init || q >= s.seqlen_q - last) ? 1 : 0;
            }
          }
        }
      }
      EXPECT_TRUE(testing::bits_of(*plan, true) == expected) << s << " " << options;
      EXPECT_EQ(plan->dense_reads, plan_of(test.problem, "dense", "tile=16")->dense_reads);
    }
  }
}

// The kernels take a tri-shape as any plan: against the definition, with and without an order.
TEST(AShape, AttendsAsATriShape) {
  const testing::Sizes s{1, 2, 1, 150, 170, 16};
  for (const int64_t padding : {-1, 0, 7}) {  // -1: no order
    TestProblem test(s, Dtype::f32, Mask::causal(), 5);
    const testing::TestTensor v = testing::random_tensor(Dtype::f32, 1, 1, 170, 16, 6);
    const std::vector<int32_t> order = shuffled(170, std::max<int64_t>(padding, 0), 3);
    if (padding >= 0) test.problem.order_k.token = TensorView::of(order.data(), {1, 1, 170 + padding});
    const Plan plan = plan_of(test.problem, "a_shape", "init=7,local=33,dense_last=21,tile=32");
    std::vector<float> out(2 * 150 * 16);
    Context context;
    attend_forward({.q = test.q.view, .k = test.k.view, .v = v.view, .out = TensorView::of(out.data(), {1, 2, 150, 16}), .plan = plan}, context);
    for (int h = 0; h < 2; ++h) {
      for (int64_t q = 0; q < 150; ++q) {
        double total = 0;
        std::vector<double> sum(16, 0.0);
        for (int64_t k = 0; k <= q + 20; ++k) {
          if (q + 20 - k >= 33 && k >= 7 && q < 150 - 21) continue;
          double score = 0;
          for (int64_t d = 0; d < 16; ++d) score += test.q.get(0, h, q, d) * test.k.get(0, 0, k, d);
          const double weight = std::exp(score / 4);
          total += weight;
          for (int64_t d = 0; d < 16; ++d) sum[static_cast<size_t>(d)] += weight * v.get(0, 0, k, d);
        }
        for (int64_t d = 0; d < 16; ++d)
          ASSERT_NEAR(out[static_cast<size_t>((h * 150 + q) * 16 + d)], sum[static_cast<size_t>(d)] / total, 1e-5) << h << " " << q << " " << d;
      }
    }
  }
}

TEST(AShape, HasTheMeasuredDensity) {
  // quality.md: init 64, local 2,048 reads .248 of the causal tiles at 16,384; local 4,096 reads .448; local 1,024 .135.
  const testing::TestTensor x = testing::make_tensor(Dtype::f32, 1, 1, 16384, 8);
  Problem problem;
  problem.q = problem.k = x.view;
  for (const auto& [options, density] :
       std::vector<std::pair<std::string, double>>{{"local=1024", .135}, {"local=2048", .248}, {"local=4096", .448}}) {
    const Plan plan = plan_of(problem, "a_shape", options);
    int64_t reads = 0;
    for (int64_t row = 0; row < 256; ++row) {
      for (const RunList* list : {&plan->by_query.whole, &plan->by_query.masked}) {
        const plan::Runs runs = plan::runs_of(*list, 0, 0, 1, row);
        for (int i = 0; i < runs.count; ++i) reads += 64 * (plan::run_stop(runs, i, list->grain, 16384) - runs.start[i]);
      }
    }
    EXPECT_NEAR(static_cast<double>(reads) / static_cast<double>(plan->dense_reads), density, .001) << options;
  }
}

TEST(AShape, RefusesOtherMasks) {
  for (const Mask& mask : {Mask::full(), [] {
                             Mask window;
                             window.bands = {Mask::Band{9, 0, 2}};
                             return window;
                           }()}) {
    const TestProblem test({1, 1, 1, 40, 40, 16}, Dtype::f32, mask, 5);
    try {
      plan_of(test.problem, "a_shape", "");
      ADD_FAILURE() << "passed";
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), Error::Kind::unsupported);
    }
  }
}

TEST(Random, KeepsForcedTilesAndTheDensity) {
  const TestProblem test({2, 4, 2, 1024, 1024, 8}, Dtype::f32, Mask::causal(), 1);
  for (const double density : {0.0, .1, .5, 1.0}) {
    const Plan plan = plan_of(test.problem, "random", "tile=16,density=" + std::to_string(density));
    Bits bits = testing::bits_of(*plan, true);
    // 64 rows of 64 tiles, 8 heads: of 2,080 seen tiles 64 + 63 are forced, the rest is drawn.
    const double drawn = 8.0 * (2080 - 127), forced = 8.0 * 127;
    double kept = 0;
    for (int64_t b = 0; b < 2; ++b) {
      for (int h = 0; h < 4; ++h) {
        for (int64_t row = 0; row < 64; ++row) {
          for (int64_t j = 0; j <= row; ++j) {
            const bool is_kept = bits.at(b, h, row * 16 + 15, j * 16) != 0;
            kept += is_kept ? 1 : 0;
            if (j == 0 || j == row) {
              ASSERT_TRUE(is_kept);
            }
          }
        }
      }
    }
    EXPECT_NEAR(kept, forced + density * drawn, 5 * std::sqrt(drawn * density * (1 - density)) + .5) << density;
  }
}

TEST(Random, FollowsSeedLayerAndHead) {
  TestProblem test({1, 2, 1, 512, 512, 8}, Dtype::f32, Mask::causal(), 1);
  const auto draw = [&](const std::string& options) { return testing::bits_of(*plan_of(test.problem, "random", "tile=16" + options), true); };
  Bits first = draw("");
  EXPECT_TRUE(first == draw(""));
  EXPECT_FALSE(first == draw(",seed=1"));
  const std::vector<uint8_t> head_0(first.values.begin(), first.values.begin() + 512 * 512),
      head_1(first.values.begin() + 512 * 512, first.values.end());
  EXPECT_NE(head_0, head_1);
  test.problem.layer = 1;
  EXPECT_FALSE(first == draw(""));
  test.problem.layer = 0;
  test.problem.seed = 9;
  EXPECT_FALSE(first == draw(""));
}

}  // namespace
}  // namespace tilewise::method
