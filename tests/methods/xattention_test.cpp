// SPDX-License-Identifier: Apache-2.0
#include "tilewise/methods/xattention.h"

#include "tests/methods/definition_testing.h"
#include "tests/select/antidiagonal_reference.h"
#include "tilewise/attend/attend.h"

namespace tilewise::method {
namespace {

using testing::antidiagonal_definition;
using testing::AntidiagonalDefinition;
using testing::Choice;
using testing::TestProblem;

/// The tiles that the last row of a one-head causal problem reads.
std::set<int64_t> last_row(const Plan& plan, int tile) {
  testing::Bits bits = testing::bits_of(*plan, true);
  std::set<int64_t> tiles;
  for (int64_t k = 0; k < bits.seqlen_k; ++k) {
    if (bits.at(0, 0, bits.seqlen_q - 1, k) != 0) tiles.insert(k / tile);
  }
  return tiles;
}

// Spec 6, oracle 3, at four times its size: 16 tokens a tile stand for 4, groups of 8 for groups of 2.
TEST(XAttention, ChoosesTheSpecsTiles) {
  // A plan's smallest tile is 16 tokens, so every token of the oracle is written four times; with S = 8 each group sum then is four times the
  // oracle's and the divisor S is, too: the same X.
  testing::TestTensor q = testing::make_tensor(Dtype::f32, 1, 1, 64, 1), k = testing::make_tensor(Dtype::f32, 1, 1, 64, 1);
  for (int64_t i = 0; i < 4; ++i) {
    for (int64_t t = 12; t < 16; ++t) q.set(0, 0, t * 4 + i, 0, 4);
    k.set(0, 0, 5 * 4 + i, 0, 3);
    k.set(0, 0, 9 * 4 + i, 0, 1);
  }
  Problem problem;
  problem.q = q.view;
  problem.k = k.view;
  Context context;
  const auto tiles = [&](float threshold) {
    XAttentionOptions options;
    options.tile = 16;
    options.stride = 8;
    options.threshold = threshold;
    return last_row(xattention(problem, options, context).plan, 16);
  };
  EXPECT_EQ(tiles(0), (std::set<int64_t>{0, 3}));
  for (const float threshold : {.5f, .7f, .9f, .95f}) EXPECT_EQ(tiles(threshold), (std::set<int64_t>{0, 1, 3})) << threshold;
  EXPECT_EQ(tiles(.99f), (std::set<int64_t>{0, 1, 2, 3}));
}

// Oracle 5: threshold 1 keeps every causal tile, and the output is the dense one; chunk_size changes nothing.
TEST(XAttention, AtThresholdOneIsDense) {
  const testing::OnReference on_reference;
  const TestProblem test({1, 2, 1, 150, 150, 16}, Dtype::f32, Mask::causal(), 3);
  Context context;
  const Plan all = plan_with("xattention", test.problem, {{"tile", int64_t{32}}, {"stride", int64_t{8}}, {"threshold", 1.0}}, context).plan;
  const Plan dense = plan_with("dense", test.problem, {{"tile", int64_t{32}}}, context).plan;
  EXPECT_TRUE(testing::bits_of(*all, true) == testing::bits_of(*dense, true));
  std::vector<float> a(2 * 150 * 16), b(a.size());
  const testing::TestTensor v = testing::random_tensor(Dtype::f32, 1, 1, 150, 16, 8);
  attend_forward({.q = test.q.view, .k = test.k.view, .v = v.view, .out = TensorView::of(a.data(), {1, 2, 150, 16}), .plan = all}, context);
  attend_forward({.q = test.q.view, .k = test.k.view, .v = v.view, .out = TensorView::of(b.data(), {1, 2, 150, 16}), .plan = dense}, context);
  for (size_t i = 0; i < a.size(); ++i) ASSERT_NEAR(a[i], b[i], 1e-6);
}

TEST(XAttention, IgnoresChunkSizeAndPadding) {
  const TestProblem test({1, 2, 1, 150, 150, 16}, Dtype::f32, Mask::causal(), 3);
  Context context;
  const auto bits = [&](int64_t chunk) {
    return testing::bits_of(
        *plan_with("xattention", test.problem, {{"tile", int64_t{32}}, {"stride", int64_t{8}}, {"chunk_size", chunk}}, context).plan, true);
  };
  EXPECT_TRUE(bits(0) == bits(2048));
  // Keys of zeros behind the last query are seen by nobody: the rows before them choose as before.
  testing::TestTensor q = testing::make_tensor(Dtype::f32, 1, 2, 192, 16), k = testing::make_tensor(Dtype::f32, 1, 1, 192, 16);
  for (int64_t s = 0; s < 150; ++s) {
    for (int64_t d = 0; d < 16; ++d) {
      for (int64_t h = 0; h < 2; ++h) q.set(0, h, s, d, static_cast<float>(test.q.get(0, h, s, d)));
      k.set(0, 0, s, d, static_cast<float>(test.k.get(0, 0, s, d)));
    }
  }
  Problem padded;
  padded.q = q.view;
  padded.k = k.view;
  testing::Bits wide = testing::bits_of(*plan_with("xattention", padded, {{"tile", int64_t{32}}, {"stride", int64_t{8}}}, context).plan, true),
                narrow = bits(0);
  for (int64_t h = 0; h < 2; ++h) {
    for (int64_t i = 0; i < 150; ++i) {
      for (int64_t j = 0; j < 150; ++j) ASSERT_EQ(wide.at(0, h, i, j), narrow.at(0, h, i, j)) << h << " " << i << " " << j;
    }
  }
}

TEST(XAttention, EqualsItsDefinition) {
  unsigned seed = 100;
  for (const bool is_causal : {true, false}) {
    for (const testing::Sizes& sizes : testing::problem_sizes()) {
      for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) {
        for (const float threshold : {0.0f, .6f, .9f}) {
          SCOPED_TRACE(::testing::Message() << sizes << " " << dtype << " threshold " << threshold << (is_causal ? " causal" : " full"));
          const TestProblem test(sizes, dtype, is_causal ? Mask::causal() : Mask::full(), ++seed);
          XAttentionOptions options;
          options.tile = 32;
          options.stride = 8;
          options.threshold = threshold;
          Context context;
          const Plan plan = xattention(test.problem, options, context).plan;
          AntidiagonalDefinition def{32, 8};
          def.scale = 1 / std::sqrt(static_cast<double>(sizes.dim));
          def.is_causal = is_causal;
          testing::expect_tiles(plan, test, 32, [&](int64_t b, int h, size_t row, int64_t q_first, int64_t q_last) {
            const auto scores = antidiagonal_definition(test.q, test.k, b, h, test.head_kv(h), def)[row];
            const std::set<int64_t> forced = is_causal ? testing::forced_tiles(test, 32, q_first, q_last) : std::set<int64_t>{};
            const double tau = static_cast<double>(threshold);
            return Choice{testing::prefix(scores, forced, tau), tau > 0 ? testing::distance_to_cut(scores, forced, tau) : HUGE_VAL};
          });
        }
      }
    }
  }
}

TEST(XAttention, KeepsTopKAndTopRatio) {
  const TestProblem test({1, 2, 1, 200, 200, 16}, Dtype::f32, Mask::causal(), 7);
  AntidiagonalDefinition def{16, 8};
  def.scale = .25;
  for (const bool is_count : {true, false}) {
    XAttentionOptions options;
    options.tile = 16;
    options.stride = 8;
    (is_count ? options.top_k = 4 : options.top_k = 0);
    options.density = is_count ? 0 : .3f;
    Context context;
    testing::expect_tiles(xattention(test.problem, options, context).plan, test, 16,
                          [&](int64_t b, int h, size_t row, int64_t q_first, int64_t q_last) {
                            std::vector<double> scores = antidiagonal_definition(test.q, test.k, b, h, 0, def)[row];
                            Choice choice{testing::forced_tiles(test, 16, q_first, q_last)};
                            const auto most = is_count ? size_t{4} : static_cast<size_t>(std::llround(.3f * static_cast<double>(row + 1)));
                            while (choice.tiles.size() < std::min(most, row + 1)) {
                              int64_t best = -1;
                              for (int64_t j = 0; j <= static_cast<int64_t>(row); ++j) {
                                if (choice.tiles.count(j) == 0 && (best < 0 || scores[static_cast<size_t>(j)] > scores[static_cast<size_t>(best)]))
                                  best = j;
                              }
                              choice.tiles.insert(best);
                            }
                            return choice;
                          });
  }
}

TEST(XAttention, KeepsSinkAndRecentWithoutAMaskOnlyWhenAsked) {
  const TestProblem test({1, 2, 1, 192, 192, 16}, Dtype::f32, Mask::full(), 9);
  const auto keeps = [&](const std::string& options, int64_t key_tile_of_row_3) {
    Context context;
    testing::Bits bits = testing::bits_of(
        *plan_with("xattention", test.problem, parse_options("xattention", "tile=32,stride=8,threshold=0.01," + options), context).plan, true);
    return bits.at(0, 0, 96, key_tile_of_row_3 * 32) != 0;
  };
  EXPECT_FALSE(keeps("kdb=1", 0));
  EXPECT_FALSE(keeps("kdb=1", 3));
  EXPECT_TRUE(keeps("keep_sink=true", 0));
  EXPECT_TRUE(keeps("keep_recent=true", 3));
  EXPECT_TRUE(keeps("compat=true", 0));
}

// Spec 7: with an even stride a slash at an even offset is never sampled, one at an odd offset is.
TEST(XAttention, HasTheKnownBlindSpot) {
  // Token t of q matches token t - offset of k alone: one-hot channels.
  for (const auto& [offset, is_found] : std::vector<std::pair<int64_t, bool>>{{64, false}, {65, true}}) {
    testing::TestTensor q = testing::make_tensor(Dtype::f32, 1, 1, 160, 160), k = testing::make_tensor(Dtype::f32, 1, 1, 160, 160);
    for (int64_t t = 0; t < 160; ++t) k.set(0, 0, t, t, 40);
    for (int64_t t = offset; t < 160; ++t) q.set(0, 0, t, t - offset, 40);
    Problem problem;
    problem.q = q.view;
    problem.k = k.view;
    Context context;
    const std::set<int64_t> tiles =
        last_row(plan_with("xattention", problem, parse_options("xattention", "tile=16,stride=8,threshold=0.5"), context).plan, 16);
    // The last query, 159, matches key 95 or 94: tile 5.
    EXPECT_EQ(tiles == (std::set<int64_t>{0, 4, 5, 9}) || tiles == (std::set<int64_t>{0, 5, 9}), is_found) << "offset " << offset;
  }
}

TEST(XAttention, RefusesMasksItCannotEstimate) {
  TestProblem test({1, 1, 1, 64, 64, 16}, Dtype::f32, Mask::causal(), 9);
  test.problem.mask.bands = {Mask::Band{9, 0, 4}};
  Context context;
  try {
    plan_with("xattention", test.problem, {}, context);
    FAIL() << "a window passed";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), Error::Kind::unsupported);
  }
}

}  // namespace
}  // namespace tilewise::method
