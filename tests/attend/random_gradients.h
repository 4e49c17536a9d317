// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "tests/attend/gradient_oracle.h"
#include "tests/attend/random_problem.h"
#include "tilewise/attend/reference/backward.h"

// Random problems with their forward results and incoming gradients, and what they are held against. Without GoogleTest.
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

/// What `logit_roundings` roundings of the largest logit to f32 may move dq, dk and dv by, at most.
struct LogitSlack {
  double of_q = 0, of_k = 0, of_v = 0;
};
inline LogitSlack slack_of_logits(const BackwardProblem& problem, const Gradients& in_dtype, double logit_roundings) {
  if (logit_roundings <= 0) return {};
  const ProblemOptions& o = problem.forward.options;
  const double scale = o.softmax_scale ? static_cast<double>(*o.softmax_scale) : 1 / std::sqrt(static_cast<double>(o.head_dim));
  const double part = logit_roundings * 0x1p-24 * (in_dtype.largest_logit + 1), norm_dout = largest_norm(problem.dout.view);
  const double queries = std::sqrt(static_cast<double>(std::max<int64_t>(1, o.plan.seqlen_q * o.plan.heads_q)));
  const double ds = part * 2 * norm_dout * largest_norm(problem.forward.v.view) * scale;
  return {ds * largest_magnitude(values_of(problem.forward.k.view)), ds * largest_magnitude(values_of(problem.forward.q.view)) * queries,
          part * largest_magnitude(values_of(problem.dout.view)) * queries};
}

}  // namespace tilewise::attend::testing
