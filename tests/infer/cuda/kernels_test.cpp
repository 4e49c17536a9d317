// SPDX-License-Identifier: Apache-2.0
// The kernels of a model on a GPU, run on the CPU line by line, against the functions of the model on the CPU.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

#include "tests/infer/cuda/host_queue.h"
#include "tilewise/infer/drawn_weight.h"
#include "tilewise/infer/rows.h"
#include "tilewise/prepare/rotary.h"

namespace tilewise::infer::cuda {
namespace {

std::vector<float> normal_values(int64_t count, unsigned seed, float scale = 1) {
  std::mt19937 engine(seed);
  std::normal_distribution<float> normal(0.0f, scale);
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = normal(engine);
  return values;
}

// Room for numbers of either dtype, with untouched values behind them.
struct Room {
  Room(int64_t numbers, bool is_half) : count(numbers), is_bf16(is_half), words(static_cast<size_t>(numbers) + 8, 0x7fc17fc1U) {}
  Output output() { return {words.data(), is_bf16}; }
  float at(int64_t i) const {
    return is_bf16 ? static_cast<float>(reinterpret_cast<const bf16*>(words.data())[i]) : reinterpret_cast<const float*>(words.data())[i];
  }
  bool is_intact() const {
    const size_t first = (static_cast<size_t>(count) * (is_bf16 ? 2 : 4) + 3) / 4;
    for (size_t i = first; i < words.size(); ++i)
      if (words[i] != 0x7fc17fc1U) return false;
    return true;
  }
  int64_t count;
  bool is_bf16;
  std::vector<uint32_t> words;
};

// One unit in the last place of bf16 where a sum in another order may round the other way.
float bound_of(float value, bool is_bf16) { return std::abs(value) * (is_bf16 ? 0x1p-7f : 3e-6f) + 1e-7f; }

TEST(ModelKernels, RoundAsBf16Does) {
  std::mt19937 engine(1);
  for (int i = 0; i < 200'000; ++i) {
    const float value = std::bit_cast<float>(static_cast<uint32_t>(engine()));
    ASSERT_EQ(bf16_bits(value), bf16(value).bits) << std::bit_cast<uint32_t>(value);
  }
}

TEST(ModelKernels, EmbedGathersRows) {
  testing::HostQueue queue;
  for (const int64_t width : {1, 24, 1000}) {
    const std::vector<float> embedding = normal_values(7 * width, 3);
    const std::vector<int32_t> tokens = {6, 0, 3, 3, 5};
    std::vector<float> residual(static_cast<size_t>(5 * width) + 1, -77.0f);
    queue.run(EmbedArgs{.embedding = embedding.data(), .tokens = tokens.data(), .residual = residual.data(), .rows = 5, .width = width});
    for (int64_t row = 0; row < 5; ++row) {
      for (int64_t i = 0; i < width; ++i)
        ASSERT_EQ(residual[static_cast<size_t>(row * width + i)], embedding[static_cast<size_t>(tokens[static_cast<size_t>(row)] * width + i)]);
    }
    EXPECT_EQ(residual.back(), -77.0f);
  }
}

TEST(ModelKernels, NormIsTheModelsOwn) {
  testing::HostQueue queue;
  for (const int64_t width : {1, 7, 256, 300, 1030}) {
    for (const bool is_bf16 : {false, true}) {
      const std::vector<float> x = normal_values(3 * width, 5, 2), weight = normal_values(width, 6);
      std::vector<float> want(x.size());
      rms_norm(x.data(), weight.data(), 3, width, 1e-5f, want.data());
      Room got(3 * width, is_bf16);
      queue.run(NormArgs{.x = x.data(), .weight = weight.data(), .y = got.output(), .rows = 3, .width = width, .eps = 1e-5f});
      for (int64_t i = 0; i < 3 * width; ++i) {
        const float value = want[static_cast<size_t>(i)];
        ASSERT_NEAR(got.at(i), is_bf16 ? static_cast<float>(bf16(value)) : value, bound_of(value, is_bf16)) << width << " at " << i;
      }
      EXPECT_TRUE(got.is_intact());
    }
  }
}

// q, k and v of each row against the functions of the CPU: bias, norm of heads, rotary, places in the cache.
TEST(ModelKernels, TurnSplitsNormsAndRotates) {
  testing::HostQueue queue;
  Context context;
  for (unsigned seed = 0; seed < 24; ++seed) {
    const int64_t heads_kv = 1 + seed % 2, heads_q = heads_kv * (1 + seed % 3), dims[] = {2, 8, 64, 128, 600}, dim = dims[seed % 5];
    const int64_t rows = 1 + seed % 4, capacity = rows + 5, first = 3, width = (heads_q + 2 * heads_kv) * dim;
    const bool has_bias = seed % 2 == 1, has_norm = seed % 3 == 1, is_bf16 = seed % 4 >= 2;
    const std::vector<float> qkv = normal_values(rows * width, seed, 2), bias = normal_values(width, seed + 100);
    const std::vector<float> q_norm = normal_values(dim, seed + 200), k_norm = normal_values(dim, seed + 300);
    const prepare::RotaryTable angles(prepare::rotary_frequencies(dim, 1e4), 1.1, first, rows, context);
    Room q(rows * heads_q * dim, is_bf16), k(heads_kv * capacity * dim, is_bf16), v(heads_kv * capacity * dim, is_bf16);
    const auto place = [&](Room& room) { return Output{reinterpret_cast<std::byte*>(room.words.data()) + first * dim * (is_bf16 ? 2 : 4), is_bf16}; };
    queue.run(TurnArgs{.qkv = qkv.data(),
                       .bias = has_bias ? bias.data() : nullptr,
                       .q_norm = has_norm ? q_norm.data() : nullptr,
                       .k_norm = has_norm ? k_norm.data() : nullptr,
                       .angles = angles.row(first),
                       .q = q.output(),
                       .k = place(k),
                       .v = place(v),
                       .rows = rows,
                       .heads_q = heads_q,
                       .heads_kv = heads_kv,
                       .head_dim = dim,
                       .stride_head = capacity * dim,
                       .eps = 1e-5f});
    const Room untouched(1, is_bf16);
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t head = 0; head < heads_q + 2 * heads_kv; ++head) {
        std::vector<float> want(static_cast<size_t>(dim));
        for (int64_t i = 0; i < dim; ++i) {
          want[static_cast<size_t>(i)] =
              qkv[static_cast<size_t>(row * width + head * dim + i)] + (has_bias ? bias[static_cast<size_t>(head * dim + i)] : 0);
        }
        const bool is_q = head < heads_q, is_v = head >= heads_q + heads_kv;
        if (has_norm && !is_v) rms_norm(want.data(), (is_q ? q_norm : k_norm).data(), 1, dim, 1e-5f, want.data());
        if (!is_v) prepare::rotate_half(want.data(), angles.row(first + row), dim, want.data());
        for (int64_t i = 0; i < dim; ++i) {
          const float got = is_q   ? q.at((row * heads_q + head) * dim + i)
                            : is_v ? v.at((head - heads_q - heads_kv) * capacity * dim + (first + row) * dim + i)
                                   : k.at((head - heads_q) * capacity * dim + (first + row) * dim + i);
          const float value = want[static_cast<size_t>(i)];
          ASSERT_NEAR(got, is_bf16 ? static_cast<float>(bf16(value)) : value, bound_of(value, is_bf16) + 1e-5f)
              << "seed " << seed << " head " << head << " at " << i;
        }
      }
    }
    EXPECT_TRUE(q.is_intact() && k.is_intact() && v.is_intact());
    for (int64_t i = 0; i < first * dim; ++i) ASSERT_TRUE(std::isnan(k.at(i)) && std::isnan(v.at(i))) << "before the chunk, at " << i;
  }
}

TEST(ModelKernels, SiluMultipliesWithAndWithoutBias) {
  testing::HostQueue queue;
  for (const int64_t width : {1, 40, 1500}) {
    for (const bool has_bias : {false, true}) {
      const std::vector<float> gate_up = normal_values(3 * 2 * width, 7, 4), bias = normal_values(2 * width, 8);
      Room got(3 * width, has_bias);
      queue.run(SiluArgs{.gate_up = gate_up.data(), .bias = has_bias ? bias.data() : nullptr, .y = got.output(), .rows = 3, .width = width});
      for (int64_t row = 0; row < 3; ++row) {
        for (int64_t i = 0; i < width; ++i) {
          const auto at = [&](int64_t column) {
            return static_cast<double>(gate_up[static_cast<size_t>(row * 2 * width + column)]) +
                   (has_bias ? static_cast<double>(bias[static_cast<size_t>(column)]) : 0.0);
          };
          const double want = at(i) / (1 + std::exp(-at(i))) * at(width + i);
          ASSERT_NEAR(static_cast<double>(got.at(row * width + i)), want, std::abs(want) * (has_bias ? 0x1p-8 : 2e-6) + 2e-6);
        }
      }
      EXPECT_TRUE(got.is_intact());
    }
  }
}

TEST(ModelKernels, BiasIsAddedToEveryRow) {
  testing::HostQueue queue;
  const std::vector<float> bias = normal_values(37, 1), before = normal_values(37 * 40, 2);
  std::vector<float> y = before;
  queue.run(BiasArgs{.bias = bias.data(), .y = y.data(), .rows = 40, .width = 37});
  for (size_t i = 0; i < y.size(); ++i) ASSERT_EQ(y[i], before[i] + bias[i % 37]);
}

TEST(ModelKernels, BitsAreTheModelsOwn) {
  testing::HostQueue queue;
  for (const int64_t width : {1, 2, 255, 256, 2000}) {
    const std::vector<float> logits = normal_values(4 * width, 9, 5);
    const std::vector<int32_t> targets = {0, static_cast<int32_t>(width - 1), -1, static_cast<int32_t>(width / 2)};
    std::vector<double> bits(4, -1.0);
    queue.run(BitsArgs{.logits = logits.data(), .targets = targets.data(), .bits = bits.data(), .rows = 4, .width = width});
    for (size_t row = 0; row < 4; ++row) {
      const double want = targets[row] < 0 ? -1 : prediction_bits(logits.data() + static_cast<int64_t>(row) * width, width, targets[row]);
      // Differences of up to some 30 are rounded to f32, and so are their exponentials: a share of 30 * 2^-24 of the sum at most.
      EXPECT_NEAR(bits[row], want, 4e-6) << width << " row " << row;
    }
  }
  const std::vector<float> odd = {1.0f, std::numeric_limits<float>::quiet_NaN(), 2.0f};
  const int32_t target = 0;
  double bits = 0;
  queue.run(BitsArgs{.logits = odd.data(), .targets = &target, .bits = &bits, .rows = 1, .width = 3});
  EXPECT_TRUE(std::isnan(bits)) << "a NaN goes through";
}

TEST(ModelKernels, DrawnWeightsAreTheHosts) {
  testing::HostQueue queue;
  constexpr int64_t kCount = 200'000;
  for (const bool is_bf16 : {false, true}) {
    Room got(kCount, is_bf16);
    queue.run(DrawArgs{.key = 12345, .deviation = .02f, .y = got.output(), .count = kCount});
    double sum = 0, square = 0, fourth = 0;
    for (int64_t i = 0; i < kCount; ++i) {
      const float want = drawn_weight(12345, i, .02f);
      ASSERT_EQ(got.at(i), is_bf16 ? static_cast<float>(bf16(want)) : want);
      const double value = static_cast<double>(want) / .02;
      sum += value;
      square += value * value;
      fourth += value * value * value * value;
    }
    EXPECT_TRUE(got.is_intact());
    // 200,000 draws: the mean is good to .0022 at one deviation; four uniform numbers have a fourth moment of 2.7, a normal one has 3.
    EXPECT_NEAR(sum / kCount, 0, .009);
    EXPECT_NEAR(square / kCount, 1, .013);
    EXPECT_NEAR(fourth / kCount, 2.7, .06);
  }
  EXPECT_NE(drawn_weight(1, 0, 1), drawn_weight(2, 0, 1));
}

}  // namespace
}  // namespace tilewise::infer::cuda
