// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <gtest/gtest.h>

#include "tests/attend/attend_testing.h"
#include "tests/attend/random_gradients.h"

// What tests of gradients are made of: a random problem (random_gradients.h), the exact answer, and a stated bound.
namespace tilewise::attend::testing {

/// Compares what the problem's gradients hold with the exact ones; memory between their rows must be as it was before.
/// `logit_roundings`: as expect_forward has it. A logit that is off by e moves P by P e, dS by that times dP - delta, a gradient by that times a row; the
/// queries that add to a key are off independently. Among the first 18,000 seeds 113 gradients need more than the yardstick's bound, dv at most 0.34 of a
/// rounding, dq 0.14, dk 0.05.
inline void expect_gradients(const BackwardProblem& problem, const Gradients& exact, const Gradients& in_dtype, double logit_roundings = 0) {
  const Dtype dtype = problem.forward.options.dtype;
  const auto [of_q, of_k, of_v] = slack_of_logits(problem, in_dtype, logit_roundings);
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
