// SPDX-License-Identifier: Apache-2.0
// The backward of attend/cuda, run on the CPU lane by lane, against attend/reference.
#include <gtest/gtest.h>

#include <cstdlib>
#include <limits>
#include <string>

#include "tests/attend/backward_testing.h"
#include "tests/attend/cuda/host_testing.h"
#include "tests/attend/random_case.h"
#include "tilewise/attend/cuda/backward_passes.h"
#include "tilewise/attend/cuda/backward_problem.h"
#include "tilewise/attend/cuda/forward_kernel.h"
#include "tilewise/plan/complete.h"

namespace tilewise::attend::testing {
namespace {

using cuda::Gradient;
template <class E, int HeadDim>
void launch(const cuda::BackwardLaunch& work, unsigned seed) {
  using C = cuda::BackwardTiling<E, HeadDim>;
  constexpr size_t kShared = sizeof(cuda::GradientShared<C>);
  static_assert(kShared <= 99 * 1024);  // of compute capability 8.6
  static_assert(sizeof(cuda::BackwardArgs) <= 4096);
  const cuda::BackwardArgs& args = work.args;
  const auto run = [&](int64_t blocks, int threads, size_t shared, const auto& kernel) {
    launch_on_host<HostWarps>(blocks, threads, shared, seed, kernel);
  };
  run(work.pool_blocks, cuda::kPoolThreads, 0, [&](HostWarps& block) { cuda::pool_kernel<E>(block, work.pool); });
  run(work.delta_blocks, cuda::kDeltaThreads, 0, [&](HostWarps& block) { cuda::delta_kernel<E>(block, args); });
  run(work.sink_blocks, cuda::kSinkThreads, cuda::kSinkThreads * sizeof(float), [&](HostWarps& block) { cuda::sink_kernel(block, args); });
  run(work.slot_blocks, cuda::kSlotThreads, 0, [&](HostWarps& block) { cuda::slot_kernel(block, args); });
  run(work.query_blocks, C::kThreads, kShared, [&](HostWarps& block) { cuda::gradient_kernel<C, false>(block, args, Gradient::dq); });
  for (const Gradient gradient : {Gradient::dk, Gradient::dv}) {
    run(work.key_blocks, C::kThreads, kShared, [&](HostWarps& block) { cuda::gradient_kernel<C, true>(block, args, gradient); });
  }
  for (const bool is_dv : {false, true}) {
    run(work.gather_blocks, cuda::kGatherThreads, 0, [&](HostWarps& block) { cuda::gather_kernel<E>(block, args, is_dv); });
  }
}

// As attend_backward on a GPU. The workspace, NaN at first, ends where a page begins that nobody may touch.
void run(const AttendBackwardParams& params, unsigned seed) {
  Context context;
  const Sizes sizes = check_backward(params, context);
  ASSERT_EQ(cuda::refusal_of_backward(params), std::nullopt);
  const PlanData& given = *params.forward.plan;
  const Plan plan = given.by_query.has_runs() && given.by_key.has_runs() ? params.forward.plan : complete(params.forward.plan, context);
  const Workspace workspace(cuda::backward_workspace(params, *plan, sizes));
  const cuda::BackwardLaunch work = cuda::backward_launch(params, *plan, sizes, workspace.data());
  with_kernel(params.forward.q.dtype(), cuda::kernel_head_dim(sizes), [&]<class E, int kHeadDim>() { launch<E, kHeadDim>(work, seed); });
}

TEST(AttendCuda, BackwardEqualsReferenceOnRandomCases) {
  const char* const more = std::getenv("TILEWISE_TEST_CASES");
  const uint64_t cases = more == nullptr ? 60 : std::strtoull(more, nullptr, 10);
  for (uint64_t seed = 1; seed <= cases; ++seed) {
    Rng rng(seed);
    ProblemOptions o = random_case_options(rng);
    o.dtype = dtype_of(seed);
    if (seed % 5 == 0) o.head_dim = uniform(rng, 1, 80);
    if (seed % 5 == 1) o.head_dim_v = uniform(rng, 1, 80);
    ForwardProblem forward = make_problem(rng, o);
    poison_untouched(forward);
    const BackwardProblem problem = make_backward_of(rng, std::move(forward));
    problem.wipe();
    SCOPED_TRACE("seed " + std::to_string(seed) + ": " + describe(o));
    run(problem.params(), static_cast<unsigned>(seed));
    expect_gradients(problem, exact_backward(problem), backward_in_dtype(problem), 4);
    if (HasFailure()) return;
  }
}

TEST(AttendCuda, BackwardTakesEveryKernel) {
  uint64_t seed = 0;
  for (const ProblemOptions& o : options_of_every_kernel()) {
    Rng rng(++seed);
    const BackwardProblem problem = make_backward(rng, o);
    SCOPED_TRACE(describe(o));
    problem.wipe();
    run(problem.params(), 3);
    expect_gradients(problem, exact_backward(problem), backward_in_dtype(problem), 4);
  }
}

// A caller that has reordered gets its gradients in slots: those of a call in token order, 0 in padding.
TEST(AttendCuda, BackwardInSlotsGivesTheSameBits) {
  Context context;
  for (uint64_t seed = 900; seed < 912; ++seed) {
    Rng rng(seed);
    ProblemOptions o;
    o.plan = {.batch = 2, .seqlen_q = 90, .seqlen_k = 150, .heads_q = 4, .heads_kv = 2, .tile = 64, .groups = 2};
    o.plan.has_order_q = seed % 3 != 0;
    o.plan.has_order_k = seed % 3 != 1 || seed % 2 == 0;
    o.plan.has_picked = seed % 2 == 0;
    if (seed % 4 == 0) o.plan.pools = {4};
    o.dtype = dtype_of(seed / 2);
    o.head_dim = 16;
    const BackwardProblem problem = make_backward(rng, o);
    const PlanData& plan = *problem.forward.plan.plan;
    if (plan.order_k.token.has_value() && plan.order_k.token.dim(1) > o.plan.heads_kv) continue;  // slots then need more heads of k
    BackwardProblem own = problem;
    for (const auto& [to, from] : {std::pair{&own.forward.q, &problem.forward.q},
                                   {&own.forward.out, &problem.forward.out},
                                   {&own.dout, &problem.dout},
                                   {&own.dq, &problem.dq}}) {
      *to = slots_of(*from, plan.order_q, o.layout, context);
    }
    own.forward.lse = slots_of(problem.forward.lse, plan.order_q, o.layout, context);
    own.dlse = slots_of(problem.dlse, plan.order_q, o.layout, context);
    for (const auto& [to, from] :
         {std::pair{&own.forward.k, &problem.forward.k}, {&own.forward.v, &problem.forward.v}, {&own.dk, &problem.dk}, {&own.dv, &problem.dv}}) {
      *to = slots_of(*from, plan.order_k, o.layout, context);
    }
    AttendBackwardParams params = own.params();
    params.forward.in_slots = true;
    run(problem.params(), 1);
    own.wipe();
    run(params, 2);
    const auto zeros_at_padding = [&](const HostTensor& tokens, const Order& order) {
      return values_of(prepare::to_slots(tokens.view, order, context).view);
    };
    EXPECT_EQ(values_of(own.dq.view), zeros_at_padding(problem.dq, plan.order_q)) << "dq, seed " << seed;
    EXPECT_EQ(values_of(own.dk.view), zeros_at_padding(problem.dk, plan.order_k)) << "dk, seed " << seed;
    EXPECT_EQ(values_of(own.dv.view), zeros_at_padding(problem.dv, plan.order_k)) << "dv, seed " << seed;
    if (HasFailure()) return;
  }
}

TEST(AttendCuda, BackwardGivesTheSameBitsInAnyOrder) {
  for (uint64_t seed = 1; seed <= 4; ++seed) {
    Rng rng(seed);
    ProblemOptions o = random_options(rng, true);
    o.dtype = dtype_of(seed);
    const BackwardProblem problem = make_backward(rng, o);
    std::vector<std::vector<unsigned char>> bits;
    for (const unsigned order : {1U, 2U}) {
      problem.wipe();
      run(problem.params(), order);
      for (const HostTensor* gradient : {&problem.dq, &problem.dk, &problem.dv, &problem.dsink_logit}) bits.push_back(gradient->bytes());
    }
    for (size_t i = 0; i < 4; ++i) EXPECT_EQ(bits[i], bits[4 + i]) << seed << ' ' << i;
  }
}

TEST(AttendCuda, BackwardRefusesByName) {
  Rng rng(1);
  ProblemOptions o;
  const BackwardProblem problem = make_backward(rng, o);
  AttendBackwardParams params = problem.params();
  params.dk = params.dq;
  EXPECT_EQ(cuda::refusal_of_backward(params), "gradients in one tensor are not built; give each its own");
  o.head_dim = 300;
  EXPECT_EQ(cuda::refusal_of_backward(make_backward(rng, o).params()), "q has 300 channels, above 256");
}

}  // namespace
}  // namespace tilewise::attend::testing
