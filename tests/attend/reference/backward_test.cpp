// SPDX-License-Identifier: Apache-2.0
#include "tilewise/attend/reference/backward.h"

#include <gtest/gtest.h>

#include "tests/attend/backward_testing.h"

namespace tilewise::attend::testing {
namespace {

// lse goes in as f32: each probability is off by up to 2^-24 |lse| relative, and so is each term of a gradient.
double bound(const std::vector<double>& exact, double largest_lse) { return (1e-10 + 0x1p-22 * (1 + largest_lse)) * (1 + largest_magnitude(exact)); }

void expect_gradients(const BackwardProblem& problem, const DenseResult& exact) {
  const double largest_lse = largest_magnitude(exact.lse);
  EXPECT_LE(largest_difference(values_of(problem.dq.view), exact.dq), bound(exact.dq, largest_lse)) << "dq";
  EXPECT_LE(largest_difference(values_of(problem.dk.view), exact.dk), bound(exact.dk, largest_lse)) << "dk";
  EXPECT_LE(largest_difference(values_of(problem.dv.view), exact.dv), bound(exact.dv, largest_lse)) << "dv";
  if (problem.forward.options.has_sink) {
    EXPECT_LE(largest_difference(values_of(problem.dsink_logit.view), exact.dsink), bound(exact.dsink, largest_lse)) << "dsink_logit";
  }
  for (const HostTensor* gradient : {&problem.dq, &problem.dk, &problem.dv, &problem.dsink_logit}) EXPECT_TRUE(gradient->gaps_are_untouched());
}

ProblemOptions small_options(Rng& rng) {
  ProblemOptions options = random_options(rng, true);
  options.dtype = Dtype::f64;
  options.head_dim = std::min<int64_t>(options.head_dim, 16);
  options.head_dim_v = std::min<int64_t>(options.head_dim_v, 8);
  return options;
}

// Every part of the format, from by_query or by_key, through pools and orders, against the softmax's Jacobian over the whole matrix.
TEST(AttendReferenceBackward, AgreesWithDenseChainRule) {
  for (uint64_t seed = 1000; seed < 1150; ++seed) {
    Rng rng(seed);
    const ProblemOptions options = small_options(rng);
    SCOPED_TRACE("seed " + std::to_string(seed) + ": " + describe(options));
    const BackwardProblem problem = make_backward(rng, options);
    Context context;
    const Ran ran = reference::backward(problem.params(), context);
    EXPECT_EQ(ran.pairs_read, problem.forward.plan.reads);
    expect_gradients(problem, dense_gradients(problem.forward.plan, problem.forward.params(), problem.dout.view, problem.params().dlse));
    if (HasFailure()) return;
  }
}

// Sum of out * dout + lse * dlse, from the whole-matrix forward.
double loss(const BackwardProblem& problem) {
  const DenseResult result = dense_forward(problem.forward.plan, problem.forward.params());
  const std::vector<double> dout = values_of(problem.dout.view), dlse = values_of(problem.dlse.view);
  double sum = 0;
  for (size_t i = 0; i < dout.size(); ++i) sum += dout[i] * result.out[i];
  for (size_t i = 0; i < dlse.size() && problem.has_dlse; ++i) sum += std::isfinite(result.lse[i]) ? dlse[i] * result.lse[i] : 0;
  return sum;
}

// Central differences of the dense forward: no formula of a gradient stands on the other side.
TEST(AttendReferenceBackward, AgreesWithFiniteDifferences) {
  for (uint64_t seed = 2000; seed < 2040; ++seed) {
    Rng rng(seed);
    ProblemOptions options = small_options(rng);
    options.plan.seqlen_q = std::min<int64_t>(options.plan.seqlen_q, 37);
    options.plan.seqlen_k = options.plan.mask == MaskKind::grid ? options.plan.seqlen_q : std::min<int64_t>(options.plan.seqlen_k, 45);
    options.plan.tile = 16;
    options.head_dim = 8;
    options.sigma = 1;
    SCOPED_TRACE("seed " + std::to_string(seed) + ": " + describe(options));
    const BackwardProblem problem = make_backward(rng, options);
    Context context;
    reference::backward(problem.params(), context);
    struct Input {
      const char* name;
      const HostTensor& value;
      const HostTensor& gradient;
    };
    std::vector<Input> inputs = {{"q", problem.forward.q, problem.dq}, {"k", problem.forward.k, problem.dk}, {"v", problem.forward.v, problem.dv}};
    if (options.has_sink) inputs.push_back({"sink_logit", problem.forward.sink_logit, problem.dsink_logit});
    for (const Input& input : inputs) {
      for (int sample = 0; sample < 4; ++sample) {
        int64_t at = uniform(rng, 0, input.value.view.numel() - 1), offset = 0, offset_gradient = 0;
        for (int axis = input.value.view.rank() - 1; axis >= 0; --axis) {
          offset += at % input.value.view.dim(axis) * input.value.view.stride(axis);
          offset_gradient += at % input.value.view.dim(axis) * input.gradient.view.stride(axis);
          at /= input.value.view.dim(axis);
        }
        const double was = to_double(input.value.view, offset), step = input.value.view.dtype() == Dtype::f32 ? 0x1p-10 : 1e-5;
        from_double(input.value.view, offset, was + step);
        const double up = to_double(input.value.view, offset), loss_up = loss(problem);
        from_double(input.value.view, offset, was - step);
        const double down = to_double(input.value.view, offset), loss_down = loss(problem);
        from_double(input.value.view, offset, was);
        const double slope = (loss_up - loss_down) / (up - down);
        EXPECT_NEAR(to_double(input.gradient.view, offset_gradient), slope, 3e-6 * (1 + std::fabs(slope))) << "d" << input.name;
      }
    }
    if (HasFailure()) return;
  }
}

// FlashAttention's oracle 9: a row with an empty list has zero gradients and no NaN, with and without a sink logit.
TEST(AttendReferenceBackward, EmptyRowsHaveZeroGradients) {
  for (const bool has_sink : {false, true}) {
    Rng rng(5);
    ProblemOptions options;
    options.plan = {.seqlen_q = 9, .seqlen_k = 3, .heads_q = 2};  // causal: queries 0 to 5 see nothing
    options.plan.longest_run = 3;
    options.plan.density = 0.999;
    options.dtype = Dtype::f64;
    options.head_dim = 8;
    options.has_sink = has_sink;
    BackwardProblem problem = make_backward(rng, options);
    problem.has_dlse = true;
    Context context;
    reference::backward(problem.params(), context);
    for (int64_t head = 0; head < 2; ++head) {
      for (int64_t query = 0; query < 6; ++query) {
        EXPECT_EQ(problem.forward.lse.get(0, head, query),
                  has_sink ? problem.forward.sink_logit.get(head) : -std::numeric_limits<double>::infinity());
        for (int64_t d = 0; d < 8; ++d) {
          EXPECT_EQ(problem.forward.out.get(0, head, query, d), 0.0);
          EXPECT_EQ(problem.dq.get(0, head, query, d), 0.0);
        }
      }
    }
    expect_gradients(problem, dense_gradients(problem.forward.plan, problem.forward.params(), problem.dout.view, problem.dlse.view));
  }
}

// q, k and v one tensor, their gradients one tensor: it gets the sum of the three.
TEST(AttendReferenceBackward, OneTensorForAllGetsTheSum) {
  Rng rng(11);
  ProblemOptions options;
  options.plan = {.batch = 2, .seqlen_q = 30, .seqlen_k = 30, .heads_q = 2, .heads_kv = 2, .tile = 16};
  options.dtype = Dtype::f64;
  options.head_dim = 8;
  BackwardProblem apart = make_backward(rng, options);
  apart.forward.k = apart.forward.v = apart.forward.q;
  Context context;
  reference::forward(apart.forward.params(), context);
  reference::backward(apart.params(), context);
  BackwardProblem together = apart;
  const HostTensor all(Dtype::f64, apart.dq.view.shape());
  together.dq = together.dk = together.dv = all;
  reference::backward(together.params(), context);
  const std::vector<double> dq = values_of(apart.dq.view), dk = values_of(apart.dk.view), dv = values_of(apart.dv.view), sum = values_of(all.view);
  for (size_t i = 0; i < sum.size(); ++i) EXPECT_DOUBLE_EQ(sum[i], dq[i] + dk[i] + dv[i]);
}

// The parts of a merged attention, each given the merged out and lse, have gradients that add up to those of the whole (GNA 3.4).
TEST(AttendReferenceBackward, PartsWithMergedResultAddUp) {
  Rng rng(13);
  ProblemOptions options;
  options.plan = {.seqlen_q = 40, .seqlen_k = 50, .heads_q = 2, .tile = 16};
  options.plan.mask = MaskKind::full;
  options.dtype = Dtype::f64;
  options.head_dim = 8;
  const BackwardProblem whole = make_backward(rng, options);
  Context context;
  reference::backward(whole.params(), context);
  // A second plan whose pairs are those of the first, split by run.
  const PlanData& source = *whole.forward.plan.plan;
  std::vector<std::vector<double>> sums(3);
  for (int part = 0; part < 2; ++part) {
    auto plan = std::make_shared<PlanData>();
    plan->seqlen_q = source.seqlen_q;
    plan->seqlen_k = source.seqlen_k;
    plan->heads_q = source.heads_q;
    plan->mask = source.mask;
    plan->by_query = source.by_query;
    (part == 0 ? plan->by_query.whole : plan->by_query.masked) = {};
    AttendBackwardParams params = whole.params();
    params.forward.plan = plan;
    reference::backward(params, context);
    const HostTensor* gradients[] = {&whole.dq, &whole.dk, &whole.dv};
    for (size_t i = 0; i < 3; ++i) {
      const std::vector<double> values = values_of(gradients[i]->view);
      sums[i].resize(values.size(), 0);
      for (size_t j = 0; j < values.size(); ++j) sums[i][j] += values[j];
    }
  }
  const DenseResult exact = dense_gradients(whole.forward.plan, whole.forward.params(), whole.dout.view, whole.params().dlse);
  EXPECT_LE(largest_difference(sums[0], exact.dq), bound(exact.dq, largest_magnitude(exact.lse)));
  EXPECT_LE(largest_difference(sums[1], exact.dk), bound(exact.dk, largest_magnitude(exact.lse)));
  EXPECT_LE(largest_difference(sums[2], exact.dv), bound(exact.dv, largest_magnitude(exact.lse)));
}

}  // namespace
}  // namespace tilewise::attend::testing
