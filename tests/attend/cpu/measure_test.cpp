// SPDX-License-Identifier: Apache-2.0
#include "tilewise/attend/cpu/measure.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "tests/attend/attend_testing.h"
#include "tests/attend/cpu/cpu_testing.h"
#include "tilewise/attend/check.h"
#include "tilewise/machine/cpu/context.h"

namespace tilewise::attend::testing {
namespace {

using machine::cpu::available_targets;
using machine::cpu::Target;

constexpr std::array kOvers{MeasureOver::tile,  MeasureOver::query_tile, MeasureOver::query_run,
                            MeasureOver::query, MeasureOver::key,        MeasureOver::offset};
const auto kMeasure = [](const MeasureParams& params, Context& context) { return cpu::measure(params, context); };

MeasureProblem random_measure(uint64_t seed) {
  Rng rng(seed);
  const MeasureOver over = kOvers[seed % kOvers.size()];
  ProblemOptions options = random_options(rng, seed % 3 != 0);
  if (over == MeasureOver::key || over == MeasureOver::offset) options.plan.pools.clear();  // a pooled key is no single key
  if (over == MeasureOver::query_run) options.plan.is_by_key = false;
  ForwardProblem forward = make_problem(rng, options);
  const int tile = forward.plan.plan->by_query.tile;
  int tile_q = 0;
  if (chance(rng, 0.6)) {
    do {
      tile_q = static_cast<int>(uniform(rng, 1, tile));
    } while (tile % tile_q != 0);
  }
  const int tile_k = chance(rng, 0.6) ? static_cast<int>(uniform(rng, 1, 150)) : 0;
  const MeasureParams shape_params{
      .q = forward.q.view, .k = forward.k.view, .plan = forward.plan.plan, .over = over, .tile_q = tile_q, .tile_k = tile_k};
  const Shape shape = measure_shape(shape_params);
  return make_measure(rng, std::move(forward), over, shape, tile_q, tile_k);
}

class EveryTarget : public ::testing::TestWithParam<Target> {};
std::string target_name(const ::testing::TestParamInfo<Target>& info) { return std::string(machine::cpu::name(info.param)); }
INSTANTIATE_TEST_SUITE_P(Cpu, EveryTarget, ::testing::ValuesIn(available_targets().begin(), available_targets().end()), target_name);

TEST_P(EveryTarget, EqualsReferenceOnRandomProblems) {
  const ForcedTarget forced(GetParam());
  Context context = cpu_context(2);
  for (uint64_t seed = 1; seed <= 180; ++seed) {
    expect_measure(random_measure(seed), kMeasure, context, "seed " + std::to_string(seed));
    if (HasFailure()) return;
  }
}

// Picked keys come behind runs: a step of the kernel may hold keys of a tile, of the next one, and of the first again.
TEST_P(EveryTarget, KeysOfATileNeedNotFollowOneAnother) {
  const ForcedTarget forced(GetParam());
  Context context = cpu_context(1);
  for (uint64_t seed = 1; seed <= 60; ++seed) {
    Rng rng(seed);
    ProblemOptions options;
    options.plan = {.seqlen_q = 20, .seqlen_k = uniform(rng, 20, 90), .heads_q = 2, .heads_kv = 1, .tile = 16, .groups = 2, .mask = MaskKind::full};
    options.plan.density = 0.9;
    options.plan.longest_run = static_cast<int>(uniform(rng, 1, 20));
    options.plan.has_picked = true;
    options.dtype = seed % 2 == 0 ? Dtype::f32 : Dtype::f16;
    options.head_dim = 16;
    ForwardProblem forward = make_problem(rng, options);
    const MeasureOver over = seed % 3 == 0 ? MeasureOver::query_tile : MeasureOver::tile;
    const int tile_k = static_cast<int>(uniform(rng, 2, 60));
    const Shape shape = measure_shape({.q = forward.q.view, .k = forward.k.view, .plan = forward.plan.plan, .over = over, .tile_k = tile_k});
    MeasureProblem measurement = make_measure(rng, std::move(forward), over, shape, 0, tile_k);
    measurement.params.lse = measurement.lse.view;
    measurement.params.key_bias = {};
    measurement.params.sum = measurement.sum.view;
    measurement.params.count = measurement.count.view;
    expect_measure(measurement, kMeasure, context, "seed " + std::to_string(seed));
    if (HasFailure()) return;
  }
}

TEST_P(EveryTarget, BitsDoNotDependOnThreads) {
  const ForcedTarget forced(GetParam());
  for (uint64_t seed = 600; seed < 618; ++seed) {
    const MeasureProblem problem = random_measure(seed);
    std::vector<std::vector<double>> first;
    for (const int threads : {1, 2, 3, 5}) {
      Context context = cpu_context(threads);
      cpu::measure(problem.params, context);
      std::vector<std::vector<double>> results;
      if (problem.params.sum.has_value()) results.push_back(values_of(problem.sum.view));
      if (problem.params.max.has_value()) results.push_back(values_of(problem.max.view));
      if (problem.params.count.has_value()) results.push_back(values_of(problem.count.view));
      if (threads == 1) first = results;
      EXPECT_EQ(results, first) << threads << " threads, seed " << seed << ", " << describe(problem.forward.options);
    }
  }
}

// A NaN in one key makes sum and max of its cells NaN, and of no other.
TEST_P(EveryTarget, NanStaysInItsCells) {
  const ForcedTarget forced(GetParam());
  Context context = cpu_context(2);
  for (const MeasureOver over : kOvers) {
    for (const bool has_lse : {false, true}) {
      Rng rng(3);
      ProblemOptions o;
      o.plan.seqlen_q = o.plan.seqlen_k = 150;
      o.plan.tile = 64;
      o.plan.mask = MaskKind::causal;
      ForwardProblem forward = make_problem(rng, o);
      const Shape shape =
          measure_shape({.q = forward.q.view, .k = forward.k.view, .plan = forward.plan.plan, .over = over, .tile_q = 16, .tile_k = 20});
      MeasureProblem problem = make_measure(rng, std::move(forward), over, shape, 16, 20);
      problem.params.lse = has_lse ? problem.lse.view : TensorView{};
      problem.params.key_bias = {};
      problem.params.sum = problem.sum.view;
      problem.params.max = problem.max.view;
      const double nan = std::numeric_limits<double>::quiet_NaN();
      from_double(problem.forward.k.view, problem.forward.k.view.offset(0, 0, 40, 3), nan);
      cpu::measure(problem.params, context);
      const std::vector<double> sum = values_of(problem.sum.view), max = values_of(problem.max.view);
      Context serial;
      reference::measure(problem.params, serial);
      const std::vector<double> exact_sum = values_of(problem.sum.view), exact_max = values_of(problem.max.view);
      for (size_t i = 0; i < sum.size(); ++i) {
        ASSERT_EQ(std::isnan(sum[i]), std::isnan(exact_sum[i])) << "over " << static_cast<int>(over) << " cell " << i;
        ASSERT_EQ(std::isnan(max[i]), std::isnan(exact_max[i])) << "over " << static_cast<int>(over) << " cell " << i;
      }
    }
  }
}

// exp(s - lse) of a lse that is far too small: infinity, not rubbish.
TEST_P(EveryTarget, OverflowIsInfinity) {
  const ForcedTarget forced(GetParam());
  Context context = cpu_context(1);
  Rng rng(4);
  ProblemOptions o;
  o.plan.seqlen_q = o.plan.seqlen_k = 64;
  ForwardProblem forward = make_problem(rng, o);
  const Shape shape = measure_shape({.q = forward.q.view, .k = forward.k.view, .plan = forward.plan.plan, .over = MeasureOver::query});
  MeasureProblem problem = make_measure(rng, std::move(forward), MeasureOver::query, shape, 0, 0);
  for_each_offset(problem.lse.view, [&](int64_t offset) { from_double(problem.lse.view, offset, -1000); });
  problem.params.lse = problem.lse.view;
  problem.params.sum = problem.sum.view;
  problem.params.max = problem.max.view;
  problem.params.count = problem.count.view;
  cpu::measure(problem.params, context);
  const std::vector<double> max = values_of(problem.max.view), count = values_of(problem.count.view);
  for (size_t i = 0; i < max.size(); ++i)
    EXPECT_EQ(max[i], count[i] > 0 ? std::numeric_limits<double>::infinity() : -std::numeric_limits<double>::infinity());
}

TEST(CpuMeasureRefusal, NamesWhatIsNotBuilt) {
  Rng rng(1);
  const auto with = [&](const auto& change) {
    ProblemOptions o;
    change(o);
    const ForwardProblem problem = make_problem(rng, o);
    return cpu::refusal(MeasureParams{.q = problem.q.view, .k = problem.k.view, .plan = problem.plan.plan}).value_or("");
  };
  EXPECT_EQ(with([](ProblemOptions&) {}), "");
  EXPECT_EQ(with([](ProblemOptions& o) { o.dtype = Dtype::f16; }), "");
  EXPECT_NE(with([](ProblemOptions& o) { o.head_dim = 20; }).find("not a multiple of 8"), std::string::npos);
}

}  // namespace
}  // namespace tilewise::attend::testing
