// SPDX-License-Identifier: Apache-2.0
#include "tilewise/infer/linear.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <thread>
#include <vector>

namespace tilewise::infer {
namespace {

std::vector<float> random_values(size_t count, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(count);
  for (float& value : values) value = normal(random);
  return values;
}

TEST(Linear, EqualsPlainLoopsWithEachEpilogue) {
  for (const auto& [out, in] : {std::pair<int64_t, int64_t>{384, 384}, {1, 1}, {7, 13}, {640, 384}, {33, 1024}, {256, 24}}) {
    const auto weights = random_values(static_cast<size_t>(out * in), 1);
    for (const Epilogue epilogue : {Epilogue::store, Epilogue::add, Epilogue::silu, Epilogue::multiply}) {
      const Linear linear({.weights = weights.data(), .out = out, .in = in, .epilogue = epilogue}, host_memory());
      EXPECT_EQ(linear.out(), out);
      EXPECT_EQ(linear.in(), in);
      LinearScratch scratch(host_memory());
      for (const int64_t rows : {int64_t{1}, int64_t{6}, int64_t{100}, int64_t{255}, kSliceRows}) {
        const auto x = random_values(static_cast<size_t>(rows * in), 2), other = random_values(static_cast<size_t>(rows * out), 3);
        const auto before = random_values(static_cast<size_t>(rows * out), 4);
        auto y = before;
        linear.run(x.data(), rows, y.data(), scratch, other.data());
        double worst = 0;
        for (int64_t r = 0; r < rows; r += 1 + rows / 9) {
          for (int64_t o = 0; o < out; o += 1 + out / 23) {
            double sum = 0, size = 0;
            for (int64_t i = 0; i < in; ++i) {
              const double term = double{x[static_cast<size_t>(r * in + i)]} * double{weights[static_cast<size_t>(o * in + i)]};
              sum += term;
              size += std::fabs(term);
            }
            const auto at = static_cast<size_t>(r * out + o);
            if (epilogue == Epilogue::add) sum += double{before[at]};
            if (epilogue == Epilogue::silu) sum = sum / (1 + std::exp(-sum));
            if (epilogue == Epilogue::multiply) sum *= double{other[at]}, size *= std::fabs(double{other[at]});
            worst = std::max(worst, std::fabs(sum - double{y[at]}) / (1 + size));
          }
        }
        EXPECT_LT(worst, 2e-6) << out << " x " << in << ", rows " << rows << ", epilogue " << static_cast<int>(epilogue);
      }
    }
  }
}

TEST(Linear, ThreadsRunOneLayerAtOnce) {
  const auto weights = random_values(384 * 384, 5), x = random_values(256 * 384, 6);
  const Linear linear({.weights = weights.data(), .out = 384, .in = 384}, host_memory());
  std::vector<std::vector<float>> results(4, std::vector<float>(256 * 384));
  std::vector<std::thread> threads;
  for (auto& result : results) {
    threads.emplace_back([&] {
      LinearScratch scratch(host_memory());
      for (const int64_t rows : {int64_t{37}, kSliceRows}) linear.run(x.data(), rows, result.data(), scratch);
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const auto& result : results) EXPECT_EQ(result, results[0]);
  EXPECT_FALSE(linear_library_version().empty());
}

}  // namespace
}  // namespace tilewise::infer
