// SPDX-License-Identifier: Apache-2.0
// The CPU's stand-in for a warp's product, against plain loops over matrices: the layout that kernels are written for.
#include "tilewise/machine/cuda/mma.h"

#include <gtest/gtest.h>

#include <random>

#include "tests/machine/cuda/host_block.h"
#include "tilewise/base/dtype.h"

namespace tilewise::machine::cuda {
namespace {

template <Half kHalf, class T>
void expect_product() {
  std::mt19937 engine(7);
  std::uniform_int_distribution<int> value(-8, 8);  // products and sums are exact
  float a[16][16], b[8][16], d[16][8];
  for (auto& row : a)
    for (float& x : row) x = static_cast<float>(value(engine));
  for (auto& row : b)
    for (float& x : row) x = static_cast<float>(value(engine));
  for (auto& row : d)
    for (float& x : row) x = static_cast<float>(value(engine));
  const auto pair = [](float low, float high) { return static_cast<uint32_t>(T(low).bits) | static_cast<uint32_t>(T(high).bits) << 16; };
  tilewise::testing::launch_on_host(1, 64, 16, 3, [&](auto& block) {
    struct Sums {
      float at[4];
    };
    typename std::remove_reference_t<decltype(block)>::template Registers<Sums> sums(block);
    block.warps([&](int warp) {
      if (warp != 1) return;
      block.lanes(warp, [&](int thread) {
        const int g = thread % 32 / 4, c = thread % 4;
        for (int i = 0; i < 4; ++i) sums[thread].at[i] = d[g + i / 2 * 8][2 * c + i % 2];
      });
      mma_16x8x16<kHalf>(
          warp, [&](int thread) -> float(&)[4] { return sums[thread].at; },
          [&](int thread) {
            const int g = thread % 32 / 4, c = thread % 4;
            MmaA x;
            for (int i = 0; i < 4; ++i) x.word[i] = pair(a[g + i % 2 * 8][2 * c + i / 2 * 8], a[g + i % 2 * 8][2 * c + i / 2 * 8 + 1]);
            return x;
          },
          [&](int thread) {
            const int g = thread % 32 / 4, c = thread % 4;
            return MmaB{{pair(b[g][2 * c], b[g][2 * c + 1]), pair(b[g][2 * c + 8], b[g][2 * c + 9])}};
          });
      block.lanes(warp, [&](int thread) {
        const int g = thread % 32 / 4, c = thread % 4;
        for (int i = 0; i < 4; ++i) {
          const int row = g + i / 2 * 8, column = 2 * c + i % 2;
          float want = d[row][column];
          for (int depth = 0; depth < 16; ++depth) want += a[row][depth] * b[column][depth];
          EXPECT_EQ(sums[thread].at[i], want) << row << " " << column;
        }
      });
      block.lanes(warp, [&](int thread) { sums[thread].at[0] = static_cast<float>(thread); });
      block.fold_lanes(warp, 4, [&](int thread) -> float& { return sums[thread].at[0]; }, [](float x, float y) { return x + y; });
      block.lanes(warp, [&](int thread) { EXPECT_EQ(sums[thread].at[0], static_cast<float>(4 * (thread - thread % 4) + 6)); });
    });
  });
}

TEST(Mma, MultipliesHalves) {
  expect_product<Half::bf16, bf16>();
  expect_product<Half::f16, f16>();
}

}  // namespace
}  // namespace tilewise::machine::cuda
