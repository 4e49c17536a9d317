// SPDX-License-Identifier: Apache-2.0
#include "tilewise/prepare/quantise.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <string>

#include "tests/attend/test_tensor.h"
#include "tests/base/error_kind.h"

namespace tilewise {
namespace {

using attend::testing::HostTensor;
using attend::testing::random_normal;
using attend::testing::Rng;

struct Codes {
  HostTensor data, scale, zero;
  Quantised view;
};

Codes make_codes(const Shape& shape, bool is_int4, bool has_zero, Quantised::Group group) {
  Codes codes;
  const int64_t tokens = group.tokens == 0 ? std::max<int64_t>(1, shape[2]) : group.tokens,
                channels = group.channels == 0 ? shape[3] : group.channels;
  codes.data = HostTensor(is_int4 ? Dtype::u8 : Dtype::i8, {shape[0], shape[1], shape[2], is_int4 ? shape[3] / 2 : shape[3]});
  const Shape scales{shape[0], shape[1], (shape[2] + tokens - 1) / tokens, (shape[3] + channels - 1) / channels};
  codes.scale = HostTensor(Dtype::f32, scales);
  codes.zero = HostTensor(Dtype::f32, scales);
  codes.view = {codes.data.view, codes.scale.view, has_zero ? codes.zero.view : TensorView(), group};
  return codes;
}

TEST(Quantise, StaysWithinHalfAScaleForEveryGroupAndDtype) {
  Context context;
  Rng rng(1);
  for (const Dtype dtype : {Dtype::f32, Dtype::bf16, Dtype::f16}) {
    for (const bool is_int4 : {false, true}) {
      for (const bool has_zero : {false, true}) {
        for (const Quantised::Group group : {Quantised::Group{1, 0}, {0, 1}, {4, 8}, {16, 5}, {0, 0}}) {
          const HostTensor x = random_normal(rng, dtype, {2, 3, 21, 16}, attend::testing::Layout::padded);
          const Codes codes = make_codes(x.view.shape(), is_int4, has_zero, group);
          const HostTensor back(Dtype::f32, x.view.shape());
          quantise({.x = x.view, .out = codes.view}, context);
          dequantise(codes.view, back.view, context);
          const int64_t tokens = group.tokens == 0 ? 21 : group.tokens, channels = group.channels == 0 ? 16 : group.channels;
          for (int64_t b = 0; b < 2; ++b) {
            for (int64_t h = 0; h < 3; ++h) {
              for (int64_t s = 0; s < 21; ++s) {
                for (int64_t d = 0; d < 16; ++d) {
                  const double scale = codes.scale.get(b, h, s / tokens, d / channels);
                  ASSERT_LE(std::abs(back.get(b, h, s, d) - x.get(b, h, s, d)), scale / 2 * (1 + 1e-4) + 1e-6 * std::abs(x.get(b, h, s, d)));
                }
              }
            }
          }
          // The smallest scale that holds the group: the whole range of codes is used.
          double least = 1e9, most = -1e9;
          for (int64_t s = 0; s < std::min<int64_t>(21, tokens); ++s) {
            for (int64_t d = 0; d < channels; ++d) {
              least = std::min(least, x.get(0, 0, s, d));
              most = std::max(most, x.get(0, 0, s, d));
            }
          }
          if (least < most) {
            const double range = has_zero ? (most - least) / (is_int4 ? 15 : 255) : std::max(-least, most) / (is_int4 ? 7 : 127);
            EXPECT_NEAR(codes.scale.get(0, 0, 0, 0), range, 1e-6 * range);
          }
        }
      }
    }
  }
}

TEST(Quantise, ConstantsZerosAndNan) {
  Context context;
  for (const bool has_zero : {false, true}) {
    for (const float value : {0.0f, 3.7f, -2.25f}) {
      const HostTensor x(Dtype::f32, {1, 1, 4, 8}), back(Dtype::f32, {1, 1, 4, 8});
      attend::testing::for_each_offset(x.view, [&](int64_t i) { static_cast<float*>(x.view.raw())[i] = value; });
      const Codes codes = make_codes(x.view.shape(), true, has_zero, {1, 0});
      quantise({.x = x.view, .out = codes.view}, context);
      dequantise(codes.view, back.view, context);
      EXPECT_NEAR(back.get(0, 0, 3, 7), static_cast<double>(value), 1e-6);
    }
    const HostTensor x(Dtype::f32, {1, 1, 2, 8}), back(Dtype::f32, {1, 1, 2, 8});
    attend::testing::for_each_offset(x.view, [&](int64_t i) { static_cast<float*>(x.view.raw())[i] = static_cast<float>(i); });
    x.set(std::nan(""), 0, 0, 0, 3);
    const Codes codes = make_codes(x.view.shape(), false, has_zero, {1, 0});
    quantise({.x = x.view, .out = codes.view}, context);
    dequantise(codes.view, back.view, context);
    EXPECT_TRUE(std::isnan(back.get(0, 0, 0, 5)));
    EXPECT_NEAR(back.get(0, 0, 1, 7), 15, 0.1);
  }
}

TEST(Quantise, GivenScalesSaturateAndTheirGradientStopsThere) {
  Context context;
  const HostTensor x(Dtype::f32, {1, 2, 1, 4}), dout(Dtype::f32, {1, 2, 1, 4}), dx(Dtype::f32, {1, 2, 1, 4});
  const double values[] = {0.3, 200, -300, 12.7};
  for (int64_t h = 0; h < 2; ++h) {
    for (int64_t d = 0; d < 4; ++d) {
      x.set(values[d], 0, h, 0, d);
      dout.set(10.0 + static_cast<double>(d), 0, h, 0, d);
    }
  }
  Codes codes = make_codes({1, 2, 1, 4}, false, false, {1, 0});
  const HostTensor scale(Dtype::f32, {1, 1, 1, 1});  // one for all heads
  scale.set(0.1, 0, 0, 0, 0);
  codes.view.scale = scale.view;
  EXPECT_EQ(kind_of([&] { quantise({.x = x.view, .out = codes.view}, context); }), "shape");
  quantise({.x = x.view, .out = codes.view, .has_given_scale = true}, context);
  EXPECT_EQ(codes.data.view.at<int8_t>(0, 1, 0, 0), 3);
  EXPECT_EQ(codes.data.view.at<int8_t>(0, 1, 0, 1), 127);
  EXPECT_EQ(codes.data.view.at<int8_t>(0, 1, 0, 2), -127);
  EXPECT_EQ(codes.data.view.at<int8_t>(0, 1, 0, 3), 127);
  quantise_backward({.x = x.view, .quantised = codes.view, .dout = dout.view, .dx = dx.view}, context);
  EXPECT_EQ(dx.get(0, 1, 0, 0), 10);
  EXPECT_EQ(dx.get(0, 1, 0, 1), 0);
  EXPECT_EQ(dx.get(0, 1, 0, 2), 0);
  EXPECT_EQ(dx.get(0, 1, 0, 3), 13);
}

TEST(Quantise, RefusesWhatDoesNotFit) {
  Context context;
  const HostTensor x(Dtype::f32, {1, 1, 4, 8}), integers(Dtype::i32, {1, 1, 4, 8}), flat(Dtype::f32, {4, 8});
  const Codes codes = make_codes({1, 1, 4, 8}, false, true, {1, 0});
  EXPECT_EQ(kind_of([&] { quantise({.x = integers.view, .out = codes.view}, context); }), "dtype");
  EXPECT_EQ(kind_of([&] { quantise({.x = flat.view, .out = codes.view}, context); }), "shape");
  Quantised wrong = codes.view;
  wrong.group = {2, 0};
  EXPECT_EQ(kind_of([&] { quantise({.x = x.view, .out = wrong}, context); }), "shape");
  wrong.group = {-1, 0};
  EXPECT_EQ(kind_of([&] { quantise({.x = x.view, .out = wrong}, context); }), "value");
  wrong = codes.view;
  wrong.data = x.view;
  EXPECT_EQ(kind_of([&] { quantise({.x = x.view, .out = wrong}, context); }), "dtype");
  wrong = codes.view;
  wrong.scale = integers.view;
  EXPECT_EQ(kind_of([&] { dequantise(wrong, x.view, context); }), "dtype");
  const HostTensor longer(Dtype::f32, {1, 1, 5, 8});
  EXPECT_EQ(kind_of([&] { dequantise(codes.view, longer.view, context); }), "shape");
  EXPECT_EQ(kind_of([&] { quantise_backward({.x = x.view, .quantised = codes.view, .dout = longer.view, .dx = x.view}, context); }), "shape");
}

}  // namespace
}  // namespace tilewise
