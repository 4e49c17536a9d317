// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "tests/machine/cpu/simd_ops.h"
#include "tilewise/base/dtype.h"
#include "tilewise/machine/cpu/target.h"

namespace tilewise::machine::cpu {
namespace {

using simd_test::Ops;

constexpr float kInf = std::numeric_limits<float>::infinity();
const float kNan = std::numeric_limits<float>::quiet_NaN();

const Ops& ops_of(Target target) {
#if defined(__x86_64__)
  switch (target) {
    case Target::avx2: return simd_test::avx2_ops;
    case Target::avx512: return simd_test::avx512_ops;
    case Target::avx512bf16: return simd_test::avx512bf16_ops;
    case Target::portable: break;
  }
#endif
  return simd_test::portable_ops;
}

class Simd : public ::testing::TestWithParam<Target> {
 protected:
  const Ops& ops = ops_of(GetParam());
  const size_t width = static_cast<size_t>(ops.width);
  // Applies a function to any number of values.
  template <class F>
  std::vector<float> each(const std::vector<float>& in, const F& f) const {
    std::vector<float> padded = in, out;
    padded.resize((in.size() + width - 1) / width * width);
    out.resize(padded.size());
    for (size_t i = 0; i < padded.size(); i += width) f(padded.data() + i, out.data() + i);
    out.resize(in.size());
    return out;
  }
};
INSTANTIATE_TEST_SUITE_P(EveryTarget, Simd, ::testing::ValuesIn(available_targets().begin(), available_targets().end()),
                         [](const auto& parameter) { return std::string(name(parameter.param)); });

TEST_P(Simd, Arithmetic) {
  std::vector<float> a(width), b(width), c(width), out(width);
  for (size_t i = 0; i < width; ++i) {
    a[i] = static_cast<float>(i) * 1.5f - 3;
    b[i] = 2.25f - static_cast<float>(i * i);
    c[i] = static_cast<float>(i) + 0.125f;
  }
  const auto expect = [&](int op, const auto& exact) {
    ops.binary(op, a.data(), b.data(), out.data());
    for (size_t i = 0; i < width; ++i)
      EXPECT_EQ(std::bit_cast<uint32_t>(out[i]), std::bit_cast<uint32_t>(exact(a[i], b[i]))) << "op " << op << " lane " << i;
  };
  expect(0, [](float x, float y) { return x + y; });
  expect(1, [](float x, float y) { return x - y; });
  expect(2, [](float x, float y) { return x * y; });
  expect(3, [](float x, float y) { return x / y; });
  expect(4, [](float x, float y) { return x > y ? x : y; });
  expect(5, [](float x, float y) { return x < y ? x : y; });
  expect(6, [](float x, float y) { return std::bit_cast<float>(std::bit_cast<uint32_t>(x) & std::bit_cast<uint32_t>(y)); });
  expect(7, [](float x, float y) { return std::bit_cast<float>(std::bit_cast<uint32_t>(x) | std::bit_cast<uint32_t>(y)); });
  ops.multiply_add(a.data(), b.data(), c.data(), out.data());
  for (size_t i = 0; i < width; ++i) EXPECT_NEAR(out[i], a[i] * b[i] + c[i], 1e-4 * std::fabs(out[i]));
}

TEST_P(Simd, MaximumTakesTheSecondWhereNan) {
  std::vector<float> a(width, kNan), b(width, 1.0f), out(width);
  ops.binary(4, a.data(), b.data(), out.data());
  EXPECT_EQ(out[0], 1.0f);
  ops.binary(4, b.data(), a.data(), out.data());
  EXPECT_TRUE(std::isnan(out[0]));
}

TEST_P(Simd, ComparisonsAndMasks) {
  const std::vector<float> values{-kInf, -1, -0.0f, 0, 1, kInf, kNan};
  std::vector<int32_t> out(width);
  for (const float x : values) {
    for (const float y : values) {
      const std::vector<float> a(width, x), b(width, y);
      ops.compare(0, a.data(), b.data(), out.data());
      EXPECT_EQ(out[0], x < y);
      ops.compare(1, a.data(), b.data(), out.data());
      EXPECT_EQ(out[width - 1], x == y);
      ops.compare(2, a.data(), b.data(), out.data());
      EXPECT_EQ(out[0], std::isnan(x));
    }
  }
  for (const int32_t x : {INT32_MIN, -1, 0, 7, INT32_MAX}) {
    for (const int32_t y : {INT32_MIN, -1, 0, 7, INT32_MAX}) {
      const std::vector<int32_t> a(width, x), b(width, y);
      ops.less_equal_i(a.data(), b.data(), out.data());
      for (size_t i = 0; i < width; ++i) EXPECT_EQ(out[i], x <= y) << x << " " << y;
    }
  }
  for (const uint64_t bits : {uint64_t{0}, uint64_t{1}, uint64_t{0x8001}, uint64_t{0xa5a5}, ~uint64_t{0}, uint64_t{0xffffffff00000000}}) {
    ops.mask_of_bits(bits, out.data());
    bool any = false;
    for (size_t i = 0; i < width; ++i) {
      EXPECT_EQ(out[i], static_cast<int32_t>((bits >> i) & 1)) << std::hex << bits;
      any |= ((bits >> i) & 1) != 0;
    }
    EXPECT_EQ(ops.any(bits), any);
  }
}

TEST_P(Simd, ReduceAndTranspose) {
  std::vector<float> in(width * width), out(width * width);
  for (size_t i = 0; i < in.size(); ++i) in[i] = static_cast<float>((i * 37) % 101);
  ops.transpose(in.data(), out.data());
  for (size_t i = 0; i < width; ++i) {
    for (size_t j = 0; j < width; ++j) EXPECT_EQ(out[i * width + j], in[j * width + i]);
  }
  float sum = 0, most = -kInf;
  for (size_t i = 0; i < width; ++i) {
    sum += in[i];
    most = std::max(most, in[i]);
  }
  EXPECT_EQ(ops.reduce(0, in.data()), sum);
  EXPECT_EQ(ops.reduce(1, in.data()), most);
}

TEST_P(Simd, FourLanesTogether) {
  std::vector<float> in(4 * width), out(width);
  for (size_t i = 0; i < in.size(); ++i) in[i] = static_cast<float>((i * 37) % 101) - 50;
  ops.fours(0, in.data(), out.data());
  for (size_t i = 0; i < width; ++i) EXPECT_EQ(out[i], in[i % 4]);
  ops.fours(1, in.data(), out.data());
  for (size_t i = 0; i < width; ++i) {
    float sum = 0;
    for (size_t lane = 0; lane < 4; ++lane) sum += in[i % 4 * width + i / 4 * 4 + lane];
    EXPECT_EQ(out[i], sum) << i;  // whole numbers: exact in any order
  }
  ops.fours(2, in.data(), out.data());
  for (size_t i = 0; i < width; ++i) {
    const float* const four = in.data() + i / 4 * 4;
    EXPECT_EQ(out[i], *std::max_element(four, four + 4)) << i;
  }
}

TEST_P(Simd, PairsOfBf16) {
  std::vector<uint16_t> in(2 * width);
  std::vector<float> even(width), odd(width), in_order(2 * width);
  for (size_t i = 0; i < in.size(); ++i) in[i] = static_cast<uint16_t>(0x3f80 + 0x123 * i);
  ops.bf16_pairs(in.data(), even.data(), odd.data(), in_order.data());
  for (size_t i = 0; i < in.size(); ++i) {
    const float number = std::bit_cast<float>(static_cast<uint32_t>(in[i]) << 16);
    EXPECT_EQ(in_order[i], number);
    EXPECT_EQ((i % 2 == 0 ? even : odd)[i / 2], number);
  }
}

TEST_P(Simd, PartsOfAVector) {
  for (int n = 0; n <= ops.width; ++n) {
    std::vector<float> in(static_cast<size_t>(n)), out(width, 9.0f);  // memory behind `in` must not be read: the address sanitizer looks
    for (int i = 0; i < n; ++i) in[static_cast<size_t>(i)] = static_cast<float>(i) + 1;
    ops.load_store_n(in.data(), out.data(), n);
    for (size_t i = 0; i < width; ++i) EXPECT_EQ(out[i], i < static_cast<size_t>(n) ? in[i] : 9.0f);
  }
}

TEST_P(Simd, Exp2WithinItsBound) {
  std::vector<float> x;
  for (int i = 0; i <= 126 * 256; ++i) x.push_back(-static_cast<float>(i) / 256.0f + static_cast<float>(i % 7) * 1e-4f);
  for (int i = 0; i < 1000; ++i) x.push_back(static_cast<float>(i) * 0.126f);
  for (const int op : {0, 1}) {
    const std::vector<float> y = each(x, [&](const float* in, float* out) { ops.unary(op, in, out); });
    double worst = 0;
    for (size_t i = 0; i < x.size(); ++i) {
      if (x[i] < -125.5f) continue;
      worst = std::max(worst, std::fabs(static_cast<double>(y[i]) / std::exp2(static_cast<double>(x[i])) - 1));
    }
    EXPECT_LE(worst, 3e-7) << "op " << op;
  }
}

TEST_P(Simd, Exp2Edges) {
  const std::vector<float> x{0, -kInf, -1000, -127, kNan};
  const std::vector<float> y = each(x, [&](const float* in, float* out) { ops.unary(0, in, out); });
  EXPECT_NEAR(y[0], 1, 2e-7);
  EXPECT_EQ(y[1], 0);
  EXPECT_EQ(y[2], 0);
  EXPECT_LE(y[3], 0x1p-126f);
  EXPECT_TRUE(std::isnan(y[4]));
  const std::vector<float> z = each(x, [&](const float* in, float* out) { ops.unary(1, in, out); });
  EXPECT_NEAR(z[0], 1, 2e-7);
  for (const size_t i : {1u, 2u, 3u}) EXPECT_NEAR(z[i], 0x1p-126f, 1e-6 * 0x1p-126f);
  EXPECT_TRUE(std::isnan(z[4]));
}

TEST_P(Simd, TanhWithinItsBound) {
  std::vector<float> x{0.0f, -0.0f, kInf, -kInf, 1e-20f};
  for (int i = -4000; i <= 4000; ++i) x.push_back(static_cast<float>(i) * 0.005f);
  const std::vector<float> y = each(x, [&](const float* in, float* out) { ops.unary(2, in, out); });
  for (size_t i = 0; i < x.size(); ++i) {
    const double exact = std::tanh(static_cast<double>(x[i]));
    EXPECT_NEAR(y[i], exact, 6e-7 * std::fabs(exact)) << x[i];
  }
  const std::vector<float> nan = each({kNan}, [&](const float* in, float* out) { ops.unary(2, in, out); });
  EXPECT_TRUE(std::isnan(nan[0]));
}

TEST_P(Simd, Bf16RoundsAsTheScalarDoes) {
  std::vector<float> in{0, -0.0f, 1, 1.00390625f, 1.01171875f, 3.3895314e38f, kInf, -kInf, kNan, 1e-40f, -2.718f, 65504, 0.1f, -0.3f, 7, 1e-30f};
  in.resize(16);
  for (size_t base = 0; base + width <= in.size(); base += width) {
    for (int n = 0; n <= ops.width; ++n) {
      std::vector<uint16_t> bits(width, 0x1234);
      std::vector<float> back(width);
      ops.bf16_round_trip(in.data() + base, bits.data(), back.data(), n);
      for (size_t i = 0; i < width; ++i) {
        if (i >= static_cast<size_t>(n)) {
          EXPECT_EQ(bits[i], 0x1234);
          EXPECT_EQ(back[i], 0);
        } else if (std::isnan(in[base + i])) {
          EXPECT_TRUE(std::isnan(back[i]));
        } else {
          EXPECT_EQ(bits[i], bf16(in[base + i]).bits) << in[base + i];
          EXPECT_EQ(back[i], static_cast<float>(bf16(in[base + i])));
        }
      }
    }
  }
}

// Every f16, what lies around the middle of two of them, and far outside.
TEST_P(Simd, F16RoundTrip) {
  std::vector<float> in{kNan, kInf, -kInf, 65519.0f, 65520.0f, -65536.0f, 1e30f, 0x1p-25f, 0x1.000002p-25f, 0x1.8p-24f, -0x1p-26f, 1e-40f};
  for (uint32_t bits = 0; bits < 0x7c00; ++bits) {
    f16 here, next;
    here.bits = static_cast<uint16_t>(bits);
    next.bits = static_cast<uint16_t>(bits + 1);
    const auto low = static_cast<float>(here);
    const float middle = bits + 1 < 0x7c00 ? 0.5f * (low + static_cast<float>(next)) : 65520.0f;
    for (const float x : {low, middle, std::nextafter(middle, 0.0f), std::nextafter(middle, kInf)}) {
      in.push_back(x);
      in.push_back(-x);
    }
  }
  while (in.size() % width != 0) in.push_back(1);
  std::vector<uint16_t> bits(width);
  std::vector<float> back(width);
  for (size_t base = 0; base < in.size(); base += width) {
    const int n = base / width % 3 == 0 ? 1 + static_cast<int>(base / width % width) : ops.width;
    bits.assign(width, 0x1234);
    ops.f16_round_trip(in.data() + base, bits.data(), back.data(), n);
    for (size_t i = 0; i < width; ++i) {
      if (i >= static_cast<size_t>(n)) {
        ASSERT_EQ(bits[i], 0x1234);
        ASSERT_EQ(back[i], 0);
      } else if (std::isnan(in[base + i])) {
        ASSERT_TRUE(std::isnan(back[i]));
      } else {
        ASSERT_EQ(bits[i], f16(in[base + i]).bits) << in[base + i];
        ASSERT_EQ(std::bit_cast<uint32_t>(back[i]), std::bit_cast<uint32_t>(static_cast<float>(f16(in[base + i])))) << in[base + i];
      }
    }
  }
}

TEST_P(Simd, Exp2OfProduct) {
  std::vector<float> s(width), p(width);
  double worst = 0;
  for (int round = 0; round < 4000; ++round) {
    const float m = static_cast<float>(round % 7 * 1000 - 3000), scale = 0.25f;
    for (size_t i = 0; i < width; ++i) {
      const double x = -111.9 + 126.8 * std::fmod(static_cast<double>(static_cast<size_t>(round) * width + i) * 0.61803398875, 1.0);
      s[i] = static_cast<float>((x + static_cast<double>(m)) / static_cast<double>(scale));
    }
    ASSERT_FALSE(ops.exp2_of_product(s.data(), scale, m, p.data()));
    for (size_t i = 0; i < width; ++i) {
      const double exact = std::exp2(static_cast<double>(s[i]) * static_cast<double>(scale) - static_cast<double>(m));
      worst = std::max(worst, std::fabs(static_cast<double>(p[i]) / exact - 1));
    }
  }
  EXPECT_LE(worst, 3e-7);
  for (const float stray : {-113.0f, 17.0f, 1000.0f, -1e6f, kInf, -kInf}) {
    s.assign(width, 0.0f);
    s[width - 1] = stray;
    EXPECT_TRUE(ops.exp2_of_product(s.data(), 1, 0, p.data())) << stray;
  }
  s[width - 1] = kNan;
  ops.exp2_of_product(s.data(), 1, 0, p.data());
  EXPECT_TRUE(std::isnan(p[width - 1]));
}

TEST_P(Simd, Log) {
  std::vector<float> x(width), y(width);
  for (const float n : {0.0f, 1.0f, -3.0f, 100.0f, -30000.0f, 30000.0f}) {
    for (int round = 0; round < 3000; ++round) {
      for (size_t i = 0; i < width; ++i) {
        const double turn = std::fmod(static_cast<double>(static_cast<size_t>(round) * width + i) * 0.61803398875, 1.0);
        x[i] = static_cast<float>(round % 2 == 0 ? std::exp2(turn * 30 - 15) : 1 + (turn - 0.5) * 0.1);
      }
      ops.log(x.data(), n, y.data());
      for (size_t i = 0; i < width; ++i) {
        const double exact = std::log(static_cast<double>(x[i])) + static_cast<double>(n) * std::log(2.0);
        ASSERT_NEAR(y[i], exact, 1.5e-7 * (n == 0 ? std::fabs(exact) : 1 + std::fabs(exact))) << x[i] << " n " << n;
      }
    }
  }
  x.assign(width, kNan);
  x[0] = kInf;
  ops.log(x.data(), 5, y.data());
  EXPECT_EQ(y[0], kInf);
  EXPECT_TRUE(std::isnan(y[width - 1]));
}

TEST_P(Simd, PairsAndDot) {
  ASSERT_EQ(ops.dot_bf16 != nullptr, GetParam() == Target::avx512bf16);
  if (ops.dot_bf16 == nullptr) return;  // the other targets convert to f32
  std::vector<float> even(width), odd(width), pairs(width), acc(width, 0.5f), out(width);
  for (size_t i = 0; i < width; ++i) {
    even[i] = static_cast<float>(i) * 0.37f + 0.1f;
    odd[i] = 1.0f / (static_cast<float>(i) + 1);
  }
  ops.narrow_pairs(even.data(), odd.data(), pairs.data());
  for (size_t i = 0; i < width; ++i) {
    const auto unit = std::bit_cast<uint32_t>(pairs[i]);
    EXPECT_EQ(unit & 0xffff, bf16(even[i]).bits);
    EXPECT_EQ(unit >> 16, bf16(odd[i]).bits);
  }
  ops.dot_bf16(acc.data(), pairs.data(), pairs.data(), out.data());
  for (size_t i = 0; i < width; ++i) {
    const double e = static_cast<double>(static_cast<float>(bf16(even[i]))), o = static_cast<double>(static_cast<float>(bf16(odd[i])));
    EXPECT_NEAR(out[i], 0.5 + e * e + o * o, 1e-6 * (1 + e * e + o * o));
  }
  for (int n = 8; n <= 256; n += 8) {
    std::vector<uint16_t> a(static_cast<size_t>(n)), b(a.size()), both(2 * a.size() + 1, 0xbeef);
    for (size_t i = 0; i < a.size(); ++i) {
      a[i] = static_cast<uint16_t>(i);
      b[i] = static_cast<uint16_t>(1000 + i);
    }
    ops.interleave(a.data(), b.data(), n, both.data());
    for (size_t i = 0; i < a.size(); ++i) {
      ASSERT_EQ(both[2 * i], a[i]) << n;
      ASSERT_EQ(both[2 * i + 1], b[i]) << n;
    }
    EXPECT_EQ(both.back(), 0xbeef);
  }
}

}  // namespace
}  // namespace tilewise::machine::cpu
