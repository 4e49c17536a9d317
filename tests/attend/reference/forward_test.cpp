// SPDX-License-Identifier: Apache-2.0
#include "tilewise/attend/reference/forward.h"

#include <gtest/gtest.h>

#include "tests/attend/attend_testing.h"

namespace tilewise::attend::testing {
namespace {

// The reference against the whole-matrix softmax that reads the pairs noted by the plan's maker: every part of the format.
TEST(AttendReferenceForward, AgreesWithDenseSoftmax) {
  for (uint64_t seed = 0; seed < 300; ++seed) {
    Rng rng(seed);
    ProblemOptions options = random_options(rng, true);
    options.dtype = Dtype::f64;
    options.head_dim = std::min<int64_t>(options.head_dim, 40);
    options.head_dim_v = std::min<int64_t>(options.head_dim_v, 24);
    SCOPED_TRACE("seed " + std::to_string(seed) + ": " + describe(options));
    const ForwardProblem problem = make_problem(rng, options);
    Context context;
    const Ran ran = reference::forward(problem.params(), context);
    EXPECT_EQ(ran.backend, "reference");
    EXPECT_EQ(ran.pairs_read, problem.plan.reads);
    const DenseResult dense = dense_forward(problem.plan, problem.params());
    if (options.has_out) {
      EXPECT_LE(largest_difference(values_of(problem.out.view), dense.out), 1e-12 * (1 + largest_magnitude(dense.out)));
      EXPECT_TRUE(problem.out.gaps_are_untouched());
    }
    if (options.has_lse) {
      EXPECT_LE(largest_difference(values_of(problem.lse.view), dense.lse), 0x1p-24 * largest_magnitude(dense.lse));  // lse is f32
      EXPECT_TRUE(problem.lse.gaps_are_untouched());
    }
    if (HasFailure()) return;
  }
}

// Rounding once: f32, bf16 and f16 inputs give the f64 result of the same numbers, rounded to the dtype.
TEST(AttendReferenceForward, RoundsOnceForEveryDtype) {
  for (const Dtype dtype : {Dtype::f32, Dtype::bf16, Dtype::f16}) {
    Rng rng(7);
    ProblemOptions options;
    options.plan = {.batch = 2, .seqlen_q = 70, .seqlen_k = 70, .heads_q = 4, .heads_kv = 2, .has_picked = true, .has_rows = true};
    options.dtype = dtype;
    options.head_dim = 24;
    options.layout = Layout::heads_last;
    const ForwardProblem problem = make_problem(rng, options);
    Context context;
    reference::forward(problem.params(), context);
    const DenseResult exact = exact_forward(problem);
    const HostTensor rounded(dtype, {static_cast<int64_t>(exact.out.size())});
    for (size_t i = 0; i < exact.out.size(); ++i) rounded.set(exact.out[i], static_cast<int64_t>(i));
    EXPECT_EQ(values_of(problem.out.view), values_of(rounded.view)) << name(dtype);
  }
}

// Keys outside of every run of a row never enter its arithmetic, and padding is never read.
TEST(AttendReferenceForward, PoisonOutsideOfThePlanChangesNothing) {
  for (uint64_t seed = 0; seed < 20; ++seed) {
    Rng rng(seed);
    ProblemOptions options = random_options(rng, false);
    options.plan.seqlen_q = 1;  // one row: keys outside of it are outside of all
    options.plan.mask = MaskKind::full;
    options.plan.has_rows = false;
    options.plan.batch = options.plan.heads_q = options.plan.heads_kv = options.plan.groups = 1;
    options.has_out = options.has_lse = true;
    const ForwardProblem problem = make_problem(rng, options);
    Context context;
    reference::forward(problem.params(), context);
    const std::vector<unsigned char> out = problem.out.bytes(), lse = problem.lse.bytes();
    for (int64_t key = 0; key < options.plan.seqlen_k; ++key) {
      if (problem.plan.has(0, 0, 0, key)) continue;
      for (int64_t d = 0; d < options.head_dim; ++d) problem.k.set(std::nan(""), 0, 0, key, d);
      for (int64_t d = 0; d < problem.v.view.dim(3); ++d) problem.v.set(std::nan(""), 0, 0, key, d);
    }
    reference::forward(problem.params(), context);
    EXPECT_EQ(problem.out.bytes(), out) << "seed " << seed;
    EXPECT_EQ(problem.lse.bytes(), lse) << "seed " << seed;
  }
}

}  // namespace
}  // namespace tilewise::attend::testing
