// SPDX-License-Identifier: Apache-2.0
#include "tilewise/attend/reference/measure.h"

#include <gtest/gtest.h>

#include "tests/attend/attend_testing.h"
#include "tilewise/attend/check.h"

namespace tilewise::attend::testing {
namespace {

constexpr MeasureOver kAllOvers[] = {MeasureOver::tile,  MeasureOver::query_tile, MeasureOver::query_run,
                                     MeasureOver::query, MeasureOver::key,        MeasureOver::offset};

int64_t slot_of(const PlanData& plan, int64_t b, int64_t head, int64_t query) {
  const TensorView& order = plan.order_q.token;
  if (!order.has_value()) return query;
  for (int64_t slot = 0; slot < order.dim(2); ++slot) {
    if (order.at<int32_t>(order.dim(0) == 1 ? 0 : b, head * order.dim(1) / plan.heads_q, slot) == query) return slot;
  }
  return -1;
}

// All cells from the whole matrix of logits and the pairs noted by the plan's maker. query_run is apart: it needs the runs themselves.
TEST(AttendReferenceMeasure, AgreesWithTheWholeMatrix) {
  for (uint64_t seed = 0; seed < 240; ++seed) {
    Rng rng(seed);
    ProblemOptions options = random_options(rng, true);
    options.dtype = Dtype::f64;
    options.head_dim = std::min<int64_t>(options.head_dim, 16);
    const MeasureOver over = kAllOvers[seed % 6];
    if (over == MeasureOver::query_run) continue;
    if (over == MeasureOver::key || over == MeasureOver::offset) options.plan.pools.clear();
    ForwardProblem forward = make_problem(rng, options);
    const PlanData& plan = *forward.plan.plan;
    const int tile_q = plan.by_query.tile % 8 == 0 ? static_cast<int>(plan.by_query.tile / uniform(rng, 1, 2)) : 0;
    const int tile_k = chance(rng, 0.3) ? 0 : static_cast<int>(uniform(rng, 1, 70));
    MeasureParams shape_params{.q = forward.q.view, .k = forward.k.view, .plan = forward.plan.plan, .over = over, .tile_q = tile_q, .tile_k = tile_k};
    const Shape shape = measure_shape(shape_params);
    const MeasureProblem problem = make_measure(rng, std::move(forward), over, shape, tile_q, tile_k);
    SCOPED_TRACE("seed " + std::to_string(seed) + ": over " + std::to_string(static_cast<int>(over)) + " " + describe(options));
    Context context;
    const Ran ran = reference::measure(problem.params, context);
    EXPECT_EQ(ran.pairs_read, problem.forward.plan.reads);

    const int64_t step_q = tile_q == 0 ? plan.by_query.tile : tile_q, step_k = tile_k == 0 ? plan.by_query.tile : tile_k;
    std::vector<double> sum(static_cast<size_t>(shape.numel()), 0), count = sum;
    std::vector<double> max(sum.size(), -std::numeric_limits<double>::infinity());
    const int64_t per_head = shape.rank == 4 ? shape[2] * shape[3] : shape[2], width = shape[shape.rank - 1];
    for (int64_t b = 0; b < options.plan.batch; ++b) {
      for (int64_t h = 0; h < options.plan.heads_q; ++h) {
        const dense::Keys keys = dense::keys_of(problem.forward.plan, problem.forward.params(), b, h);
        for (int64_t i = 0; i < options.plan.seqlen_q; ++i) {
          AttendParams p = problem.forward.params();
          const std::vector<double> s = dense_logits(problem.forward.plan, p, keys, b, h, i);
          for (size_t j = 0; j < s.size(); ++j) {
            const int64_t slot = static_cast<int64_t>(j);
            if (!problem.forward.plan.has(b, h, i, slot)) continue;
            const int64_t key = slot < problem.forward.plan.slots_k ? keys.tokens[j][0] : -1;
            double value = s[j];
            if (problem.params.key_bias.has_value()) value += problem.key_bias.get(b, h, key);
            if (problem.params.lse.has_value()) value = std::exp(value - problem.lse.get(b, h, i));
            int64_t cell = -1;
            switch (over) {
              case MeasureOver::tile: cell = slot_of(plan, b, h, i) / step_q * width + slot / step_k; break;
              case MeasureOver::query_tile: cell = i * width + slot / step_k; break;
              case MeasureOver::query: cell = i; break;
              case MeasureOver::key: cell = key; break;
              case MeasureOver::offset: cell = i + plan.seqlen_k - plan.seqlen_q - key; break;
              default: break;
            }
            if (cell < 0) continue;
            const size_t at = static_cast<size_t>((b * options.plan.heads_q + h) * per_head + cell);
            sum[at] += value;
            count[at] += 1;
            max[at] = std::max(max[at], value);
          }
        }
      }
    }
    const double tolerance = 0x1p-23;  // results are f32
    if (problem.params.sum.has_value()) {
      EXPECT_LE(largest_difference(values_of(problem.sum.view), sum), tolerance * (1e-3 + largest_magnitude(sum)));
      EXPECT_TRUE(problem.sum.gaps_are_untouched());
    }
    if (problem.params.max.has_value()) {
      EXPECT_LE(largest_difference(values_of(problem.max.view), max), tolerance * (1e-3 + largest_magnitude(max)));
    }
    if (problem.params.count.has_value()) {
      EXPECT_EQ(values_of(problem.count.view), count);
    }
    if (HasFailure()) return;
  }
}

// Three lists in one row: runs are numbered by start over all of them, and a run that a query does not read stays empty for it.
TEST(AttendReferenceMeasure, NumbersRunsByStartOverAllLists) {
  auto plan = std::make_shared<PlanData>();
  plan->seqlen_q = 2;
  plan->seqlen_k = 12;
  plan->mask = Mask::causal();
  Lists& lists = plan->by_query;
  lists.tile = 16;
  lists.whole = {.begin = plan_array<int64_t>(*plan, {1, 1, 1}, {0}),
                 .count = plan_array<int32_t>(*plan, {1, 1, 1}, {1}),
                 .start = plan_array<int32_t>(*plan, {1}, {4}),
                 .stop = plan_array<int32_t>(*plan, {1}, {7})};
  lists.masked = {.begin = plan_array<int64_t>(*plan, {1, 1, 1}, {0}),
                  .count = plan_array<int32_t>(*plan, {1, 1, 1}, {2}),
                  .start = plan_array<int32_t>(*plan, {2}, {0, 9}),
                  .stop = plan_array<int32_t>(*plan, {2}, {1, 12})};
  lists.picked = {.begin = plan_array<int64_t>(*plan, {1, 1, 1}, {0}),
                  .count = plan_array<int32_t>(*plan, {1, 1, 1}, {1}),
                  .start = plan_array<int32_t>(*plan, {1}, {2}),
                  .rows = plan_array<uint64_t>(*plan, {1, 1}, {2})};
  Rng rng(3);
  const HostTensor q = zeros(Dtype::f32, {1, 1, 2, 8}), k = random_normal(rng, Dtype::f32, {1, 1, 12, 8});
  const HostTensor count(Dtype::f32, {1, 1, 2, 4}), lse = zeros(Dtype::f32, {1, 1, 2}), sum(Dtype::f32, {1, 1, 2, 4});
  Context context;
  MeasureParams params{.q = q.view, .k = k.view, .plan = plan, .lse = lse.view, .over = MeasureOver::query_run, .sum = sum.view, .count = count.view};
  const Ran ran = reference::measure(params, context);
  EXPECT_EQ(values_of(count.view), (std::vector<double>{1, 0, 3, 2, 1, 1, 3, 3}));  // query 0 counts as token 10, so it misses key 11
  EXPECT_EQ(values_of(sum.view), values_of(count.view));                            // q = 0: every logit 0, every exp(0 - 0) 1
  EXPECT_EQ(ran.pairs_read, 2 * (3 + 1 + 3) + 1);
}

}  // namespace
}  // namespace tilewise::attend::testing
