// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "tilewise/select/antidiagonal.h"

#include <gtest/gtest.h>

#include "tests/select/antidiagonal_reference.h"

namespace tilewise::select {
namespace {

using testing::antidiagonal_definition;
using testing::AntidiagonalDefinition;
using testing::TestTensor;

Scores score(const TestTensor& q, const TestTensor& k, const AntidiagonalParams& params, bool is_causal = true, float scale = 1, float softcap = 0) {
  Context context;
  const Inputs inputs{q.view, k.view, is_causal ? Mask::causal() : Mask::full(), scale, softcap};
  return antidiagonal_scores(inputs, params, context);
}

void expect_row(const Scores& scores, int64_t row, const std::vector<double>& expected, double bound) {
  for (size_t j = 0; j < expected.size(); ++j) EXPECT_NEAR(scores.row(0, 0, row)[j], expected[j], bound) << "row " << row << " tile " << j;
}

// Spec 6, oracle 1: in an S x S block the sampled products are one per row and one per column; a slash of odd offset is met twice, an even one never.
TEST(Antidiagonal, SamplesEachRowAndColumnOnce) {
  for (const int stride : {4, 8, 16}) {
    const int64_t n = 4 * stride;
    for (int64_t offset = 0; offset < 2 * stride; ++offset) {
      int64_t met = 0;
      std::vector<int> rows(static_cast<size_t>(stride), 0), columns(static_cast<size_t>(stride), 0);
      // A query and a key that are one-hot in channel 0 at single tokens: X is nonzero exactly where the pair is sampled.
      for (int64_t i = 2 * stride; i < 3 * stride; ++i) {
        TestTensor q = testing::make_tensor(Dtype::f32, 1, 1, n, 1), k = testing::make_tensor(Dtype::f32, 1, 1, n, 1);
        q.set(0, 0, i, 0, 1);
        k.set(0, 0, i - offset, 0, 1);
        const AntidiagonalDefinition def{stride, stride};
        const int64_t group_q = i / stride, group_k = (i - offset) / stride;
        const Scores scores = score(q, k, {.tile = stride, .stride = stride});
        // One group a tile: a sampled pair raises its tile above the uniform 1 / (group_q + 1).
        const bool is_met = scores.row(0, 0, group_q)[group_k] > 1.0f / static_cast<float>(group_q + 1) + 1e-4f;
        met += is_met ? 1 : 0;
        if (is_met) {
          ++rows[static_cast<size_t>(i % stride)];
          ++columns[static_cast<size_t>((i - offset) % stride)];
        }
      }
      EXPECT_EQ(met, offset % 2 == 1 ? 2 : 0) << "stride " << stride << " offset " << offset;
      EXPECT_LE(*std::max_element(rows.begin(), rows.end()), 1);
      EXPECT_LE(*std::max_element(columns.begin(), columns.end()), 1);
    }
    int64_t all = 0;
    for (int64_t i = 0; i < stride; ++i) {
      for (int64_t j = 0; j < stride; ++j) {
        TestTensor q = testing::make_tensor(Dtype::f32, 1, 1, 2 * stride, 1), k = testing::make_tensor(Dtype::f32, 1, 1, 2 * stride, 1);
        q.set(0, 0, stride + i, 0, 1);
        k.set(0, 0, j, 0, 1);
        const bool is_met = score(q, k, {.tile = stride, .stride = stride}).row(0, 0, 1)[0] > 0.5f + 1e-4f;
        EXPECT_EQ(is_met, i + j == stride - 1);
        all += is_met ? 1 : 0;
      }
    }
    EXPECT_EQ(all, stride);
  }
}

// Oracle 2.
TEST(Antidiagonal, GivesTheSpecsSmallExample) {
  const TestTensor q = testing::tensor_of({1, 0, 0, 1, 1, 1, 2, 0}), k = testing::tensor_of({1, 0, 0, 2, 0, 1, 1, 0});
  const Scores scores = score(q, k, {.tile = 4, .stride = 2});
  expect_row(scores, 0, {2, 0}, 1e-4);
  expect_row(scores, 1, {1.4188, .5812}, 1e-4);
}

// Oracle 3, the scores; the choice is in tests/methods/xattention_test.cpp.
TEST(Antidiagonal, GivesTheSpecsFourTiles) {
  std::vector<float> q(16, 0.0f), k(16, 0.0f);
  std::fill(q.begin() + 12, q.end(), 4.0f);
  k[5] = 3;
  k[9] = 1;
  const Scores scores = score(testing::tensor_of(q), testing::tensor_of(k), {.tile = 4, .stride = 2});
  expect_row(scores, 0, {2, 0, 0, 0}, 1e-4);
  expect_row(scores, 1, {1.1667, .8333, 0, 0}, 1e-4);
  expect_row(scores, 2, {.7333, .7333, .5333, 0}, 1e-4);
  expect_row(scores, 3, {.0096, 1.9429, .0403, .0072}, 1e-4);
}

// Oracle 4: stride 1 is the exact tile mass, and so is any stride when queries or keys are constant inside groups.
TEST(Antidiagonal, IsExactWhereItShouldBe) {
  const TestTensor q = testing::random_tensor(Dtype::f32, 1, 1, 96, 8, 11), k = testing::random_tensor(Dtype::f32, 1, 1, 96, 8, 12);
  const float scale = 1 / std::sqrt(8.0f);
  const Scores scores = score(q, k, {.tile = 16, .stride = 1}, true, scale);
  for (int64_t row = 0; row < 6; ++row) {
    std::vector<double> mass(6, 0.0);
    for (int64_t i = row * 16; i < row * 16 + 16; ++i) {
      std::vector<double> p;
      double total = 0;
      for (int64_t j = 0; j <= i; ++j) {
        double dot = 0;
        for (int64_t d = 0; d < 8; ++d) dot += q.get(0, 0, i, d) * k.get(0, 0, j, d);
        p.push_back(std::exp(dot * static_cast<double>(scale)));
        total += p.back();
      }
      for (size_t j = 0; j < p.size(); ++j) mass[j / 16] += p[j] / total;
    }
    expect_row(scores, row, mass, 2e-5);
  }
}

TEST(Antidiagonal, OfConstantGroupsIsTheGroupAverage) {
  for (const bool is_query_constant : {true, false}) {
    TestTensor q = testing::random_tensor(Dtype::f32, 1, 1, 64, 8, 21), k = testing::random_tensor(Dtype::f32, 1, 1, 64, 8, 22);
    TestTensor& constant = is_query_constant ? q : k;
    for (int64_t s = 0; s < 64; ++s) {
      for (int64_t d = 0; d < 8; ++d) constant.set(0, 0, s, d, static_cast<float>(constant.get(0, 0, s / 4 * 4, d)));
    }
    const Scores scores = score(q, k, {.tile = 16, .stride = 4}, true, 0.3f);
    std::vector<double> mass(4, 0.0);  // row 3: the softmax over groups of the mean of all 16 products
    for (int64_t g = 12; g < 16; ++g) {
      std::vector<double> p;
      double total = 0;
      for (int64_t c = 0; c <= g; ++c) {
        double sum = 0;
        for (int64_t i = 0; i < 4; ++i) {
          for (int64_t j = 0; j < 4; ++j) {
            for (int64_t d = 0; d < 8; ++d) sum += q.get(0, 0, g * 4 + i, d) * k.get(0, 0, c * 4 + j, d);
          }
        }
        p.push_back(std::exp(sum / 16 * 0.3));
        total += p.back();
      }
      for (size_t c = 0; c < p.size(); ++c) mass[c / 4] += p[c] / total;
    }
    expect_row(scores, 3, mass, 2e-5);
  }
}

// Oracle 6: a full tile's row sums to tile / S; a ragged last row to its real groups.
TEST(Antidiagonal, RowsSumToTheirGroups) {
  for (const int64_t n : {64, 70, 81, 1, 17}) {
    const TestTensor q = testing::random_tensor(Dtype::f32, 1, 1, n, 8, 31), k = testing::random_tensor(Dtype::f32, 1, 1, n, 8, 32);
    const Scores scores = score(q, k, {.tile = 16, .stride = 4});
    for (int64_t row = 0; row < scores.grid.rows(); ++row) {
      double sum = 0;
      for (int64_t j = 0; j < scores.key_tiles(); ++j) sum += static_cast<double>(scores.row(0, 0, row)[j]);
      const int64_t groups = (scores.grid.last(row) - scores.grid.first(row) + 3) / 4;
      EXPECT_NEAR(sum, static_cast<double>(groups), 1e-5) << "N " << n << " row " << row;
    }
  }
}

struct Case {
  testing::Sizes sizes;
  AntidiagonalParams params;
  bool is_causal = true;
  float softcap = 0;
  Dtype dtype = Dtype::f32;
};

TEST(Antidiagonal, EqualsTheDefinition) {
  const std::vector<Case> cases = {
      {{1, 2, 1, 200, 200, 16}, {.tile = 32, .stride = 8}},
      {{2, 4, 2, 131, 131, 8}, {.tile = 32, .stride = 8}},
      {{1, 2, 2, 65, 200, 8}, {.tile = 32, .stride = 8}},  // offset 135: rows cut, the first group cut
      {{1, 2, 2, 200, 65, 8}, {.tile = 32, .stride = 8}},  // tokens before the first key
      {{1, 1, 1, 77, 150, 8}, {.tile = 48, .stride = 16}},  // lanes a row do not divide 64
      {{1, 1, 1, 300, 300, 8}, {.tile = 256, .stride = 2}},  // more lanes a row than a block holds
      {{1, 1, 1, 700, 700, 8}, {.tile = 16, .stride = 1}},
      {{1, 1, 1, 1, 1, 8}, {.tile = 64, .stride = 16}},
      {{1, 1, 1, 1, 100, 8}, {.tile = 64, .stride = 16}},
      {{1, 2, 1, 130, 130, 8}, {.tile = 32, .stride = 8, .selector = Selector::slash}},
      {{1, 2, 1, 130, 130, 8}, {.tile = 32, .stride = 8, .selector = Selector::double_inverse}},
      {{1, 2, 1, 131, 131, 8}, {.tile = 32, .stride = 8, .selector = Selector::triple_inverse}},
      {{1, 2, 1, 130, 130, 8}, {.tile = 32, .stride = 8, .norm = 2.5f}},
      {{1, 2, 1, 130, 130, 8}, {.tile = 32, .stride = 8, .kdb = 2}},
      {{1, 1, 1, 100, 141, 8}, {.tile = 32, .stride = 8, .kdb = 4}},
      {{1, 2, 1, 130, 130, 8}, {.tile = 32, .stride = 8}, true, 2.0f},
      {{1, 2, 1, 130, 130, 8}, {.tile = 32, .stride = 8}, true, 0, Dtype::bf16},
      {{1, 2, 1, 130, 130, 8}, {.tile = 32, .stride = 8}, true, 0, Dtype::f16},
      {{2, 2, 1, 100, 77, 8}, {.tile = 32, .stride = 8}, false},
      {{1, 2, 1, 33, 300, 8}, {.tile = 64, .stride = 16}, false},
      {{1, 2, 1, 130, 90, 8}, {.tile = 32, .stride = 8, .kdb = 2}, false},
      {{1, 2, 1, 96, 96, 8}, {.tile = 32, .stride = 8, .selector = Selector::double_inverse}, false, 0, Dtype::bf16},
  };
  for (size_t i = 0; i < cases.size(); ++i) {
    const Case& c = cases[i];
    SCOPED_TRACE(::testing::Message() << "case " << i << ": " << c.sizes);
    const TestTensor q =
        testing::random_tensor(c.dtype, c.sizes.batch, c.sizes.heads_q, c.sizes.seqlen_q, c.sizes.dim, 41 + static_cast<unsigned>(i));
    const TestTensor k =
        testing::random_tensor(c.dtype, c.sizes.batch, c.sizes.heads_kv, c.sizes.seqlen_k, c.sizes.dim, 91 + static_cast<unsigned>(i));
    const Scores scores = score(q, k, c.params, c.is_causal, 0.7f, c.softcap);
    AntidiagonalDefinition def{c.params.tile, c.params.stride, c.params.kdb};
    def.terms = c.params.selector == Selector::double_inverse ? 2 : c.params.selector == Selector::triple_inverse ? 3 : 1;
    for (int t = 0; t < c.params.stride && c.params.selector == Selector::slash; ++t) def.query_order.push_back(t);
    def.norm = static_cast<double>(c.params.norm);
    def.scale = static_cast<double>(0.7f);
    def.softcap = static_cast<double>(c.softcap);
    def.is_causal = c.is_causal;
    for (int64_t b = 0; b < c.sizes.batch; ++b) {
      for (int64_t h = 0; h < c.sizes.heads_q; ++h) {
        const auto expected = antidiagonal_definition(q, k, b, h, h * c.sizes.heads_kv / c.sizes.heads_q, def);
        ASSERT_EQ(static_cast<int64_t>(expected.size()), scores.grid.rows());
        for (size_t row = 0; row < expected.size(); ++row) {
          for (size_t j = 0; j < expected[row].size(); ++j) {
            // f32 logits of D * S terms: an error of 1e-5 in the exponent at most, times a mass of at most tile / S.
            ASSERT_NEAR(scores.row(b, h, static_cast<int64_t>(row))[j], expected[row][j], 1e-5 * (1 + expected[row][j]))
                << "head " << h << " row " << row << " tile " << j;
          }
        }
      }
    }
  }
}

TEST(Antidiagonal, RandomSelectorTakesOneProductARowAndColumnAndFollowsItsSeed) {
  constexpr int kStride = 8;
  std::vector<int> first, other;
  for (const uint64_t seed : {uint64_t{1}, uint64_t{1}, uint64_t{2}}) {
    std::vector<int> order;
    for (int j = 0; j < kStride; ++j) {
      for (int i = 0; i < kStride; ++i) {
        TestTensor q = testing::make_tensor(Dtype::f32, 1, 1, 2 * kStride, 1), k = testing::make_tensor(Dtype::f32, 1, 1, 2 * kStride, 1);
        q.set(0, 0, kStride + i, 0, 1);
        k.set(0, 0, j, 0, 1);
        const Scores scores = score(q, k, {.tile = kStride, .stride = kStride, .selector = Selector::random, .seed = seed});
        if (scores.row(0, 0, 1)[0] > 0.5f + 1e-4f) order.push_back(i);
      }
    }
    std::vector<int> sorted = order;
    std::sort(sorted.begin(), sorted.end());
    for (int i = 0; i < kStride; ++i) ASSERT_EQ(sorted[static_cast<size_t>(i)], i);
    if (seed == 2)
      other = order;
    else if (first.empty())
      first = order;
    else
      EXPECT_EQ(order, first);
  }
  EXPECT_NE(other, first);
}

// Groups of slots, the mask asked on tokens: a group of keys is seen where its smallest token is not past the largest of the queries.
TEST(Antidiagonal, UnderAnOrderEqualsTheDefinition) {
  constexpr int64_t kQueries = 90, kKeys = 110, kPadding = 13, kStride = 8, kTile = 16;
  std::mt19937 engine(12);
  const auto draw = [&](int64_t tokens) {
    std::vector<int32_t> order(static_cast<size_t>(tokens + kPadding), -1);
    for (int64_t i = 0; i < tokens; ++i) order[static_cast<size_t>(i)] = static_cast<int32_t>(i);
    std::shuffle(order.begin(), order.end(), engine);
    return order;
  };
  // Keys in an order of each head, stretches of them in token order, so that the mask hides whole groups.
  std::vector<int32_t> of_q = draw(kQueries), of_k = draw(kKeys), second = draw(kKeys);
  std::sort(of_k.begin(), of_k.begin() + 60);
  of_k.insert(of_k.end(), second.begin(), second.end());
  const TestTensor q = testing::random_tensor(Dtype::f32, 1, 2, kQueries, 16, 5, 1.6f),
                   k = testing::random_tensor(Dtype::f32, 1, 1, kKeys, 16, 6, 1.6f);
  for (const bool is_causal : {true, false}) {
    Inputs inputs{.q = q.view, .k = k.view, .mask = is_causal ? Mask::causal() : Mask::full(), .softmax_scale = .4f};
    inputs.order_q.token = TensorView::of(of_q.data(), {1, 1, kQueries + kPadding});
    inputs.order_k.token = TensorView::of(of_k.data(), {1, 2, kKeys + kPadding});
    Context context;
    const Scores scores = antidiagonal_scores(inputs, {.tile = kTile, .stride = kStride}, context);
    ASSERT_EQ(scores.grid.rows(), (kQueries + kPadding + kTile - 1) / kTile);
    const int64_t groups_q = (kQueries + kPadding + kStride - 1) / kStride, groups_k = (kKeys + kPadding + kStride - 1) / kStride;
    for (int64_t h = 0; h < 2; ++h) {
      const auto token_q = [&](int64_t slot) { return slot < kQueries + kPadding ? int64_t{of_q[static_cast<size_t>(slot)]} : -1; };
      const auto token_k = [&](int64_t slot) {
        return slot < kKeys + kPadding ? int64_t{of_k[static_cast<size_t>(h * (kKeys + kPadding) + slot)]} : -1;
      };
      std::vector<double> expected(static_cast<size_t>(scores.grid.rows() * scores.key_tiles()), 0.0);
      for (int64_t i = 0; i < groups_q; ++i) {
        std::vector<double> p(static_cast<size_t>(groups_k), 0.0);
        double total = 0;
        for (int64_t c = 0; c < groups_k; ++c) {
          double dot = 0;
          bool is_seen = false;
          for (int64_t s = 0; s < kStride; ++s) {
            for (int64_t t = 0; t < kStride; ++t) {
              const int64_t a = token_q(i * kStride + s), b = token_k(c * kStride + t);
              if (a < 0 || b < 0) continue;
              is_seen |= !is_causal || b <= a + kKeys - kQueries;
              if (s + t != kStride - 1) continue;
              for (int64_t d = 0; d < 16; ++d) dot += q.get(0, h, a, d) * k.get(0, 0, b, d);
            }
          }
          if (is_seen) total += p[static_cast<size_t>(c)] = std::exp(.4 / kStride * dot);
        }
        for (int64_t c = 0; c < groups_k && total > 0; ++c)
          expected[static_cast<size_t>(i * kStride / kTile * scores.key_tiles() + c * kStride / kTile)] += p[static_cast<size_t>(c)] / total;
      }
      for (int64_t row = 0; row < scores.grid.rows(); ++row) {
        for (int64_t j = 0; j < scores.key_tiles(); ++j)
          ASSERT_NEAR(scores.row(0, h, row)[j], expected[static_cast<size_t>(row * scores.key_tiles() + j)], 1e-5) << h << " " << row << " " << j;
      }
    }
  }
}

TEST(Antidiagonal, HasTheSameBitsForAnyExecutor) {
  const TestTensor q = testing::random_tensor(Dtype::f32, 2, 2, 300, 8, 51), k = testing::random_tensor(Dtype::f32, 2, 1, 333, 8, 52);
  const Inputs inputs{q.view, k.view, Mask::causal(), 0.5f, 0};
  Context serial, shuffled;
  shuffled.executor = std::make_shared<testing::ShuffledExecutor>(5);
  const Scores a = antidiagonal_scores(inputs, {.tile = 32, .stride = 8}, serial),
               b = antidiagonal_scores(inputs, {.tile = 32, .stride = 8}, shuffled);
  const auto* x = static_cast<const float*>(a.values.view.raw());
  const auto* y = static_cast<const float*>(b.values.view.raw());
  EXPECT_TRUE(std::equal(x, x + a.values.view.numel(), y));
}

TEST(Antidiagonal, RefusesWhatItCannotScore) {
  const TestTensor q = testing::random_tensor(Dtype::f32, 1, 1, 32, 8, 1);
  const auto kind_of = [&](const AntidiagonalParams& params, const Mask& mask) {
    Context context;
    try {
      antidiagonal_scores({q.view, q.view, mask, 1, 0}, params, context);
    } catch (const Error& error) {
      return std::string(name(error.kind()));
    }
    return std::string("nothing");
  };
  Mask window;
  window.bands = {Mask::Band{7, 0, 0}};
  EXPECT_EQ(kind_of({.tile = 16, .stride = 4}, window), "unsupported");
  EXPECT_EQ(kind_of({.tile = 18, .stride = 4}, Mask::causal()), "value");
  EXPECT_EQ(kind_of({.tile = 16, .stride = 0}, Mask::causal()), "value");
  EXPECT_EQ(kind_of({.tile = 16, .stride = 8, .kdb = 3}, Mask::causal()), "value");
  EXPECT_EQ(kind_of({.tile = 16, .stride = 4, .norm = 0}, Mask::causal()), "value");
}

}  // namespace
}  // namespace tilewise::select
