// SPDX-License-Identifier: Apache-2.0
#include "tilewise/prepare/reorder.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "tests/attend/test_tensor.h"
#include "tilewise/prepare/pool.h"

namespace tilewise::prepare {
namespace {

using attend::testing::HostTensor;
using attend::testing::Layout;
using attend::testing::random_normal;
using attend::testing::Rng;

// Orders of `tokens` tokens with padding, [batch, groups, slots].
struct RandomOrder {
  RandomOrder(Rng& rng, int64_t batch, int64_t groups, int64_t tokens, int64_t slots) {
    for (int64_t i = 0; i < batch * groups; ++i) {
      std::vector<int32_t> one(static_cast<size_t>(slots), -1);
      for (int64_t t = 0; t < tokens; ++t) one[static_cast<size_t>(t)] = static_cast<int32_t>(t);
      std::shuffle(one.begin(), one.end(), rng);
      values.insert(values.end(), one.begin(), one.end());
    }
    order.token = TensorView::of(values.data(), {batch, groups, slots});
  }
  std::vector<int32_t> values;
  Order order;
};

TEST(Reorder, SlotsHoldTheirTokensAndComeBack) {
  Context context;
  for (const Dtype dtype : {Dtype::f32, Dtype::bf16, Dtype::f16}) {
    for (const Layout layout : {Layout::contiguous, Layout::heads_last, Layout::padded}) {
      for (const int64_t groups : {1, 2, 4}) {
        for (const int64_t heads : {1, 2, 4}) {
          Rng rng(static_cast<uint64_t>(groups * 10 + heads));
          const RandomOrder made(rng, groups == 2 ? 2 : 1, groups, 1030, 1041);
          const HostTensor tokens = random_normal(rng, dtype, {2, heads, 1030, 5}, layout);
          const Tensor slots = to_slots(tokens.view, made.order, context);
          const int64_t all = std::max(heads, groups);
          ASSERT_EQ(slots.view.shape(), (Shape{2, all, 1041, 5}));
          for (int64_t b = 0; b < 2; ++b) {
            for (int64_t j = 0; j < all; ++j) {
              for (int64_t s = 0; s < 1041; ++s) {
                const int64_t token = made.order.token.at<int32_t>(groups == 2 ? b : 0, j * groups / all, s);
                for (int64_t d = 0; d < 5; ++d) {
                  ASSERT_EQ(attend::testing::to_double(slots.view, slots.view.offset(b, j, s, d)),
                            token < 0 ? 0 : tokens.get(b, j * heads / all, token, d));
                }
              }
            }
          }
          if (all != heads) continue;
          const HostTensor back(dtype, tokens.view.shape(), layout);
          to_tokens(slots.view, made.order, back.view, context);
          EXPECT_EQ(attend::testing::values_of(back.view), attend::testing::values_of(tokens.view));
          EXPECT_TRUE(back.gaps_are_untouched());
        }
      }
    }
  }
}

TEST(Reorder, TakesRowsWithoutChannelsAndNoOrder) {
  Context context;
  Rng rng(1);
  const RandomOrder made(rng, 1, 1, 20, 25);
  const HostTensor lse = random_normal(rng, Dtype::f32, {2, 3, 20});
  const Tensor slots = to_slots(lse.view, made.order, context);
  for (int64_t s = 0; s < 25; ++s) {
    const int32_t token = made.values[static_cast<size_t>(s)];
    EXPECT_EQ(static_cast<double>(slots.view.at<float>(1, 2, s)), token < 0 ? 0 : lse.get(1, 2, token));
  }
  const HostTensor back(Dtype::f32, {2, 3, 20});
  to_tokens(slots.view, made.order, back.view, context);
  EXPECT_EQ(attend::testing::values_of(back.view), attend::testing::values_of(lse.view));
  EXPECT_EQ(attend::testing::values_of(to_slots(lse.view, Order{}, context).view), attend::testing::values_of(lse.view));
  EXPECT_EQ(to_slots(HostTensor(Dtype::f32, {1, 1, 0, 4}).view, Order{}, context).view.shape(), (Shape{1, 1, 0, 4}));
}

TEST(Reorder, RefusesWhatDoesNotFit) {
  Context context;
  Rng rng(1);
  RandomOrder made(rng, 1, 2, 20, 25);
  const HostTensor tokens = random_normal(rng, Dtype::f32, {2, 4, 20, 8});
  const auto kind_of = [&](const TensorView& from, const TensorView& to) {
    try {
      to_slots(from, made.order, to, context);
    } catch (const Error& error) {
      return std::string(name(error.kind()));
    }
    return std::string("nothing");
  };
  EXPECT_EQ(kind_of(tokens.view, HostTensor(Dtype::f32, {2, 4, 25, 8}).view), "nothing");
  EXPECT_EQ(kind_of(tokens.view, HostTensor(Dtype::f32, {2, 4, 24, 8}).view), "shape");
  EXPECT_EQ(kind_of(tokens.view, HostTensor(Dtype::f32, {2, 6, 25, 8}).view), "shape");
  EXPECT_EQ(kind_of(tokens.view, HostTensor(Dtype::f32, {2, 4, 25}).view), "shape");
  EXPECT_EQ(kind_of(tokens.view, HostTensor(Dtype::bf16, {2, 4, 25, 8}).view), "dtype");
  EXPECT_EQ(kind_of(tokens.view, HostTensor(Dtype::f32, {2, 4, 8, 25}).view.permute({0, 1, 3, 2})), "shape");
  const HostTensor slots(Dtype::f32, {2, 4, 25, 8});
  const std::vector<unsigned char> before = slots.bytes();
  made.values[49] = 20;
  EXPECT_EQ(kind_of(tokens.view, slots.view), "value");
  made.values[49] = -2;
  EXPECT_EQ(kind_of(tokens.view, slots.view), "value");
  EXPECT_EQ(slots.bytes(), before);
  made.values[49] = -1;
  EXPECT_THROW(to_tokens(HostTensor(Dtype::f32, {2, 8, 25, 8}).view, made.order, tokens.view, context), Error);
}

TEST(PoolOfSlots, IsTheMeanOfTheSlotsThatHoldATokenAndReadsNoOther) {
  Context context;
  for (const Dtype dtype : {Dtype::f32, Dtype::bf16, Dtype::f16}) {
    for (const int group : {1, 4, 64, 200}) {
      Rng rng(static_cast<uint64_t>(group));
      RandomOrder made(rng, 2, 2, 70, 133);
      for (int64_t s = 4; s < 8; ++s) {  // a group of padding alone: its tokens change places with padding elsewhere
        int32_t* const tokens = made.values.data();
        const auto padding = std::find(tokens + 8, tokens + 133, -1);
        if (tokens[s] >= 0) std::swap(tokens[s], *padding);
      }
      const HostTensor slots = random_normal(rng, dtype, {2, 4, 133, 8}, Layout::padded);
      for (int64_t b = 0; b < 2; ++b) {
        for (int64_t j = 0; j < 4; ++j) {
          for (int64_t s = 0; s < 133; ++s) {
            if (made.order.token.at<int32_t>(b, j / 2, s) < 0) slots.set(std::numeric_limits<double>::quiet_NaN(), b, j, s, 3);
          }
        }
      }
      const int64_t count = (133 + group - 1) / group;
      const HostTensor pooled(dtype, {2, 4, count, 8}, Layout::padded);
      pool({.x = slots.view, .out = pooled.view, .tile = group, .order = made.order}, context);
      EXPECT_TRUE(pooled.gaps_are_untouched());
      const double unit = dtype == Dtype::f32 ? 0x1p-22 : dtype == Dtype::bf16 ? 0x1p-8 : 0x1p-11;
      for (int64_t b = 0; b < 2; ++b) {
        for (int64_t j = 0; j < 4; ++j) {
          for (int64_t t = 0; t < count; ++t) {
            for (int64_t d = 0; d < 8; ++d) {
              double sum = 0, real = 0, most = 0;
              for (int64_t s = t * group; s < std::min<int64_t>(133, (t + 1) * group); ++s) {
                if (made.order.token.at<int32_t>(b, j / 2, s) < 0) continue;
                sum += slots.get(b, j, s, d);
                most = std::max(most, std::fabs(slots.get(b, j, s, d)));
                ++real;
              }
              EXPECT_NEAR(pooled.get(b, j, t, d), real > 0 ? sum / real : 0, unit * most) << "group " << group;
            }
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace tilewise::prepare
