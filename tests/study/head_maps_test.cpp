// SPDX-License-Identifier: Apache-2.0
#include "tilewise/study/head_maps.h"

#include <gtest/gtest.h>

#include <cmath>

#include "tilewise/attend/attend.h"
#include "tilewise/base/hash.h"
#include "tilewise/machine/cpu/context.h"
#include "tilewise/methods/registry.h"

namespace tilewise::study {
namespace {

Tensor drawn(const Shape& shape, uint64_t seed) {
  Tensor tensor(host_memory(), Dtype::f32, shape);
  for (int64_t i = 0; i < shape.numel(); ++i)
    tensor.view.data<float>()[i] = static_cast<float>(splitmix64(seed + static_cast<uint64_t>(i)) % 1000) / 300 - 1.6f;
  return tensor;
}

TEST(HeadMaps, ShapeFitsAReport) {
  InputFigures input;
  input.length = input.length_k = 16384;
  const auto demo = choose_map_shape(input, 8 * 48);
  ASSERT_TRUE(demo.has_value());
  EXPECT_EQ(demo->side_q, 64);
  EXPECT_EQ(demo->cell_q, 256);
  EXPECT_TRUE(demo->is_triangle);
  EXPECT_EQ(demo->cells(), 64 * 65 / 2);
  for (const int64_t maps : {int64_t{1}, int64_t{400}, int64_t{1000}, int64_t{8000}}) {
    for (const int64_t length : {int64_t{1}, int64_t{15}, int64_t{300}, int64_t{5000}, int64_t{1} << 20}) {
      for (const char* mask : {"causal", "full"}) {
        input.length = length;
        input.length_k = length + 7;
        input.mask = mask;
        const auto shape = choose_map_shape(input, maps);
        ASSERT_TRUE(shape.has_value());
        EXPECT_LE(static_cast<double>(maps * shape->cells()) * 4, 3.5e6);
        EXPECT_GE(shape->side_q * shape->cell_q, length);
        EXPECT_LT((shape->side_q - 1) * shape->cell_q, length);
        EXPECT_GE(shape->side_k * shape->cell_k, length + 7);
        EXPECT_LE(shape->side_k, 64);
      }
    }
  }
  EXPECT_FALSE(choose_map_shape(input, 0).has_value());
  EXPECT_FALSE(choose_map_shape(input, 1000000).has_value());
}

/// Every cell and the worst tiles against plain loops in double, causal and with more keys than queries.
TEST(HeadMaps, EqualPlainLoops) {
  constexpr int64_t kHeadsQ = 2, kHeadDim = 16, kInit = 5, kLocal = 23;
  for (const int64_t more : {int64_t{0}, int64_t{40}}) {
    for (const int tile : {16, 20, 64}) {
      SCOPED_TRACE(testing::Message() << more << " more keys, tile " << tile);
      const int64_t seqlen_q = 150, seqlen_k = 150 + more;
      Context context = cpu_context(2);
      const Tensor q = drawn({1, kHeadsQ, seqlen_q, kHeadDim}, 1), k = drawn({1, 1, seqlen_k, kHeadDim}, 7000);
      Problem problem;
      problem.q = q.view;
      problem.k = problem.v = k.view;
      problem.layer = 1;
      const Plan dense = plan_with("dense", problem, {}, context).plan;
      const Plan sparse = plan_with("a_shape", problem, {{"init", kInit}, {"local", kLocal}, {"tile", int64_t{tile}}}, context).plan;
      const Tensor lse(context.memory, Dtype::f32, {1, kHeadsQ, seqlen_q});
      attend_forward({.q = q.view, .k = k.view, .lse = lse.view, .plan = dense}, context);
      InputFigures input;
      input.length = seqlen_q;
      input.length_k = seqlen_k;
      input.num_layers = 2;
      input.heads_q = kHeadsQ;
      const auto shape = choose_map_shape(input, 1000000 / 1000);
      ASSERT_TRUE(shape.has_value());
      EXPECT_EQ(shape->cell_q, 16);
      EXPECT_EQ(shape->is_triangle, more == 0);
      HeadMaps maps(*shape, input);
      maps.add(problem, dense, sparse, lse.view, context);
      MethodFigures row;
      row.heads = {{0, 0}, {1, 0}, {1, 1}};
      maps.write(row);
      EXPECT_FALSE(row.heads[0].map.has_value()) << "layer 0 was not measured";
      double worst = 0;
      for (size_t h = 0; h < 2; ++h) {
        const HeadMap& map = row.heads[h + 1].map;
        ASSERT_EQ(static_cast<int64_t>(map.mass.size()), shape->cells());
        size_t cell = 0;
        for (int64_t i = 0; i < shape->side_q; ++i) {
          for (int64_t j = 0; j < (shape->is_triangle ? i + 1 : shape->side_k); ++j, ++cell) {
            double mass = 0, missed = 0, allowed = 0, read = 0;
            const int64_t last_q = std::min(seqlen_q, (i + 1) * 16), last_k = std::min(seqlen_k, (j + 1) * 16);
            for (int64_t a = i * 16; a < last_q; ++a) {
              for (int64_t b = j * 16; b < last_k && b <= a + more; ++b) {
                double s = 0;
                for (int64_t d = 0; d < kHeadDim; ++d)
                  s += static_cast<double>(q.view.at<const float>(0, static_cast<int64_t>(h), a, d)) *
                       static_cast<double>(k.view.at<const float>(0, 0, b, d));
                const double p = std::exp(s / 4 - static_cast<double>(lse.view.at<const float>(0, static_cast<int64_t>(h), a)));
                const bool is_read = a + more - b < kLocal || b < kInit;
                mass += p;
                missed += is_read ? 0 : p;
                allowed += 1;
                read += is_read ? 1 : 0;
              }
            }
            const double queries = static_cast<double>(last_q - i * 16);
            worst = std::max(worst, missed / queries);
            EXPECT_NEAR(map.mass[cell], 255 * std::sqrt(std::sqrt(mass / queries)), .6);
            EXPECT_NEAR(map.missed[cell], 255 * std::sqrt(std::sqrt(missed / queries)), .6);
            EXPECT_NEAR(map.kept[cell], allowed > 0 ? 255 * read / allowed : 0, .6);
          }
        }
      }
      ASSERT_EQ(row.worst_tiles.size(), 20u);
      EXPECT_NEAR(row.worst_tiles.front().missed, worst, 1e-6);
      for (size_t i = 1; i < 20; ++i) EXPECT_GE(row.worst_tiles[i - 1].missed, row.worst_tiles[i].missed);
      EXPECT_EQ(row.worst_tiles.front().layer, 1);
    }
  }
}

}  // namespace
}  // namespace tilewise::study
