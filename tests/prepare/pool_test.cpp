// SPDX-License-Identifier: Apache-2.0
#include "tilewise/prepare/pool.h"

#include <gtest/gtest.h>

#include "tests/select/testing.h"

namespace tilewise::prepare {
namespace {

TEST(MeanPool, EqualsTheMeanOfEachTile) {
  for (const Dtype dtype : {Dtype::f32, Dtype::bf16, Dtype::f16}) {
    for (const std::vector<int32_t>& edge : {std::vector<int32_t>{}, std::vector<int32_t>{0, 5, 5, 37, 50}}) {
      const testing::TestTensor x = testing::random_tensor(dtype, 2, 3, 50, 8, 9);
      Context context;
      context.executor = std::make_shared<testing::ShuffledExecutor>(3);
      const Tensor pooled = mean_pool(x.view, 16, edge, context);
      ASSERT_EQ(pooled.view.shape(), (Shape{2, 3, 4, 8}));
      ASSERT_EQ(pooled.view.dtype(), Dtype::f32);
      for (int64_t b = 0; b < 2; ++b) {
        for (int64_t h = 0; h < 3; ++h) {
          for (int64_t t = 0; t < 4; ++t) {
            const int64_t first = edge.empty() ? t * 16 : edge[static_cast<size_t>(t)],
                          last = edge.empty() ? std::min<int64_t>(50, t * 16 + 16) : edge[static_cast<size_t>(t) + 1];
            for (int64_t d = 0; d < 8; ++d) {
              double sum = 0;
              for (int64_t s = first; s < last; ++s) sum += x.get(b, h, s, d);
              EXPECT_NEAR(pooled.view.at<float>(b, h, t, d), last > first ? sum / static_cast<double>(last - first) : 0.0, 1e-6);
            }
          }
        }
      }
    }
  }
}

TEST(MeanPool, TakesEmptyAndTiny) {
  Context context;
  const testing::TestTensor none = testing::make_tensor(Dtype::f32, 1, 2, 0, 8), one = testing::random_tensor(Dtype::f32, 1, 2, 1, 8, 1);
  EXPECT_EQ(mean_pool(none.view, 16, {}, context).view.shape(), (Shape{1, 2, 0, 8}));
  EXPECT_EQ(mean_pool(one.view, 16, {}, context).view.at<float>(0, 1, 0, 3), one.view.at<float>(0, 1, 0, 3));
}

TEST(MeanPool, RefusesBadArguments) {
  Context context;
  const testing::TestTensor x = testing::random_tensor(Dtype::f32, 1, 1, 20, 8, 1);
  std::vector<int32_t> whole(160);
  const auto kind_of = [&](const TensorView& tokens, int tile, const std::vector<int32_t>& edge) {
    try {
      mean_pool(tokens, tile, edge, context);
    } catch (const Error& error) {
      return std::string(name(error.kind()));
    }
    return std::string("nothing");
  };
  EXPECT_EQ(kind_of(x.view, 0, {}), "value");
  EXPECT_EQ(kind_of(x.view, 16, {0, 10}), "value");
  EXPECT_EQ(kind_of(x.view, 16, {1, 20}), "value");
  EXPECT_EQ(kind_of(x.view, 16, {0, 15, 10, 20}), "value");
  EXPECT_EQ(kind_of(x.view.slice(0, 0, 1).permute({0, 1, 3, 2}), 16, {}), "shape");
  EXPECT_EQ(kind_of(TensorView::of(whole.data(), {1, 1, 20, 8}), 16, {}), "dtype");
  EXPECT_EQ(kind_of(TensorView::of(whole.data(), {20, 8}), 16, {}), "shape");
}

}  // namespace
}  // namespace tilewise::prepare
