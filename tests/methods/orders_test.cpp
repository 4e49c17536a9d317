// SPDX-License-Identifier: Apache-2.0
// What single methods choose under given orders; that every method's plan is sound there is conformance's.
#include <algorithm>
#include <numeric>
#include <random>

#include "tests/methods/definition_testing.h"
#include "tilewise/methods/minference.h"
#include "tilewise/plan/validate.h"
#include "tilewise/select/plan.h"

namespace tilewise::method {
namespace {

using testing::Bits;
using testing::TestProblem;

std::vector<int32_t> shuffled(int64_t tokens, int64_t padding, unsigned seed, int64_t within = INT32_MAX) {
  std::mt19937 engine(seed);
  std::vector<int32_t> order(static_cast<size_t>(tokens));
  std::iota(order.begin(), order.end(), 0);
  for (int64_t first = 0; first < tokens; first += within)
    std::shuffle(order.begin() + first, order.begin() + std::min(tokens, first + within), engine);
  if (padding > 0) {
    order.insert(order.end(), static_cast<size_t>(padding), -1);
    std::shuffle(order.begin(), order.end(), engine);
  }
  return order;
}

/// The tensor with its tokens moved: token order[s] becomes token s.
testing::TestTensor moved(const testing::TestTensor& from, const std::vector<int32_t>& order) {
  const TensorView& view = from.view;
  testing::TestTensor to = testing::make_tensor(view.dtype(), view.dim(0), view.dim(1), view.dim(2), view.dim(3));
  for (int64_t b = 0; b < view.dim(0); ++b) {
    for (int64_t h = 0; h < view.dim(1); ++h) {
      for (int64_t s = 0; s < view.dim(2); ++s) {
        for (int64_t d = 0; d < view.dim(3); ++d) to.set(b, h, s, d, static_cast<float>(from.get(b, h, order[static_cast<size_t>(s)], d)));
      }
    }
  }
  return to;
}

// Without a mask an order is nothing but another sequence: the plan reads what the plan of the moved tensors reads.
TEST(Orders, WithoutAMaskAreMovedTensors) {
  const testing::Sizes s{2, 4, 2, 130, 150, 16};
  const std::vector<int32_t> order_q = shuffled(130, 0, 1), order_k = shuffled(150, 0, 2);
  for (const auto& [name, options] : std::vector<std::pair<std::string, std::string>>{{"dense", "tile=16"},
                                                                                      {"xattention", "tile=16,stride=8,threshold=.7"},
                                                                                      {"xattention", "tile=32,stride=8,threshold=.6,selector=double"},
                                                                                      {"xattention", "tile=16,stride=4,threshold=.7,kdb=2"},
                                                                                      {"oracle", "tile=16,threshold=.6"}}) {
    SCOPED_TRACE(::testing::Message() << name << " " << options);
    TestProblem test(s, Dtype::f32, Mask::full(), 3);
    const testing::TestTensor q = moved(test.q, order_q), k = moved(test.k, order_k);
    Context context;
    Problem plain = test.problem;
    plain.q = q.view;
    plain.k = k.view;
    Bits expected = testing::bits_of(*plan_with(name, plain, parse_options(name, options), context).plan, true);
    test.problem.order_q.token = TensorView::of(order_q.data(), {1, 1, 130});
    test.problem.order_k.token = TensorView::of(order_k.data(), {1, 1, 150});
    Bits found = testing::bits_of(*plan_with(name, test.problem, parse_options(name, options), context).plan, true);
    for (int64_t b = 0; b < 2; ++b) {
      for (int h = 0; h < 4; ++h) {
        for (int64_t i = 0; i < 130; ++i) {
          for (int64_t j = 0; j < 150; ++j)
            ASSERT_EQ(found.at(b, h, order_q[static_cast<size_t>(i)], order_k[static_cast<size_t>(j)]), expected.at(b, h, i, j))
                << h << " " << i << " " << j;
        }
      }
    }
  }
}

// Where each tile holds the tokens that it holds in token order, tiles are chosen alike: sink, diagonal and the mask go by tokens.
TEST(Orders, WithinTilesChooseTheSameTiles) {
  const testing::Sizes s{2, 4, 2, 160, 160, 16};
  const std::vector<int32_t> order_q = shuffled(160, 0, 5, 16), order_k = shuffled(160, 0, 6, 16);
  for (const auto& [name, options] : std::vector<std::pair<std::string, std::string>>{{"a_shape", "tile=16,local=40,init=5"},
                                                                                      {"mean_pool", "tile=16,threshold=.6"},
                                                                                      {"mean_pool", "tile=16,density=.4"},
                                                                                      {"random", "tile=16,density=.3"},
                                                                                      {"oracle", "tile=16,threshold=.6,force=true"},
                                                                                      {"oracle", "tile=16,threshold=.2,rule=max"},
                                                                                      {"minference", "tile=16,pattern=block_sparse,blocks=3"},
                                                                                      {"flexprefill", "tile=16,gamma=.6,tau=0"},
                                                                                      {"flexprefill", "tile=16,gamma=.6,tau=1"}}) {
    SCOPED_TRACE(::testing::Message() << name << " " << options);
    TestProblem test(s, Dtype::f32, Mask::causal(), 4);
    Context context;
    const Plan plain = plan_with(name, test.problem, parse_options(name, options), context).plan;
    test.problem.order_q.token = TensorView::of(order_q.data(), {1, 1, 160});
    test.problem.order_k.token = TensorView::of(order_k.data(), {1, 1, 160});
    const Plan ordered = plan_with(name, test.problem, parse_options(name, options), context).plan;
    ASSERT_NO_THROW(validate(ordered, test.problem.mask));
    EXPECT_TRUE(testing::bits_of(*plain, true) == testing::bits_of(*ordered, true));
  }
}

// Slots in reverse: whoever asked i >= j for the mask, the sink or the diagonal would read the wrong half.
TEST(Orders, ForceTilesByTokens) {
  const testing::TestTensor x = testing::make_tensor(Dtype::f32, 1, 1, 80, 8);
  std::vector<int32_t> reversed(80);
  for (int i = 0; i < 80; ++i) reversed[static_cast<size_t>(i)] = 79 - i;
  select::Inputs inputs{.q = x.view, .k = x.view, .mask = Mask::causal()};
  inputs.order_q.token = inputs.order_k.token = TensorView::of(reversed.data(), {1, 1, 80});
  Context context;
  const select::Scores scores = select::make_scores(inputs, select::score_rows(inputs, 16), 16, context);
  scores.values.fill_zero();
  const auto tiles_of = [&](int64_t sink, int64_t diagonal, int64_t row) {
    select::Budget budget;
    budget.sink = sink;
    budget.diagonal = diagonal;
    const Plan plan = select::plan(scores, budget, context);
    std::set<int64_t> tiles;
    for (const RunList* list : {&plan->by_query.whole, &plan->by_query.masked}) {
      const plan::Runs runs = plan::runs_of(*list, 0, 0, 1, row);
      for (int i = 0; i < runs.count; ++i) {
        for (int64_t slot = runs.start[i]; slot < plan::run_stop(runs, i, list->grain, 80); ++slot) tiles.insert(slot / 16);
      }
    }
    return tiles;
  };
  // Row 1 holds the tokens 63 to 48; key tile 4 the tokens 15 to 0.
  EXPECT_EQ(tiles_of(0, 1, 1), (std::set<int64_t>{1}));
  EXPECT_EQ(tiles_of(1, 0, 1), (std::set<int64_t>{4}));
  EXPECT_EQ(tiles_of(2, 0, 1), (std::set<int64_t>{3, 4}));
  EXPECT_EQ(tiles_of(1, 2, 1), (std::set<int64_t>{1, 2, 4}));
  EXPECT_EQ(tiles_of(1, 1, 4), (std::set<int64_t>{4})) << "the first tokens see themselves alone";
}

// Vertical and slash lines are of tokens: under an order the plan reads exactly what some query of a row of slots has on a line, tested by the mask.
TEST(Orders, LinesStayLinesOfTokens) {
  const testing::Sizes s{1, 2, 1, 200, 230, 16};
  for (const int64_t padding : {0, 9}) {
    for (const bool aligned : {false, true}) {
      const std::vector<int32_t> order_q = shuffled(200, padding, 7, 50), order_k = shuffled(230, padding, 8);
      TestProblem test(s, Dtype::f32, Mask::causal(), 21);
      MInferenceOptions options;
      options.vertical = 40;
      options.slash = 50;
      options.nearest = 5;
      options.first = 2;
      options.tile = 16;
      Context context;
      const Plan plain = minference(test.problem, options, context).plan;
      options.aligned = aligned;
      test.problem.order_q.token = TensorView::of(order_q.data(), {1, 1, 200 + padding});
      test.problem.order_k.token = TensorView::of(order_k.data(), {1, 1, 230 + padding});
      const Plan plan = minference(test.problem, options, context).plan;
      ASSERT_NO_THROW(validate(plan, test.problem.mask));
      Bits found = testing::bits_of(*plan, true), exact = testing::bits_of(*plain, true);
      for (int h = 0; h < 2; ++h) {
        const auto lines = testing::last_query_lines(test, h, 64, 40, 50, 2, 5);
        for (int64_t row = 0; row * 16 < 200 + padding; ++row) {
          std::vector<int64_t> queries;
          for (int64_t slot = row * 16; slot < std::min<int64_t>(200 + padding, row * 16 + 16); ++slot) {
            if (order_q[static_cast<size_t>(slot)] >= 0) queries.push_back(order_q[static_cast<size_t>(slot)]);
          }
          const auto is_wanted = [&](int64_t k) {
            return std::any_of(queries.begin(), queries.end(), [&](int64_t q) {
              return q + 30 >= k && (lines.slash.count(q + 30 - k) != 0 || (aligned && lines.vertical.count(k) != 0));
            });
          };
          for (int64_t slot = 0; slot < 230 + padding; ++slot) {
            const int64_t k = order_k[static_cast<size_t>(slot)];
            if (k < 0) continue;
            bool is_run = is_wanted(k);
            for (int64_t near = slot / 16 * 16; aligned && near < std::min<int64_t>(230 + padding, slot / 16 * 16 + 16); ++near)
              is_run |= order_k[static_cast<size_t>(near)] >= 0 && is_wanted(order_k[static_cast<size_t>(near)]);
            for (const int64_t q : queries) {
              const bool expected = q + 30 >= k && (is_run || lines.vertical.count(k) != 0);
              ASSERT_EQ(found.at(0, h, q, k) != 0, expected) << "head " << h << " query " << q << " key " << k;
              if (q + 30 >= k && (lines.vertical.count(k) != 0 || lines.slash.count(q + 30 - k) != 0)) {
                ASSERT_NE(exact.at(0, h, q, k), 0) << "the lines are those of token order";
              }
            }
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace tilewise::method
