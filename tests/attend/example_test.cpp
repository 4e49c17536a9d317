// SPDX-License-Identifier: Apache-2.0
// The README's example, word for word between the two marks: it must compile and be right.
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "tilewise/attend/attend.h"
#include "tilewise/methods/registry.h"

namespace {

TEST(ReadmeExample, RunsAndIsRight) {
  const int64_t heads = 8, length = 1024, dim = 64;
  std::vector<float> q_data(static_cast<size_t>(heads * length * dim)), k_data = q_data, v_data = q_data, out_data = q_data;
  for (size_t i = 0; i < q_data.size(); ++i) {
    q_data[i] = std::sin(static_cast<float>(i % 9973));
    k_data[i] = std::cos(static_cast<float>(i % 7919));
    v_data[i] = 1;  // so every weighted mean is 1
  }
  // README begin
  const tilewise::Shape shape{1, heads, length, dim};
  const auto q = tilewise::TensorView::of(q_data.data(), shape), k = tilewise::TensorView::of(k_data.data(), shape);
  const auto v = tilewise::TensorView::of(v_data.data(), shape), out = tilewise::TensorView::of(out_data.data(), shape);

  tilewise::Context context;
  const tilewise::Plan plan = tilewise::plan_with("xattention", {.q = q, .k = k}, {{"threshold", 0.9}}, context).plan;
  const tilewise::Ran ran = tilewise::attend_forward({.q = q, .k = k, .v = v, .out = out, .plan = plan}, context);
  // README end
  EXPECT_EQ(ran.backend, "cpu");
  EXPECT_GT(ran.pairs_read, 0);
  EXPECT_LT(ran.pairs_read, heads * length * length);
  for (const float x : out_data) ASSERT_NEAR(x, 1.0f, 1e-5f);
}

}  // namespace
