// SPDX-License-Identifier: Apache-2.0
// measure() of attend/cuda, run on the CPU lane by lane, against attend/reference.
#include <gtest/gtest.h>

#include <array>
#include <string>

#include "tests/attend/attend_testing.h"
#include "tests/attend/cuda/host_testing.h"
#include "tests/attend/random_case.h"
#include "tilewise/attend/cuda/forward_kernel.h"
#include "tilewise/attend/cuda/measure_kernel.h"
#include "tilewise/attend/cuda/measure_problem.h"
#include "tilewise/attend/cuda/problem.h"

namespace tilewise::attend::testing {
namespace {

template <class E, int HeadDim>
void launch(const cuda::MeasureWork& work, unsigned seed) {
  using C = cuda::ForwardTiling<E, HeadDim>;
  static_assert(sizeof(cuda::MeasureShared<C>) <= 99 * 1024);  // of compute capability 8.6
  cuda::for_each_launch(
      work,
      [&](const cuda::ClearArgs& args, int64_t blocks) {
        launch_on_host<HostWarps>(blocks, cuda::kCellThreads, 0, seed, [&](HostWarps& block) { cuda::clear_kernel(block, args); });
      },
      [&](const cuda::PoolArgs& args, int64_t blocks) {
        launch_on_host<HostWarps>(blocks, cuda::kPoolThreads, 0, seed, [&](HostWarps& block) { cuda::pool_kernel<E>(block, args); });
      },
      [&](const cuda::MeasureArgs& args, int64_t blocks) {
        launch_on_host<HostWarps>(blocks, C::kThreads, sizeof(cuda::MeasureShared<C>), seed,
                                  [&](HostWarps& block) { cuda::measure_kernel<C>(block, args); });
      },
      [&](const cuda::ReduceArgs& args, int64_t blocks) {
        launch_on_host<HostWarps>(blocks, cuda::kCellThreads, 0, seed, [&](HostWarps& block) { cuda::reduce_kernel(block, args); });
      });
}

// As measure() on a GPU. The workspace ends where a page begins that nobody may touch.
void run(const MeasureParams& params, unsigned seed, size_t most) {
  Context context;
  const Sizes sizes = check_measure(params, context);
  ASSERT_EQ(cuda::refusal_of_measure(params), std::nullopt);
  const Workspace workspace(cuda::measure_workspace(params, sizes, most));
  const cuda::MeasureWork work = cuda::measure_work(params, sizes, workspace.data(), most);
  with_kernel(params.q.dtype(), sizes.head_dim, [&]<class E, int kHeadDim>() { launch<E, kHeadDim>(work, seed); });
}

constexpr std::array kOvers{MeasureOver::tile, MeasureOver::query_tile, MeasureOver::query, MeasureOver::key, MeasureOver::offset};

MeasureProblem random_measure(Rng& rng, uint64_t seed) {
  const MeasureOver over = kOvers[seed % kOvers.size()];
  ProblemOptions options = random_case_options(rng);
  options.plan.is_by_key = false;
  options.dtype = dtype_of(seed);
  if (over == MeasureOver::key || over == MeasureOver::offset) options.plan.pools.clear();  // a pooled key is no single key
  ForwardProblem forward = make_problem(rng, options);
  const int tile = forward.plan.plan->by_query.tile;
  int tile_q = 0;
  if (chance(rng, 0.6)) {
    do {
      tile_q = static_cast<int>(uniform(rng, 1, tile));
    } while (tile % tile_q != 0);
  }
  const int tile_k = chance(rng, 0.6) ? static_cast<int>(uniform(rng, 1, 150)) : 0;
  const Shape shape =
      measure_shape({.q = forward.q.view, .k = forward.k.view, .plan = forward.plan.plan, .over = over, .tile_q = tile_q, .tile_k = tile_k});
  return make_measure(rng, std::move(forward), over, shape, tile_q, tile_k);
}

// Keys that no row reads are NaN; sums of several heads at once, and of one.
TEST(AttendCuda, MeasureEqualsReferenceOnRandomCases) {
  for (uint64_t seed = 1; seed <= 120; ++seed) {
    Rng rng(seed);
    const MeasureProblem problem = random_measure(rng, seed);
    poison_untouched(problem.forward);
    Context context;
    const auto measure = [&](const MeasureParams& params, Context&) {
      run(params, static_cast<unsigned>(seed), seed % 2 == 0 ? cuda::kMeasureBytes : 1);
      return Ran{.backend = "cuda", .target = "host", .pairs_read = problem.forward.plan.reads};  // the counts of a device plan are not known
    };
    expect_measure(problem, measure, context, "seed " + std::to_string(seed));
    if (HasFailure()) return;
  }
}

TEST(AttendCuda, MeasureTakesEveryKernel) {
  uint64_t seed = 0;
  for (const ProblemOptions& o : options_of_every_kernel()) {
    Rng rng(++seed);
    ForwardProblem forward = make_problem(rng, o);
    const MeasureOver over = kOvers[seed % kOvers.size()];
    const Shape shape = measure_shape({.q = forward.q.view, .k = forward.k.view, .plan = forward.plan.plan, .over = over});
    const MeasureProblem problem = make_measure(rng, std::move(forward), over, shape, 0, 0);
    Context context;
    const auto measure = [&](const MeasureParams& params, Context&) {
      run(params, static_cast<unsigned>(seed), cuda::kMeasureBytes);
      return Ran{.backend = "cuda", .target = "host", .pairs_read = problem.forward.plan.reads};
    };
    expect_measure(problem, measure, context, "every kernel");
  }
}

// The bits do not depend on the order of blocks and threads, nor on how many heads are measured at once.
TEST(AttendCuda, MeasureGivesTheSameBitsInAnyOrder) {
  for (uint64_t seed = 200; seed < 212; ++seed) {
    Rng rng(seed);
    const MeasureProblem problem = random_measure(rng, seed);
    std::vector<std::vector<double>> first;
    for (unsigned turn = 0; turn < 3; ++turn) {
      run(problem.params, turn, turn == 1 ? 1 : cuda::kMeasureBytes);
      std::vector<std::vector<double>> now;
      for (const TensorView* view : {&problem.params.sum, &problem.params.max, &problem.params.count}) {
        if (view->has_value()) now.push_back(values_of(*view));
      }
      if (turn == 0) first = now;
      EXPECT_EQ(now, first) << "seed " << seed;
    }
  }
}

TEST(AttendCuda, MeasureNamesWhatItDoesNotTake) {
  Rng rng(1);
  ProblemOptions o;
  const ForwardProblem forward = make_problem(rng, o);
  MeasureParams params{.q = forward.q.view, .k = forward.k.view, .plan = forward.plan.plan};
  EXPECT_EQ(cuda::refusal_of_measure(params), std::nullopt);
  params.over = MeasureOver::query_run;
  EXPECT_NE(cuda::refusal_of_measure(params)->find("runs of a query are not built"), std::string::npos);
}

}  // namespace
}  // namespace tilewise::attend::testing
