// SPDX-License-Identifier: Apache-2.0
#include "tilewise/plan/visible.h"

#include <gtest/gtest.h>

#include "tests/select/testing.h"

namespace tilewise::plan {
namespace {

/// Checks one row against the mask itself, pair by pair.
void expect_exact(const Mask& mask, int head, int64_t b, const RowGrid& grid, int64_t row, int align) {
  const Visible visible = visible_keys(mask, head, b, grid, row, align);
  std::vector<int> state(static_cast<size_t>(grid.seqlen_k), 0);
  int64_t last_end = -1;
  for (const Interval& part : visible.whole) {
    ASSERT_LT(part.first, part.last);
    ASSERT_GE(part.first, last_end);
    last_end = part.last;
    ASSERT_EQ(part.first % align, 0);
    ASSERT_TRUE(part.last % align == 0 || part.last == grid.seqlen_k);
    for (int64_t k = part.first; k < part.last; ++k) state[static_cast<size_t>(k)] += 1;
  }
  last_end = -1;
  for (const Interval& part : visible.masked) {
    ASSERT_LT(part.first, part.last);
    ASSERT_GT(part.first, last_end);
    last_end = part.last;
    for (int64_t k = part.first; k < part.last; ++k) state[static_cast<size_t>(k)] += 2;
  }
  for (int64_t k = 0; k < grid.seqlen_k; ++k) {
    int64_t seen_by = 0;
    for (int64_t q = grid.first(row); q < grid.last(row); ++q) seen_by += testing::mask_allows(mask, head, b, q, grid.offset(), k) ? 1 : 0;
    const int found = state[static_cast<size_t>(k)];
    ASSERT_LE(found, 2) << "key " << k << " is in both";
    ASSERT_EQ(found != 0, seen_by > 0) << "key " << k;
    ASSERT_TRUE(found != 1 || seen_by == grid.last(row) - grid.first(row)) << "key " << k << " is whole, seen by " << seen_by;
  }
}

TEST(Visible, EqualsBandsPairByPair) {
  const std::vector<Mask::Band> bands = {{Mask::kAll, 0, 0},
                                         {Mask::kAll, Mask::kAll, 0},
                                         {20, 0, 7},
                                         {20, 0, 0},
                                         {5, 9, 3},
                                         {0, 0, 0},
                                         {-3, 10, 0},
                                         {10, -3, 5},
                                         {-3, 1, 12},
                                         {3, -9, 40},
                                         {Mask::kAll, -1, 0},
                                         {100, 5, 1000},
                                         {Mask::kAll, 1 << 30, 4}};
  for (size_t i = 0; i < bands.size(); ++i) {
    Mask mask;
    mask.bands = {bands[i]};
    for (const auto& [sq, sk] : std::vector<std::pair<int64_t, int64_t>>{{70, 70}, {33, 90}, {90, 33}, {1, 50}, {50, 1}, {64, 64}}) {
      for (const bool is_cut : {false, true}) {
        const RowGrid grid = is_cut ? RowGrid::on_key_tiles(sq, sk, 16) : RowGrid::plain(sq, sk, 16);
        for (int64_t row = 0; row < grid.rows(); ++row) {
          for (const int align : {1, 16}) {
            SCOPED_TRACE(::testing::Message() << "band " << i << " Sq " << sq << " Sk " << sk << " row " << row << " align " << align);
            expect_exact(mask, 0, 0, grid, row, align);
          }
        }
      }
    }
  }
}

TEST(Visible, EqualsSpansPairByPair) {
  std::mt19937 engine(7);
  const int64_t sq = 50, sk = 61;
  std::vector<int32_t> spans(static_cast<size_t>(2 * 2 * sq * 4));
  for (int32_t& bound : spans) bound = static_cast<int32_t>(engine() % 75) - 7;  // some empty, reversed, overlapping or outside
  for (int64_t q = 0; q < 16; ++q) {  // and a row whose queries agree
    for (int i = 0; i < 4; ++i) spans[static_cast<size_t>(q * 4 + i)] = std::vector<int32_t>{3, 20, 32, 64}[static_cast<size_t>(i)];
  }
  Mask mask;
  mask.spans = TensorView::of(spans.data(), {2, 2, sq, 4});
  mask.head_class = {0, 1, 1};
  const RowGrid grid = RowGrid::plain(sq, sk, 16);
  for (int64_t b = 0; b < 2; ++b) {
    for (int head = 0; head < 3; ++head) {
      for (int64_t row = 0; row < grid.rows(); ++row) {
        for (const int align : {1, 16}) expect_exact(mask, head, b, grid, row, align);
      }
    }
  }
  EXPECT_TRUE(differs_by_batch(mask));
  EXPECT_TRUE(differs_by_head(mask));
}

TEST(Visible, CutsRowsOnKeyTiles) {
  EXPECT_TRUE(RowGrid::on_key_tiles(100, 164, 64).edge.empty());
  EXPECT_EQ(RowGrid::on_key_tiles(100, 150, 64).edge, (std::vector<int32_t>{0, 14, 78, 100}));
  EXPECT_EQ(RowGrid::on_key_tiles(100, 50, 64).edge, (std::vector<int32_t>{0, 50, 100}));
  EXPECT_EQ(RowGrid::on_key_tiles(5, 50, 64).edge, (std::vector<int32_t>{0, 5}));
  EXPECT_EQ(RowGrid::on_key_tiles(0, 50, 64).rows(), 0);
  EXPECT_EQ(RowGrid::on_key_tiles(100, 150, 64).rows(), 3);
  EXPECT_EQ(RowGrid::on_key_tiles(100, 150, 64).last(2), 100);
}

TEST(Visible, CountsDenseReads) {
  // 3 rows of 64 under a causal mask read 64, 128 and 192 keys.
  EXPECT_EQ(dense_reads(Mask::causal(), RowGrid::plain(192, 192, 64), 2, 3), 6 * 64 * (64 + 128 + 192));
  EXPECT_EQ(dense_reads(Mask::full(), RowGrid::plain(100, 30, 64), 2, 3), 6 * 3000);
  EXPECT_EQ(dense_reads(Mask::causal(), RowGrid::plain(0, 192, 64), 2, 3), 0);
  EXPECT_EQ(dense_reads(Mask::causal(), RowGrid::plain(192, 192, 64), 0, 3), 0);
  Mask mixed;
  mixed.bands = {Mask::causal().bands[0], Mask::full().bands[0]};
  mixed.head_class = {0, 1, 1};
  EXPECT_EQ(dense_reads(mixed, RowGrid::plain(128, 128, 64), 1, 3), 64 * (64 + 128) + 2 * 128 * 128);
  EXPECT_EQ(dense_reads_of_heads(mixed, RowGrid::plain(128, 128, 64), 2, 3),
            (std::vector<int64_t>{2 * 64 * (64 + 128), 2 * 128 * 128, 2 * 128 * 128}));
  EXPECT_EQ(dense_reads_of_heads(Mask::causal(), RowGrid::plain(128, 128, 64), 2, 3), (std::vector<int64_t>{2 * 64 * (64 + 128)}));
}

TEST(Visible, KnowsCausalAndFull) {
  EXPECT_TRUE(is_causal(Mask::causal(), 10));
  EXPECT_FALSE(is_causal(Mask::full(), 10));
  EXPECT_TRUE(is_full(Mask::full(), 10, 10));
  EXPECT_FALSE(is_full(Mask::causal(), 10, 10));
  EXPECT_TRUE(is_full(Mask::causal(), 1, 10)) << "one query at the end sees all";
  Mask wide;
  wide.bands = {Mask::Band{9, 0, 0}};
  EXPECT_TRUE(is_causal(wide, 10));
  EXPECT_FALSE(is_causal(wide, 11));
  wide.bands.push_back(Mask::full().bands[0]);
  EXPECT_FALSE(is_causal(wide, 10)) << "every head must be";
}

}  // namespace
}  // namespace tilewise::plan
