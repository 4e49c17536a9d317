// SPDX-License-Identifier: Apache-2.0
// The forward of attend/cuda, run on the CPU lane by lane, against attend/reference.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <limits>
#include <string>

#include "tests/attend/attend_testing.h"
#include "tests/attend/cuda/host_testing.h"
#include "tests/attend/random_case.h"
#include "tilewise/attend/cuda/forward_kernel.h"
#include "tilewise/attend/cuda/problem.h"

namespace tilewise::attend::testing {
namespace {

template <class E, int HeadDim>
void launch(const cuda::ForwardLaunch& work, unsigned seed) {
  using C = cuda::ForwardTiling<E, HeadDim>;
  static_assert(sizeof(cuda::ForwardShared<C>) <= 99 * 1024);  // of compute capability 8.6
  launch_on_host<HostWarps>(work.pool_blocks, cuda::kPoolThreads, 0, seed, [&](HostWarps& block) { cuda::pool_kernel<E>(block, work.pool); });
  launch_on_host<HostWarps>(work.blocks, C::kThreads, sizeof(cuda::ForwardShared<C>), seed,
                            [&](HostWarps& block) { cuda::forward_kernel<C>(block, work.args); });
}

// As attend_forward on a GPU. The workspace ends where a page begins that nobody may touch.
void run(const AttendParams& params, unsigned seed) {
  Context context;
  const Sizes sizes = check_forward(params, context);
  ASSERT_EQ(cuda::refusal_of_forward(params), std::nullopt);
  const size_t bytes = cuda::forward_workspace(params, sizes);
  ASSERT_EQ(bytes % 16, 0);
  const Workspace workspace(bytes);
  const cuda::ForwardLaunch work = cuda::forward_launch(params, sizes, workspace.data());
  with_kernel(params.q.dtype(), cuda::kernel_head_dim(sizes), [&]<class E, int kHeadDim>() { launch<E, kHeadDim>(work, seed); });
}

// A logit is rounded by the last sum, by scale * log2(e) itself and by the product with it; the sum of 16 products of a matrix unit is one more.
void expect_equal(const ForwardProblem& problem, unsigned seed, const std::string& note) {
  Context context;
  const auto forward = [&](const AttendParams& params, Context&) {
    run(params, seed);
    return Ran{.backend = "cuda", .target = "host", .pairs_read = problem.plan.reads};  // the counts of a device plan are not known
  };
  expect_forward(problem, forward, context, note, 4);
}

// Tensors end where pages begin that nobody may touch; keys that no row reads are NaN.
TEST(AttendCuda, ForwardEqualsReferenceOnRandomCases) {
  const char* const more = std::getenv("TILEWISE_TEST_CASES");
  const uint64_t cases = more == nullptr ? 60 : std::strtoull(more, nullptr, 10);
  for (uint64_t seed = 1; seed <= cases; ++seed) {
    Rng rng(seed);
    ProblemOptions o = random_case_options(rng);
    o.plan.is_by_key = false;
    o.dtype = dtype_of(seed);
    if (seed % 5 == 0) o.head_dim = uniform(rng, 1, 80);
    if (seed % 5 == 1) o.head_dim_v = uniform(rng, 1, 80);
    const ForwardProblem problem = make_problem(rng, o);
    poison_untouched(problem);
    expect_equal(problem, static_cast<unsigned>(seed), "seed " + std::to_string(seed));
    if (HasFailure()) return;
  }
}

TEST(AttendCuda, ForwardTakesEveryKernel) {
  uint64_t seed = 0;
  for (const ProblemOptions& o : options_of_every_kernel()) {
    Rng rng(++seed);
    expect_equal(make_problem(rng, o), static_cast<unsigned>(seed), "every kernel");
  }
}

// What attend/sm90 refuses: tensors whose rows are slots, with NaN where a slot is padding. The same bits as from tokens.
TEST(AttendCuda, ForwardInSlotsGivesTheSameBits) {
  Context context;
  for (uint64_t seed = 1; seed <= 24; ++seed) {
    Rng rng(seed);
    ProblemOptions o = random_options(rng, true);
    o.plan.has_order_q = chance(rng, 0.8);
    o.plan.has_order_k = chance(rng, 0.8);
    o.plan.is_by_key = false;
    o.plan.heads_kv = o.plan.heads_q;  // an order for each head of k
    o.is_v_broadcast = false;
    o.dtype = dtype_of(seed);
    const ForwardProblem problem = make_problem(rng, o);
    const PlanData& plan = *problem.plan.plan;
    run(problem.params(), 1);
    ForwardProblem own = problem;
    own.q = slots_of(problem.q, plan.order_q, o.layout, context);
    own.k = slots_of(problem.k, plan.order_k, o.layout, context);
    own.v = slots_of(problem.v, plan.order_k, o.layout, context);
    const int64_t slots_q = own.q.view.dim(2);
    own.out = HostTensor(o.dtype, {o.plan.batch, o.plan.heads_q, slots_q, problem.out.view.dim(3)}, o.layout);
    own.lse = HostTensor(Dtype::f32, {o.plan.batch, o.plan.heads_q, slots_q}, o.layout);
    const std::vector<double> untouched = values_of(own.lse.view);
    AttendParams params = own.params();
    params.in_slots = true;
    run(params, 2);
    const HostTensor out(o.dtype, problem.out.view.shape()), lse(Dtype::f32, problem.lse.view.shape());
    if (o.has_out) {
      prepare::to_tokens(own.out.view, plan.order_q, out.view, context);
      EXPECT_EQ(values_of(out.view), values_of(problem.out.view)) << "seed " << seed << " " << describe(o);
      EXPECT_TRUE(own.out.gaps_are_untouched());
    }
    if (o.has_lse) {
      prepare::to_tokens(own.lse.view, plan.order_q, lse.view, context);
      EXPECT_EQ(values_of(lse.view), values_of(problem.lse.view)) << "seed " << seed << " " << describe(o);
      EXPECT_TRUE(own.lse.gaps_are_untouched());
      const std::vector<double> written = values_of(own.lse.view);
      for (int64_t i = 0; i < own.lse.view.numel() && plan.order_q.token.has_value(); ++i) {
        const TensorView& token = plan.order_q.token;
        const int64_t slot = i % slots_q, head = i / slots_q % o.plan.heads_q, b = i / slots_q / o.plan.heads_q;
        if (token.at<int32_t>(token.dim(0) == 1 ? 0 : b, head * token.dim(1) / o.plan.heads_q, slot) >= 0) continue;
        EXPECT_EQ(written[static_cast<size_t>(i)], untouched[static_cast<size_t>(i)]) << "a padding slot was written, seed " << seed;
      }
    }
    if (HasFailure()) return;
  }
}

// NaN and infinities go through: what the reference gives where a query reads them, and nothing elsewhere.
TEST(AttendCuda, ForwardLetsNaNThrough) {
  Rng rng(5);
  ProblemOptions o;
  o.plan = {.seqlen_q = 70, .seqlen_k = 130, .heads_q = 2, .heads_kv = 1, .tile = 64, .mask = MaskKind::full, .density = 0.3};
  for (const Dtype dtype : {Dtype::bf16, Dtype::f32}) {
    o.dtype = dtype;
    const ForwardProblem problem = make_problem(rng, o);
    for (int64_t d = 0; d < o.head_dim; ++d) problem.k.set(std::numeric_limits<double>::quiet_NaN(), 0, 0, 40, d);
    run(problem.params(), 1);
    for (int64_t h = 0; h < 2; ++h) {
      for (int64_t i = 0; i < 70; ++i) {
        EXPECT_EQ(std::isnan(problem.lse.get(0, h, i)), problem.plan.has(0, h, i, 40)) << h << ' ' << i;
        EXPECT_EQ(std::isnan(problem.out.get(0, h, i, 0)), problem.plan.has(0, h, i, 40)) << h << ' ' << i;
      }
    }
  }
}

// The order in which blocks and threads run decides no bit.
TEST(AttendCuda, ForwardGivesTheSameBitsInAnyOrder) {
  for (uint64_t seed = 1; seed <= 6; ++seed) {
    Rng rng(seed);
    ProblemOptions o = random_options(rng, true);
    o.plan.is_by_key = false;
    o.dtype = dtype_of(seed);
    const ForwardProblem problem = make_problem(rng, o);
    run(problem.params(), 1);
    const auto out = problem.out.bytes(), lse = problem.lse.bytes();
    problem.out.wipe();
    problem.lse.wipe();
    run(problem.params(), 2);
    EXPECT_EQ(problem.out.bytes(), out) << seed;
    EXPECT_EQ(problem.lse.bytes(), lse) << seed;
  }
}

TEST(AttendCuda, ForwardRefusesByName) {
  Rng rng(1);
  ProblemOptions o;
  o.head_dim = 257;
  EXPECT_EQ(cuda::refusal_of_forward(make_problem(rng, o).params()), "q has 257 channels, above 256");
  o.head_dim = 64;
  o.dtype = Dtype::f64;
  EXPECT_EQ(cuda::refusal_of_forward(make_problem(rng, o).params()), "q is f64, which is not built (has bf16, f16, f32)");
  o.dtype = Dtype::f32;
  o.plan.is_by_key = true;
  EXPECT_EQ(cuda::refusal_of_forward(make_problem(rng, o).params()), "the plan has only by_key, this backend reads by_query; complete() the plan");
  o.plan.is_by_key = false;
  o.plan.pools = {2, 3, 4, 5, 6, 7, 8, 9};
  EXPECT_EQ(cuda::refusal_of_forward(make_problem(rng, o).params()), "the plan has 8 pools, above 7");
}

}  // namespace
}  // namespace tilewise::attend::testing
