// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "tests/attend/random_decode.h"

namespace tilewise::attend::testing {

/// Holds what a call wrote against the answer. `epsilon`: of the arithmetic; out is rounded once more to its dtype.
inline void expect_answer(const DecodeCase& c, double epsilon, const std::string& what) {
  const DecodeOptions& o = c.options;
  const DecodeAnswer answer = answer_of(c);
  const double rounding = o.dtype == Dtype::bf16 ? 0x1p-8 : o.dtype == Dtype::f16 ? 0x1p-11 : o.dtype == Dtype::f32 ? 0x1p-24 : 0;
  const double of_score = epsilon * (4 + answer.largest_s);
  const auto differs = [](double got, double want, double bound) {
    if (std::isinf(want)) return got != want;
    return !(std::abs(got - want) <= bound);
  };
  if (o.has_v) {
    ASSERT_TRUE(c.out.gaps_are_untouched()) << what;
    const std::vector<double> out = values_of(c.out.view);
    for (size_t i = 0; i < out.size(); ++i) {
      const double bound = 2 * of_score * answer.largest_v + rounding * std::abs(answer.out[i]) + 1e-7;
      ASSERT_FALSE(differs(out[i], answer.out[i], bound)) << what << ": out " << i << " is " << out[i] << ", by definition " << answer.out[i];
    }
  }
  if (!o.has_lse) return;
  ASSERT_TRUE(c.lse.gaps_are_untouched()) << what;
  const std::vector<double> lse = values_of(c.lse.view);
  for (size_t i = 0; i < lse.size(); ++i) {
    const double bound = of_score + 0x1p-23 * std::abs(answer.lse[i]);
    ASSERT_FALSE(differs(lse[i], answer.lse[i], bound)) << what << ": lse " << i << " is " << lse[i] << ", by definition " << answer.lse[i];
  }
}

}  // namespace tilewise::attend::testing
