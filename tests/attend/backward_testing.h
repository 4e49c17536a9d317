// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "tests/attend/attend_testing.h"
#include "tests/attend/gradient_oracle.h"
#include "tilewise/attend/reference/backward.h"

// What tests of gradients are made of: a random problem with its forward results and incoming gradients, the exact answer, and a stated bound.
namespace tilewise::attend::testing {

struct BackwardProblem {
  ForwardProblem forward;
  HostTensor dout, dlse, dq, dk, dv, dsink_logit;
  bool has_dlse = true;

  AttendBackwardParams params() const {
    AttendBackwardParams p{.forward = forward.params(), .dout = dout.view, .dq = dq.view, .dk = dk.view, .dv = dv.view};
    if (has_dlse) p.dlse = dlse.view;
    if (forward.options.has_sink) p.dsink_logit = dsink_logit.view;
    return p;
  }
  void wipe() const {
    for (const HostTensor* gradient : {&dq, &dk, &dv, &dsink_logit}) gradient->wipe();
  }
};

/// The gradient of a problem. out and lse come from attend/reference.
inline BackwardProblem make_backward_of(Rng& rng, ForwardProblem forward) {
  BackwardProblem b;
  b.forward = std::move(forward);
  b.forward.options.has_out = b.forward.options.has_lse = true;
  const ProblemOptions& options = b.forward.options;
  Context context;
  reference::forward(b.forward.params(), context);
  b.dout = random_normal(rng, options.dtype, b.forward.out.view.shape(), options.layout);
  b.dlse = random_normal(rng, Dtype::f32, b.forward.lse.view.shape(), options.layout);
  b.dq = HostTensor(options.dtype, b.forward.q.view.shape(), options.layout);
  b.dk = HostTensor(options.dtype, b.forward.k.view.shape(), options.layout);
  b.dv = HostTensor(options.dtype, b.forward.v.view.shape(), options.layout);
  b.dsink_logit = HostTensor(Dtype::f32, {options.plan.heads_q});
  b.has_dlse = chance(rng, 0.6);
  return b;
}
inline BackwardProblem make_backward(Rng& rng, const ProblemOptions& options) { return make_backward_of(rng, make_problem(rng, options)); }

/// The f64 gradients of a problem, from attend/reference on the same inputs, out and lse.
inline Gradients exact_backward(const BackwardProblem& problem) {
  BackwardProblem wide = problem;
  for (HostTensor* tensor : {&wide.forward.q, &wide.forward.k, &wide.forward.v, &wide.forward.out, &wide.dout}) {
    *tensor = converted(tensor->view, Dtype::f64);
  }
  wide.dq = HostTensor(Dtype::f64, problem.dq.view.shape());
  wide.dk = HostTensor(Dtype::f64, problem.dk.view.shape());
  wide.dv = HostTensor(Dtype::f64, problem.dv.view.shape());
  wide.dsink_logit = HostTensor(Dtype::f32, problem.dsink_logit.view.shape());
  Context context;
  reference::backward(wide.params(), context);
  return {values_of(wide.dq.view), values_of(wide.dk.view), values_of(wide.dv.view), values_of(wide.dsink_logit.view)};
}

/// The yardstick of the bound below.
inline Gradients backward_in_dtype(const BackwardProblem& problem) { return gradients_in_dtype(problem.forward.plan, problem.params()); }

/// Compares what the problem's gradients hold with the exact ones; memory between their rows must be as it was before.
/// `logit_roundings`: as expect_forward has it. A logit that is off by e moves P by P e, dS by that times dP - delta, a gradient by that times a row; the
/// queries that add to a key are off independently. Among the first 18,000 seeds 113 gradients need more than the yardstick's bound, dv at most 0.34 of a
/// rounding, dq 0.14, dk 0.05.
inline void expect_gradients(const BackwardProblem& problem, const Gradients& exact, const Gradients& in_dtype, double logit_roundings = 0) {
  const ProblemOptions& o = problem.forward.options;
  const Dtype dtype = o.dtype;
  double of_q = 0, of_k = 0, of_v = 0;
  if (logit_roundings > 0) {
    const double scale = o.softmax_scale ? static_cast<double>(*o.softmax_scale) : 1 / std::sqrt(static_cast<double>(o.head_dim));
    const double part = logit_roundings * 0x1p-24 * (in_dtype.largest_logit + 1), norm_dout = largest_norm(problem.dout.view);
    const double queries = std::sqrt(static_cast<double>(std::max<int64_t>(1, o.plan.seqlen_q * o.plan.heads_q)));
    const double ds = part * 2 * norm_dout * largest_norm(problem.forward.v.view) * scale;
    of_q = ds * largest_magnitude(values_of(problem.forward.k.view));
    of_k = ds * largest_magnitude(values_of(problem.forward.q.view)) * queries;
    of_v = part * largest_magnitude(values_of(problem.dout.view)) * queries;
  }
  EXPECT_LE(largest_difference(values_of(problem.dq.view), exact.dq), bound_of(in_dtype.dq, exact.dq, dtype) + of_q) << "dq";
  EXPECT_LE(largest_difference(values_of(problem.dk.view), exact.dk), bound_of(in_dtype.dk, exact.dk, dtype) + of_k) << "dk";
  EXPECT_LE(largest_difference(values_of(problem.dv.view), exact.dv), bound_of(in_dtype.dv, exact.dv, dtype) + of_v) << "dv";
  if (problem.forward.options.has_sink) {
    EXPECT_LE(largest_difference(values_of(problem.dsink_logit.view), exact.dsink), bound_of(in_dtype.dsink, exact.dsink, Dtype::f32))
        << "dsink_logit";
  }
  for (const HostTensor* gradient : {&problem.dq, &problem.dk, &problem.dv, &problem.dsink_logit}) EXPECT_TRUE(gradient->gaps_are_untouched());
}

}  // namespace tilewise::attend::testing
