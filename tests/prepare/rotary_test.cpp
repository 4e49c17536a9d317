// SPDX-License-Identifier: Apache-2.0
#include "tilewise/prepare/rotary.h"

#include <gtest/gtest.h>

#include <cmath>
#include <complex>
#include <random>
#include <vector>

#include "tests/base/error_kind.h"

namespace tilewise {
namespace {

TEST(Rotary, TurnsChannelPairsAsComplexNumbers) {
  Context context;
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  for (const int64_t seqlen : {0, 1, 255, 257}) {
    for (const int64_t head_dim : {2, 10, 64}) {
      std::vector<float> x(static_cast<size_t>(2 * seqlen * 3 * head_dim)), out(x.size(), 9.0f);
      for (float& value : x) value = normal(random);
      // Token-major memory, so that strides are not those of a contiguous tensor.
      const TensorView xs = TensorView::of(x.data(), {2, seqlen, 3, head_dim}).permute({0, 2, 1, 3});
      const TensorView outs = TensorView::of(out.data(), {2, 3, seqlen, head_dim});
      rotary({.x = xs, .out = outs, .theta = 500'000, .first_position = 7}, context);
      for (int64_t b = 0; b < 2; ++b) {
        for (int64_t h = 0; h < 3; ++h) {
          for (int64_t s = 0; s < seqlen; ++s) {
            for (int64_t i = 0; i < head_dim / 2; ++i) {
              const double angle = static_cast<double>(s + 7) / std::pow(500'000.0, 2.0 * static_cast<double>(i) / static_cast<double>(head_dim));
              const std::complex<double> turned =
                  std::complex<double>(xs.at<float>(b, h, s, i), xs.at<float>(b, h, s, i + head_dim / 2)) * std::polar(1.0, angle);
              ASSERT_NEAR(outs.at<float>(b, h, s, i), turned.real(), 1e-6);
              ASSERT_NEAR(outs.at<float>(b, h, s, i + head_dim / 2), turned.imag(), 1e-6);
            }
          }
        }
      }
      rotary({.x = outs, .out = outs, .theta = 500'000, .first_position = 7, .is_inverse = true}, context);
      for (int64_t h = 0; h < 3; ++h) {
        for (int64_t s = 0; s < seqlen; ++s) {
          for (int64_t d = 0; d < head_dim; ++d) ASSERT_NEAR(outs.at<float>(1, h, s, d), xs.at<float>(1, h, s, d), 1e-5);
        }
      }
    }
  }
}

// 16-bit floats are turned in f32 and rounded once: equal to a rotary in f32 that is rounded afterwards. In place and from strided memory, too.
template <class T>
void expect_rounded_once() {
  Context context;
  std::mt19937 random(5);
  std::normal_distribution<float> normal;
  std::vector<T> x(2 * 7 * 3 * 10), out(x.size());
  std::vector<float> wide(x.size()), turned(x.size());
  for (size_t i = 0; i < x.size(); ++i) {
    x[i] = T(normal(random));
    wide[i] = static_cast<float>(x[i]);
  }
  const auto heads = [](auto* data) { return TensorView::of(data, {2, 7, 3, 10}).permute({0, 2, 1, 3}); };
  for (const bool is_inverse : {false, true}) {
    rotary({.x = heads(wide.data()), .out = heads(turned.data()), .first_position = 1'000, .is_inverse = is_inverse}, context);
    rotary({.x = heads(x.data()), .out = heads(out.data()), .first_position = 1'000, .is_inverse = is_inverse}, context);
    for (size_t i = 0; i < x.size(); ++i) ASSERT_EQ(out[i].bits, T(turned[i]).bits);
    std::vector<T> in_place = x;
    rotary({.x = heads(in_place.data()), .out = heads(in_place.data()), .first_position = 1'000, .is_inverse = is_inverse}, context);
    for (size_t i = 0; i < x.size(); ++i) ASSERT_EQ(in_place[i].bits, out[i].bits);
  }
}
TEST(Rotary, RoundsHalvesOnce) {
  expect_rounded_once<bf16>();
  expect_rounded_once<f16>();
}

// A rotation's gradient is the rotation back: <turn(x), y> = <x, turn back(y)>.
template <class T>
void expect_adjoint(double unit) {
  Context context;
  std::mt19937 random(6);
  std::normal_distribution<float> normal;
  constexpr size_t kSize = 2 * 3 * 9 * 16;
  std::vector<T> x(kSize), y(kSize), out(kSize), dx(kSize);
  for (size_t i = 0; i < kSize; ++i) {
    x[i] = T(normal(random));
    y[i] = T(normal(random));
  }
  const Shape shape{2, 3, 9, 16};
  rotary({.x = TensorView::of(x.data(), shape), .out = TensorView::of(out.data(), shape), .theta = 500'000, .first_position = 123'456}, context);
  rotary({.x = TensorView::of(y.data(), shape),
          .out = TensorView::of(dx.data(), shape),
          .theta = 500'000,
          .first_position = 123'456,
          .is_inverse = true},
         context);
  double forward = 0, backward = 0, size = 0;
  for (size_t i = 0; i < kSize; ++i) {
    forward += static_cast<double>(static_cast<float>(out[i])) * static_cast<double>(static_cast<float>(y[i]));
    backward += static_cast<double>(static_cast<float>(x[i])) * static_cast<double>(static_cast<float>(dx[i]));
    size += std::abs(static_cast<double>(static_cast<float>(x[i])) * static_cast<double>(static_cast<float>(dx[i])));
  }
  EXPECT_NEAR(forward, backward, unit * size);
  EXPECT_GT(std::abs(forward), 1);
}
TEST(Rotary, TurningBackIsTheGradient) {
  expect_adjoint<float>(0x1p-23);
  expect_adjoint<bf16>(0x1p-9);
  expect_adjoint<f16>(0x1p-12);
}

TEST(Rotary, TableHoldsTheSameAngles) {
  Context context;
  const auto frequencies = prepare::rotary_frequencies(8, 10'000);
  const prepare::RotaryTable table(frequencies, 1, 1000, 300, context);
  std::vector<float> x = {1, 2, 3, 4, 5, 6, 7, 8}, out(8), direct(8);
  for (const int64_t position : {1000, 1299}) {
    prepare::rotate_half(x.data(), table.row(position), 8, out.data());
    rotary({.x = TensorView::of(x.data(), {1, 1, 1, 8}), .out = TensorView::of(direct.data(), {1, 1, 1, 8}), .first_position = position}, context);
    EXPECT_EQ(out, direct);
  }
}

TEST(Rotary, RefusesBadArguments) {
  Context context;
  std::vector<float> data(64), other(64);
  std::vector<bf16> half(64);
  const TensorView x = TensorView::of(data.data(), {1, 2, 4, 8}), out = TensorView::of(other.data(), {1, 2, 4, 8});
  EXPECT_EQ(kind_of([&] { rotary({.x = {}, .out = out}, context); }), "shape");
  EXPECT_EQ(kind_of([&] { rotary({.x = x, .out = {}}, context); }), "shape");
  EXPECT_EQ(kind_of([&] { rotary({.x = x, .out = out.slice(2, 0, 3)}, context); }), "shape");
  EXPECT_EQ(kind_of([&] { rotary({.x = x.slice(3, 0, 7), .out = out.slice(3, 0, 7)}, context); }), "shape");
  EXPECT_EQ(kind_of([&] { rotary({.x = x.slice(3, 0, 0), .out = out.slice(3, 0, 0)}, context); }), "shape");
  EXPECT_EQ(kind_of([&] { rotary({.x = TensorView::of(half.data(), {1, 2, 4, 8}), .out = out}, context); }), "dtype");
  EXPECT_EQ(kind_of([&] { rotary({.x = x.permute({0, 1, 3, 2}), .out = out.permute({0, 1, 3, 2})}, context); }), "unsupported");
  EXPECT_EQ(kind_of([&] { rotary({.x = x, .out = out, .theta = 0}, context); }), "value");
  EXPECT_EQ(kind_of([&] { rotary({.x = x, .out = out, .theta = NAN}, context); }), "value");
  EXPECT_EQ(kind_of([&] { rotary({.x = x, .out = out, .first_position = -1}, context); }), "value");
  EXPECT_EQ(kind_of([&] { rotary({.x = x, .out = TensorView::of(data.data(), {1, 4, 2, 8}).permute({0, 2, 1, 3})}, context); }), "unsupported");
  const TensorView far(data.data(), Dtype::f32, {1, 2, 4, 8}, Device{Device::Type::cuda, 0});
  EXPECT_EQ(kind_of([&] { rotary({.x = far, .out = far}, context); }), "device");
}

}  // namespace
}  // namespace tilewise
