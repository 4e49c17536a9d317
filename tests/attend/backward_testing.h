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

/// Gradients, in the order of the axes.
struct Gradients {
  std::vector<double> dq, dk, dv, dsink;
  double largest_logit = 0;  // magnitude, of backward_in_dtype
};

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

/// Gradients as a plain f32 implementation computes them on the given dtype: products and sums one after another in f32, P and dS rounded to the dtype
/// before they meet q, k and dout, pooled keys too, each gradient rounded once. The yardstick of the bound below.
inline Gradients backward_in_dtype(const BackwardProblem& problem) {
  const RandomPlan& plan = problem.forward.plan;
  const AttendBackwardParams params = problem.params();
  const AttendParams& p = params.forward;
  const Dtype dtype = p.q.dtype();
  const auto rounded = [dtype](float x) {
    return dtype == Dtype::bf16 ? static_cast<float>(bf16(x)) : dtype == Dtype::f16 ? static_cast<float>(f16(x)) : x;
  };
  const auto floats = [](const std::vector<double>& row) { return std::vector<float>(row.begin(), row.end()); };
  const auto dot = [](const std::vector<float>& a, const std::vector<float>& b) {
    float sum = 0;
    for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
    return sum;
  };
  const float scale = p.softmax_scale ? *p.softmax_scale : 1.0f / std::sqrt(static_cast<float>(p.q.dim(3)));
  std::vector<float> dq(static_cast<size_t>(p.q.numel()), 0.0f), dk(static_cast<size_t>(p.k.numel()), 0.0f),
      dv(static_cast<size_t>(p.v.numel()), 0.0f), dsink(static_cast<size_t>(p.q.dim(1)), 0.0f);
  double largest_logit = 0;
  const int64_t heads = p.q.dim(1), seqlen_q = p.q.dim(2), seqlen_k = p.k.dim(2);
  const auto dim = static_cast<size_t>(p.q.dim(3)), dim_v = static_cast<size_t>(p.v.dim(3));
  for (int64_t b = 0; b < p.q.dim(0); ++b) {
    for (int64_t h = 0; h < heads; ++h) {
      const dense::Keys keys = dense::keys_of(plan, p, b, h);
      std::vector<std::vector<float>> k, v;
      const auto pooled = [&](const std::vector<double>& row) {
        std::vector<float> result = floats(row);
        for (float& x : result) x = rounded(x);
        return result;
      };
      for (const std::vector<double>& row : keys.k) k.push_back(pooled(row));
      for (const std::vector<double>& row : keys.v) v.push_back(pooled(row));
      const int64_t hk = h / (heads / p.k.dim(1)), hv = h / (heads / p.v.dim(1));
      for (int64_t i = 0; i < seqlen_q; ++i) {
        const auto lse = static_cast<float>(to_double(p.lse, p.lse.offset(b, h, i)));
        if (lse == -std::numeric_limits<float>::infinity()) continue;
        const std::vector<float> q = floats(dense::row_of(p.q, b, h, i)), g = floats(dense::row_of(params.dout, b, h, i));
        float delta = dot(g, floats(dense::row_of(p.out, b, h, i)));
        if (params.dlse.has_value()) delta -= static_cast<float>(to_double(params.dlse, params.dlse.offset(b, h, i)));
        if (p.sink_logit.has_value()) {
          dsink[static_cast<size_t>(h)] -= std::exp(static_cast<float>(to_double(p.sink_logit, p.sink_logit.offset(h))) - lse) * delta;
        }
        for (size_t j = 0; j < k.size(); ++j) {
          if (!plan.has(b, h, i, static_cast<int64_t>(j))) continue;
          float s = scale * dot(q, k[j]), slope = 1;
          if (p.softcap != 0) {
            const float t = std::tanh(s / p.softcap);
            s = p.softcap * t;
            slope = 1 - t * t;
          }
          largest_logit = std::max(largest_logit, static_cast<double>(std::fabs(s)));
          const float weight = std::exp(s + std::log(static_cast<float>(keys.tokens[j].size())) - lse);
          const float ds = rounded(weight * (dot(g, v[j]) - delta) * slope), w = rounded(weight);
          const float share = 1 / static_cast<float>(keys.tokens[j].size());
          for (size_t d = 0; d < dim; ++d) dq[static_cast<size_t>((b * heads + h) * seqlen_q + i) * dim + d] += ds * scale * k[j][d];
          for (const int64_t t : keys.tokens[j]) {
            for (size_t d = 0; d < dim; ++d) dk[static_cast<size_t>((b * p.k.dim(1) + hk) * seqlen_k + t) * dim + d] += ds * scale * share * q[d];
            for (size_t d = 0; d < dim_v; ++d) dv[static_cast<size_t>((b * p.v.dim(1) + hv) * seqlen_k + t) * dim_v + d] += w * share * g[d];
          }
        }
      }
    }
  }
  Gradients result;
  result.largest_logit = largest_logit;
  for (const float x : dq) result.dq.push_back(static_cast<double>(rounded(x)));
  for (const float x : dk) result.dk.push_back(static_cast<double>(rounded(x)));
  for (const float x : dv) result.dv.push_back(static_cast<double>(rounded(x)));
  for (const float x : dsink) result.dsink.push_back(static_cast<double>(x));
  return result;
}

/// The largest length of a row.
inline double largest_norm(const TensorView& view) {
  double largest = 0;
  for (int64_t b = 0; b < view.dim(0); ++b) {
    for (int64_t h = 0; h < view.dim(1); ++h) {
      for (int64_t s = 0; s < view.dim(2); ++s) {
        const std::vector<double> row = dense::row_of(view, b, h, s);
        const double norm = std::sqrt(dense::dot(row, row));
        if (norm > largest) largest = norm;  // rows of NaN are nobody's
      }
    }
  }
  return largest;
}

/// Compares what the problem's gradients hold with the exact ones; memory between their rows must be as it was before.
/// `logit_roundings`: as expect_forward has it. A logit that is off by e moves P by P e, dS by that times dP - delta, a gradient by that times a row; the
/// queries that add to a key are off independently.
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
