// SPDX-License-Identifier: Apache-2.0
#include "tilewise/select/mean_pool.h"

#include <gtest/gtest.h>

#include "tests/select/mean_pool_reference.h"

namespace tilewise::select {
namespace {

TEST(MeanPoolScores, EqualTheDefinition) {
  Mask window;
  window.bands = {Mask::Band{40, 5, 3}};
  const std::vector<testing::Sizes> sizes = {{1, 2, 1, 200, 200, 16}, {2, 4, 2, 131, 131, 8}, {1, 2, 2, 65, 200, 8},
                                             {1, 2, 2, 200, 65, 8},   {1, 1, 1, 1, 1, 8},     {1, 1, 1, 650, 2100, 8}};
  for (const testing::Sizes& s : sizes) {
    for (const Mask& mask : {Mask::causal(), Mask::full(), window}) {
      for (const Dtype dtype : {Dtype::f32, Dtype::bf16, Dtype::f16}) {
        for (const float softcap : {0.0f, 1.5f}) {
          SCOPED_TRACE(::testing::Message() << s << " right " << mask.bands[0].right << " " << dtype << " softcap " << softcap);
          const testing::TestTensor q = testing::random_tensor(dtype, s.batch, s.heads_q, s.seqlen_q, s.dim, 1),
                                    k = testing::random_tensor(dtype, s.batch, s.heads_kv, s.seqlen_k, s.dim, 2);
          Context context;
          const Scores scores = mean_pool_scores({q.view, k.view, mask, 3.0f, softcap}, 32, context);
          for (int64_t b = 0; b < s.batch; ++b) {
            for (int h = 0; h < s.heads_q; ++h) {
              const auto expected =
                  testing::mean_pool_definition(q, k, b, h, h * s.heads_kv / s.heads_q, mask, 32, 3.0, static_cast<double>(softcap));
              ASSERT_EQ(static_cast<int64_t>(expected.size()), scores.grid.rows());
              for (size_t row = 0; row < expected.size(); ++row) {
                for (size_t j = 0; j < expected[row].size(); ++j) {
                  ASSERT_NEAR(scores.row(b, h, static_cast<int64_t>(row))[j], expected[row][j], 1e-5) << "row " << row << " tile " << j;
                }
              }
            }
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace tilewise::select
