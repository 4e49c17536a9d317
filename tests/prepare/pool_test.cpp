// SPDX-License-Identifier: Apache-2.0
#include "tilewise/prepare/pool.h"

#include <gtest/gtest.h>

#include <cmath>

#include "tests/base/error_kind.h"
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

// An order of two groups for four heads, with padding: token i of group 1 lies elsewhere, the last slots hold nothing.
Tensor order_of_slots(int64_t slots, int64_t padding) {
  Tensor token(host_memory(), Dtype::i32, {1, 2, slots});
  for (int64_t g = 0; g < 2; ++g) {
    for (int64_t s = 0; s < slots; ++s) {
      const bool is_padding = s % (slots / padding) == g;  // in the midst of tiles, and a whole tile below
      token.view.at<int32_t>(0, g, s) = is_padding || (s >= 8 && s < 12) ? -1 : static_cast<int32_t>(s);
    }
  }
  return token;
}

TEST(Pool, LeavesPaddingOut) {
  Context context;
  const testing::TestTensor x = testing::random_tensor(Dtype::f32, 2, 4, 30, 8, 2);
  const Tensor token = order_of_slots(30, 5);
  testing::TestTensor out = testing::make_tensor(Dtype::f32, 2, 4, 8, 8);
  for (int64_t s = 0; s < 30; ++s) {
    for (int64_t h = 0; h < 4; ++h) {
      if (token.view.at<int32_t>(0, h / 2, s) < 0) x.view.at<float>(1, h, s, 3) = NAN;  // nobody reads it
    }
  }
  pool({.x = x.view, .out = out.view, .tile = 4, .order = {.token = token.view, .boxes = {}}}, context);
  for (int64_t h = 0; h < 4; ++h) {
    for (int64_t t = 0; t < 8; ++t) {
      double sum = 0, real = 0;
      for (int64_t s = 4 * t; s < std::min<int64_t>(30, 4 * t + 4); ++s) {
        if (token.view.at<int32_t>(0, h / 2, s) < 0) continue;
        sum += x.get(1, h, s, 3);
        ++real;
      }
      EXPECT_NEAR(out.get(1, h, t, 3), real == 0 ? 0 : sum / real, 1e-6);
      EXPECT_EQ(real == 0, t == 2);
    }
  }
}

double product(const testing::TestTensor& a, const testing::TestTensor& b) {
  double sum = 0;
  const Shape& shape = a.view.shape();
  for (int64_t i = 0; i < shape.numel(); ++i) {
    const int64_t d = i % shape[3], s = i / shape[3] % shape[2], h = i / shape[3] / shape[2] % shape[1], n = i / shape[3] / shape[2] / shape[1];
    sum += a.get(n, h, s, d) * b.get(n, h, s, d);
  }
  return sum;
}

// pool is linear, so its gradient is its adjoint: <pool(x), y> = <x, pool_backward(y)> for all x and y.
TEST(Pool, BackwardIsTheAdjoint) {
  const Tensor token = order_of_slots(50, 5);
  const std::vector<int32_t> edge{0, 5, 5, 37, 50};
  for (const Dtype dtype : {Dtype::f32, Dtype::bf16, Dtype::f16}) {
    for (const Dtype of_means : {Dtype::f32, dtype}) {
      for (const bool has_edge : {false, true}) {
        for (const bool has_order : {false, true}) {
          Context context;
          context.executor = std::make_shared<testing::ShuffledExecutor>(3);
          const Order order = has_order ? Order{.token = token.view, .boxes = {}} : Order{};
          const std::span<const int32_t> edges = has_edge ? std::span<const int32_t>(edge) : std::span<const int32_t>();
          const int64_t means = has_edge ? 4 : 13;
          const testing::TestTensor x = testing::random_tensor(dtype, 2, 4, 50, 8, 9), y = testing::random_tensor(of_means, 2, 4, means, 8, 10);
          testing::TestTensor out = testing::make_tensor(of_means, 2, 4, means, 8), dx = testing::random_tensor(dtype, 2, 4, 50, 8, 11);
          pool({.x = x.view, .out = out.view, .tile = 4, .edge = edges, .order = order}, context);
          pool_backward({.dout = y.view, .dx = dx.view, .tile = 4, .edge = edges, .order = order}, context);
          // Each element is rounded once: by its half unit, at random over some thousand of them.
          const double unit = dtype == Dtype::bf16 ? 0x1p-9 : dtype == Dtype::f16 ? 0x1p-12 : 0x1p-23;
          const double size = std::sqrt(product(out, out) * product(y, y)) + std::sqrt(product(x, x) * product(dx, dx));
          EXPECT_NEAR(product(out, y), product(x, dx), unit * size)
              << dtype << " " << of_means << (has_edge ? " edge" : "") << (has_order ? " order" : "");
          EXPECT_GT(std::abs(product(out, y)), 0.01);
          for (int64_t s = 0; s < 50 && has_order; ++s) {
            if (token.view.at<int32_t>(0, 1, s) < 0) {
              EXPECT_EQ(dx.get(1, 3, s, 5), 0);
            }
          }
        }
      }
    }
  }
}

// By differences in f64 of the definition, a channel of one token at a time.
TEST(Pool, BackwardEqualsDifferences) {
  Context context;
  const Tensor token = order_of_slots(30, 5);
  const testing::TestTensor x = testing::random_tensor(Dtype::f32, 1, 2, 30, 1, 3), y = testing::random_tensor(Dtype::f32, 1, 2, 5, 1, 4);
  testing::TestTensor dx = testing::make_tensor(Dtype::f32, 1, 2, 30, 1);
  const auto loss = [&](int64_t changed, double by) {
    double sum = 0;
    for (int64_t t = 0; t < 5; ++t) {
      double total = 0, real = 0;
      for (int64_t s = 7 * t; s < std::min<int64_t>(30, 7 * t + 7); ++s) {
        if (token.view.at<int32_t>(0, 1, s) < 0) continue;
        total += x.get(0, 1, s, 0) + (s == changed ? by : 0);
        ++real;
      }
      sum += real == 0 ? 0 : std::pow(total / real, 2) / 2 * y.get(0, 1, t, 0);
    }
    return sum;
  };
  // The loss is not linear: its gradient in a mean is that mean times y.
  testing::TestTensor out = testing::make_tensor(Dtype::f32, 1, 2, 5, 1);
  pool({.x = x.view, .out = out.view, .tile = 7, .order = {.token = token.view, .boxes = {}}}, context);
  for (int64_t t = 0; t < 5; ++t) out.set(0, 1, t, 0, static_cast<float>(out.get(0, 1, t, 0) * y.get(0, 1, t, 0)));
  pool_backward({.dout = out.view, .dx = dx.view, .tile = 7, .order = {.token = token.view, .boxes = {}}}, context);
  for (int64_t s = 0; s < 30; ++s) EXPECT_NEAR(dx.get(0, 1, s, 0), (loss(s, 1e-4) - loss(s, -1e-4)) / 2e-4, 1e-6) << s;
}

TEST(Pool, RefusesBadArguments) {
  Context context;
  const testing::TestTensor x = testing::random_tensor(Dtype::bf16, 1, 2, 20, 8, 1), out = testing::make_tensor(Dtype::bf16, 1, 2, 5, 8);
  const testing::TestTensor half = testing::make_tensor(Dtype::f16, 1, 2, 5, 8), few = testing::make_tensor(Dtype::f32, 1, 2, 4, 8);
  const Tensor token = order_of_slots(20, 5);
  const auto kind_of = [&](const PoolParams& p) {
    const std::string forward = tilewise::kind_of([&] { pool(p, context); });
    const std::string backward =
        tilewise::kind_of([&] { pool_backward({.dout = p.out, .dx = p.x, .tile = p.tile, .edge = p.edge, .order = p.order}, context); });
    EXPECT_EQ(forward, backward);
    return forward;
  };
  EXPECT_EQ(kind_of({.x = x.view, .out = half.view, .tile = 4}), "dtype");
  EXPECT_EQ(kind_of({.x = x.view, .out = few.view, .tile = 4}), "shape");
  EXPECT_EQ(kind_of({.x = {}, .out = out.view, .tile = 4}), "shape");
  EXPECT_EQ(kind_of({.x = x.view, .out = {}, .tile = 4}), "shape");
  EXPECT_EQ(kind_of({.x = x.view, .out = out.view, .tile = 0}), "value");
  EXPECT_EQ(kind_of({.x = x.view, .out = out.view, .tile = 4, .order = {.token = token.view.slice(2, 0, 19), .boxes = {}}}), "shape");
  const TensorView nowhere(nullptr, Dtype::bf16, {1, 2, 20, 8}), far(x.view.raw(), Dtype::bf16, {1, 2, 20, 8}, Device{Device::Type::cuda, 0});
  EXPECT_EQ(kind_of({.x = nowhere, .out = out.view, .tile = 4}), "value");
  EXPECT_EQ(kind_of({.x = far, .out = out.view, .tile = 4}), "device");
}

}  // namespace
}  // namespace tilewise::prepare
