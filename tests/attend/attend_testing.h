// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "tests/attend/random_problem.h"
#include "tilewise/attend/attend.h"
#include "tilewise/attend/reference/measure.h"

// What a backend's tests are made of: random problems of every kind, and comparison with attend/reference under a stated bound.
//
//   Rng rng(seed);
//   const ForwardProblem problem = make_problem(rng, {.plan = {.seqlen_q = 129, .seqlen_k = 200, .has_picked = true}, .dtype = Dtype::bf16});
//   expect_forward(problem, [](const AttendParams& p, Context& c) { return cpu::forward(p, c); }, context, "seed 3");
namespace tilewise::attend::testing {

/// Runs `forward` on the problem and compares out, lse and pairs_read with attend/reference; memory between the rows of the outputs must stay as it
/// was.
/// `logit_roundings`: adds to the bounds what so many roundings of the largest logit L to f32 may move, e = roundings * 2^-24 L. A logit is rounded at least
/// twice on its way (the last sum, the product with the scale); the yardstick, too, but on a short row it may meet them by chance, and then twice its
/// error says nothing: of the first 18,000 seeds 3 are over without this, by at most 0.1 of a rounding.
/// Logits that are off by up to e move lse, the logarithm of their sum, by at most e, and out by sum of P (e_j - mean e) v_j, at most e max|v|.
template <class Forward>
void expect_forward(const ForwardProblem& problem, const Forward& forward, Context& context, const std::string& note, double logit_roundings = 0) {
  SCOPED_TRACE(note + ": " + describe(problem.options));
  problem.out.wipe();
  problem.lse.wipe();
  const AttendParams params = problem.params();
  const Ran ran = forward(params, context);
  EXPECT_EQ(ran.pairs_read, problem.plan.reads);
  const DenseResult exact = exact_forward(problem);
  const DenseResult in_dtype = dense_in_dtype(problem.plan, params);
  const double logit_error = logit_roundings * 0x1p-24 * in_dtype.largest_logit;
  if (problem.options.has_out) {
    const double error = largest_difference(values_of(problem.out.view), exact.out);
    const double of_logits = logit_error * largest_magnitude(values_of(problem.v.view));
    EXPECT_LE(error, bound_of(in_dtype.out, exact.out, problem.options.dtype) + of_logits) << "out";
    EXPECT_TRUE(problem.out.gaps_are_untouched()) << "forward wrote outside of out";
  }
  if (problem.options.has_lse) {
    EXPECT_LE(largest_difference(values_of(problem.lse.view), exact.lse), bound_of(in_dtype.lse, exact.lse, Dtype::f32) + logit_error) << "lse";
    EXPECT_TRUE(problem.lse.gaps_are_untouched()) << "forward wrote outside of lse";
  }
}

/// Runs `measure` and compares each output with attend/reference. Bounds: a logit may be off by twice the error of a plain f32 dot product of its
/// length
/// (D roundings of 2^-24 of |q| |k| scale) and by the rounding of a pooled key to its dtype, sums by that for each of their terms, plus 2^-21 of the largest term-wise total.
template <class Measure>
void expect_measure(const MeasureProblem& problem, const Measure& measure, Context& context, const std::string& note) {
  SCOPED_TRACE(note + ": over " + std::to_string(static_cast<int>(problem.params.over)) + " tile_q " + std::to_string(problem.params.tile_q) +
               " tile_k " + std::to_string(problem.params.tile_k) + (problem.params.lse.has_value() ? " lse" : "") +
               (problem.params.key_bias.has_value() ? " bias" : "") + " " + describe(problem.forward.options));
  for (const HostTensor* output : {&problem.sum, &problem.max, &problem.count}) output->wipe();
  const Ran ran = measure(problem.params, context);
  EXPECT_EQ(ran.pairs_read, problem.forward.plan.reads);

  const HostTensor sum(Dtype::f32, problem.sum.view.shape()), max(Dtype::f32, problem.sum.view.shape()), count(Dtype::f32, problem.sum.view.shape());
  const HostTensor q = converted(problem.params.q, Dtype::f64), k = converted(problem.params.k, Dtype::f64);
  MeasureParams wide = problem.params;
  wide.q = q.view;
  wide.k = k.view;
  wide.sum = sum.view;
  wide.max = max.view;
  wide.count = count.view;
  Context serial;
  reference::measure(wide, serial);
  const std::vector<double> exact_sum = values_of(sum.view), exact_max = values_of(max.view), exact_count = values_of(count.view);

  double norm_q = 0, norm_k = 0;
  const auto largest_norm = [](const TensorView& x) {
    double largest = 0;
    for (int64_t b = 0; b < x.dim(0); ++b) {
      for (int64_t h = 0; h < x.dim(1); ++h) {
        for (int64_t s = 0; s < x.dim(2); ++s) {
          const std::vector<double> row = dense::row_of(x, b, h, s);
          largest = std::max(largest, std::sqrt(dense::dot(row, row)));
        }
      }
    }
    return largest;
  };
  norm_q = largest_norm(problem.params.q);
  norm_k = largest_norm(problem.params.k);
  const double scale =
      problem.params.softmax_scale ? static_cast<double>(*problem.params.softmax_scale) : 1 / std::sqrt(static_cast<double>(problem.params.q.dim(3)));
  const Dtype dtype = problem.params.q.dtype();
  const double half_unit = dtype == Dtype::bf16 ? 0x1p-9 : dtype == Dtype::f16 ? 0x1p-12 : 0x1p-24;
  const double pool_error = problem.params.plan->pools.empty() ? 0 : half_unit * norm_q * norm_k * scale;
  const double logit_error = 2 * std::sqrt(static_cast<double>(problem.params.q.dim(3))) * 0x1p-24 * norm_q * norm_k * scale + pool_error + 1e-6;
  const bool has_lse = problem.params.lse.has_value();
  const auto bound = [&](double value, double terms) {
    // exp(s - lse): a relative error of logit_error, and that of exp, for every term; s: an absolute one.
    return has_lse ? std::fabs(value) * (logit_error + 0x1p-21 * std::sqrt(terms + 1)) * 2 + 1e-30
                   : terms * (logit_error + 0x1p-23 * norm_q * norm_k * scale * std::sqrt(terms + 1)) + 0x1p-22 * std::fabs(value);
  };
  const auto compare = [&](const HostTensor& got, const std::vector<double>& exact, const char* name, bool is_sum) {
    const std::vector<double> values = values_of(got.view);
    for (size_t i = 0; i < values.size(); ++i) {
      if (values[i] == exact[i]) continue;
      ASSERT_LE(std::fabs(values[i] - exact[i]), bound(exact[i], is_sum ? exact_count[i] : 1))
          << name << " cell " << i << " got " << values[i] << ", exact " << exact[i];
    }
    EXPECT_TRUE(got.gaps_are_untouched()) << "measure wrote outside of " << name;
  };
  if (problem.params.sum.has_value()) compare(problem.sum, exact_sum, "sum", true);
  if (problem.params.max.has_value()) compare(problem.max, exact_max, "max", false);
  if (problem.params.count.has_value()) {
    EXPECT_EQ(values_of(problem.count.view), exact_count) << "count";
    EXPECT_TRUE(problem.count.gaps_are_untouched()) << "measure wrote outside of count";
  }
}

}  // namespace tilewise::attend::testing
