// SPDX-License-Identifier: Apache-2.0
// One plan, read from by_query and from by_key: forward and gradients agree, at every tile. This is what "closed under complete()" means to a caller.
#include <gtest/gtest.h>

#include <numeric>

#include "tests/attend/attend_testing.h"
#include "tilewise/attend/reference/backward.h"
#include "tilewise/plan/complete.h"
#include "tilewise/plan/count.h"
#include "tilewise/plan/pack.h"

namespace tilewise::attend::testing {
namespace {

// The plan with one of its directions left out.
Plan only(const Plan& plan, bool is_by_query) {
  auto one = std::make_shared<PlanData>(plan::share(plan));
  (is_by_query ? one->by_key : one->by_query) = {};
  one->is_by_key = !is_by_query;
  return one;
}

struct Everything {
  std::vector<double> out, lse, dq, dk, dv;
};

Everything run(const ForwardProblem& problem, const Plan& plan, const HostTensor& dout) {
  AttendParams params = problem.params();
  params.plan = plan;
  Context context;
  reference::forward(params, context);
  const HostTensor dq(Dtype::f64, problem.q.view.shape()), dk(Dtype::f64, problem.k.view.shape()), dv(Dtype::f64, problem.v.view.shape());
  reference::backward({.forward = params, .dout = dout.view, .dq = dq.view, .dk = dk.view, .dv = dv.view}, context);
  return {values_of(problem.out.view), values_of(problem.lse.view), values_of(dq.view), values_of(dk.view), values_of(dv.view)};
}

TEST(AttendReferenceDirections, AgreeAtEveryTile) {
  for (uint64_t seed = 9000; seed < 9080; ++seed) {
    Rng rng(seed);
    ProblemOptions options = random_options(rng, true);
    options.dtype = Dtype::f64;
    options.head_dim = options.head_dim_v = 8;
    options.has_out = options.has_lse = true;
    const int tile = std::initializer_list<int>{16, 64, 128, 256}.begin()[seed % 4];
    SCOPED_TRACE("seed " + std::to_string(seed) + " other tile " + std::to_string(tile) + ": " + describe(options));
    const ForwardProblem problem = make_problem(rng, options);
    const HostTensor dout = random_normal(rng, Dtype::f64, problem.out.view.shape());
    Context context;
    const Plan both = complete(problem.plan.plan, context, tile);
    EXPECT_EQ(reads(only(both, true)), problem.plan.reads);
    EXPECT_EQ(reads(only(both, false)), problem.plan.reads);
    EXPECT_EQ(allowed_pairs(both), std::accumulate(problem.plan.pairs.begin(), problem.plan.pairs.end(), int64_t{0}));
    const Everything a = run(problem, only(both, true), dout), b = run(problem, only(both, false), dout);
    EXPECT_LE(largest_difference(a.out, b.out), 1e-13 * (1 + largest_magnitude(a.out)));
    EXPECT_LE(largest_difference(a.lse, b.lse), 1e-13 * (1 + largest_magnitude(a.lse)));
    EXPECT_LE(largest_difference(a.dq, b.dq), 1e-12 * (1 + largest_magnitude(a.dq)));
    EXPECT_LE(largest_difference(a.dk, b.dk), 1e-12 * (1 + largest_magnitude(a.dk)));
    EXPECT_LE(largest_difference(a.dv, b.dv), 1e-12 * (1 + largest_magnitude(a.dv)));
    if (HasFailure()) return;
  }
}

}  // namespace
}  // namespace tilewise::attend::testing
