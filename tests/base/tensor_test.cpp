// SPDX-License-Identifier: Apache-2.0
#include "tilewise/base/tensor.h"

#include <gtest/gtest.h>

#include <sstream>
#include <vector>

namespace tilewise {
namespace {

TEST(TensorView, DefaultIsAbsent) {
  const TensorView view;
  EXPECT_FALSE(view.has_value());
  EXPECT_EQ(view.numel(), 0);
}

TEST(TensorView, IndexesThroughStrides) {
  std::vector<float> data(24);
  for (size_t i = 0; i < data.size(); ++i) data[i] = static_cast<float>(i);
  const TensorView view = TensorView::of(data.data(), {2, 3, 4});
  EXPECT_TRUE(view.is_contiguous());
  EXPECT_EQ(view.at<float>(1, 2, 3), 23.0f);
  const TensorView swapped = view.permute({1, 0, 2});
  EXPECT_FALSE(swapped.is_contiguous());
  EXPECT_EQ(swapped.at<float>(2, 1, 3), 23.0f);
  const TensorView part = view.slice(2, 1, 2);
  EXPECT_EQ(part.at<float>(1, 1, 1), 18.0f);
  EXPECT_EQ(part.shape(), (Shape{2, 3, 2}));
}

TEST(TensorView, RefusesWhatItCannotDo) {
  std::vector<float> data(6);
  const TensorView view = TensorView::of(data.data(), {2, 3});
  EXPECT_THROW(view.slice(1, 2, 2), Error);
  EXPECT_THROW(view.slice(2, 0, 1), Error);
  EXPECT_THROW(view.permute({0, 0}), Error);
  EXPECT_THROW(view.permute({0}), Error);
  EXPECT_THROW((void)view.data<int32_t>(), Error);
  EXPECT_THROW(Shape({-1}), Error);
}

TEST(Shape, PrintsAsAList) {
  std::ostringstream text;
  text << Shape{2, 8, 512, 64} << ' ' << Dtype::bf16;
  EXPECT_EQ(text.str(), "[2, 8, 512, 64] bf16");
}

}  // namespace
}  // namespace tilewise
