// SPDX-License-Identifier: Apache-2.0
#include "tilewise/machine/cpu/gemm.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "tests/attend/cpu/cpu_testing.h"

namespace tilewise::machine::cpu {
namespace {

using attend::testing::ForcedTarget;

std::vector<float> random_floats(size_t count, uint64_t seed) {
  std::mt19937_64 generator(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(count);
  for (float& value : values) value = normal(generator);
  return values;
}

TEST(Gemm, MultipliesEveryShape) {
  for (const Target target : available_targets()) {
    const ForcedTarget forced(target);
    for (const int count : {1, 2, 3, 4, 5, 7, 8, 9, 12, 13, 31, 64}) {
      for (const int lanes : {1, 15, 16, 17, 48, 64}) {
        for (const int64_t channels : {1, 7, 8, 33, 64, 200}) {
          const auto q = random_floats(static_cast<size_t>(64 * (channels + 3)), 1), k = random_floats(static_cast<size_t>(count * channels), 2);
          std::vector<float> packed(static_cast<size_t>(64 * channels)), scores(static_cast<size_t>((count + kRowMultiple) * 64), 0.5f);
          pack_lanes(q.data(), channels + 3, lanes, channels, packed.data());
          std::vector<const float*> rows;
          rows.reserve(static_cast<size_t>(count));
          for (int i = 0; i < count; ++i) rows.push_back(k.data() + i * channels);
          for (const bool accumulate : {false, true}) {
            multiply(rows.data(), count, channels, packed.data(), scores.data(), accumulate, lanes);
            for (int i = 0; i < count; ++i) {
              for (int lane = 0; lane < lanes; ++lane) {
                double exact = 0;
                for (int64_t c = 0; c < channels; ++c) {
                  exact += static_cast<double>(k[static_cast<size_t>(i * channels + c)]) *
                           static_cast<double>(q[static_cast<size_t>(lane * (channels + 3) + c)]);
                }
                ASSERT_NEAR(scores[static_cast<size_t>(i * 64 + lane)], exact * (accumulate ? 2 : 1), 1e-4)
                    << name(target) << " count " << count << " lanes " << lanes << " channels " << channels;
              }
            }
          }
        }
      }
    }
  }
}

TEST(Gemm, MaxExpAndSums) {
  for (const Target target : available_targets()) {
    const ForcedTarget forced(target);
    const int count = 37;
    const std::vector<float> original = random_floats(count * 64, 3);
    std::vector<float> scores = original, most(64, -std::numeric_limits<float>::infinity()), sum(64, 0.0f), added(64, 1.0f), shift(64);
    max_lanes(scores.data(), count, most.data());
    for (size_t lane = 0; lane < 64; ++lane) shift[lane] = most[lane] * 1.5f;
    exp_lanes(scores.data(), count, 1.5f, shift.data(), sum.data());
    add_rows(scores.data(), count, added.data());
    for (size_t lane = 0; lane < 64; ++lane) {
      double exact_max = -1e30, exact_sum = 0;
      for (size_t i = 0; i < count; ++i) exact_max = std::max(exact_max, static_cast<double>(original[i * 64 + lane]));
      EXPECT_EQ(most[lane], static_cast<float>(exact_max));
      for (size_t i = 0; i < count; ++i) {
        const double p = std::exp2((static_cast<double>(original[i * 64 + lane]) - exact_max) * 1.5);
        EXPECT_NEAR(scores[i * 64 + lane], p, 2e-6);
        exact_sum += p;
      }
      EXPECT_NEAR(sum[lane], exact_sum, 1e-4);
      EXPECT_NEAR(added[lane], exact_sum + 1, 1e-4);
    }
  }
}

TEST(Gemm, WidensBf16AndRefusesOthers) {
  for (const Target target : available_targets()) {
    const ForcedTarget forced(target);
    for (const int64_t count : {0, 1, 3, 8, 17, 100}) {
      std::vector<bf16> from;
      from.reserve(static_cast<size_t>(count));
      for (int64_t i = 0; i < count; ++i) from.emplace_back(static_cast<float>(i) - 3.5f);
      std::vector<float> to(static_cast<size_t>(count) + 1, 77.0f);
      to_float(from.data(), Dtype::bf16, count, to.data());
      for (size_t i = 0; i < static_cast<size_t>(count); ++i) EXPECT_EQ(to[i], static_cast<float>(from[i]));
      EXPECT_EQ(to.back(), 77.0f);
    }
  }
  float value = 0;
  EXPECT_THROW(to_float(&value, Dtype::f16, 1, &value), Error);
}

}  // namespace
}  // namespace tilewise::machine::cpu
