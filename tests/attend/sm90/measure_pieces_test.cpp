// SPDX-License-Identifier: Apache-2.0
#include "tilewise/attend/sm90/measure_pieces.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <limits>
#include <random>
#include <vector>

namespace tilewise::attend::sm90 {
namespace {

TEST(AttendSm90MeasurePieces, CutRunsAtCellsAndStages) {
  std::mt19937_64 rng(1);
  for (int i = 0; i < 20000; ++i) {
    const int tile_k = i % 3 == 0 ? 128 : 1 + static_cast<int>(rng() % 700), start = static_cast<int>(rng() % 3000),
              stop = start + 1 + static_cast<int>(rng() % 900);
    const Divisor by(tile_k);
    int next = start, pieces = 0;
    while (next < stop) {
      const MeasurePiece piece = first_piece(next, stop, by, 128);
      ASSERT_EQ(piece.key, next);
      ASSERT_GT(piece.fill, 0);
      ASSERT_LE(piece.fill, 128);
      ASSERT_EQ(piece.key / tile_k, piece.cell);
      ASSERT_EQ((piece.key + piece.fill - 1) / tile_k, piece.cell);
      next += piece.fill;
      ++pieces;
    }
    ASSERT_EQ(next, stop);
    if (tile_k == 128 && start % 128 == 0) {
      ASSERT_EQ(pieces, (stop - start + 127) / 128) << "an aligned run takes whole stages";
    }
  }
  const MeasurePiece last = first_piece(INT32_MAX - 1, INT32_MAX, Divisor(1 << 30), 128);
  EXPECT_EQ(last.fill, 1);
}

TEST(AttendSm90MeasurePieces, KnowWhatABandShowsOfThem) {
  std::mt19937_64 rng(2);
  const auto side = [&] { return rng() % 4 == 0 ? int64_t{1} << 40 : static_cast<int64_t>(rng() % 40); };
  int found[3] = {};
  for (int i = 0; i < 20000; ++i) {
    const cuda::Band band = {side(), side() - (rng() % 8 == 0 ? 45 : 0), static_cast<int64_t>(rng() % 3 == 0 ? rng() % 30 : 0)};
    const MeasurePiece piece = {static_cast<int>(rng() % 100), 1 + static_cast<int>(rng() % 20), 0};
    const int64_t first = static_cast<int64_t>(rng() % 120) - 10, last = first + static_cast<int64_t>(rng() % 20);
    int seen = 0, pairs = 0;
    for (int64_t t = first; t <= last; ++t) {
      for (int key = piece.key; key < piece.key + piece.fill; ++key, ++pairs)
        seen += key <= t + band.right && (key >= t - band.left || key < band.sink);
    }
    const PieceSeen answer = seen_of(piece, band, first, last);
    ++found[static_cast<int>(answer)];
    if (answer == PieceSeen::none) {
      ASSERT_EQ(seen, 0);
    } else if (answer == PieceSeen::all) {
      ASSERT_EQ(seen, pairs);
    }
    // "some" asks every pair, so it is always right; but a piece before the diagonal must not pay for it.
    if (band.left >= int64_t{1} << 40 && piece.key + piece.fill - 1 <= first + band.right) {
      ASSERT_EQ(answer, PieceSeen::all);
    }
  }
  for (const int count : found) EXPECT_GT(count, 500);
}

TEST(AttendSm90MeasurePieces, BitsKeepTheOrderOfFloats) {
  const float infinity = std::numeric_limits<float>::infinity();
  const std::vector<float> ascending = {-infinity, -3e38f, -1, -1e-40f, -0.0f, 0, 1e-40f, 1, 3e38f, infinity, std::bit_cast<float>(0x7FFFFFFF)};
  for (size_t i = 0; i + 1 < ascending.size(); ++i) {
    const auto low = std::bit_cast<int32_t>(ascending[i]), high = std::bit_cast<int32_t>(ascending[i + 1]);
    EXPECT_LT(ordered_bits(low), ordered_bits(high)) << ascending[i];
    EXPECT_EQ(ordered_bits(ordered_bits(low)), low);
  }
}

}  // namespace
}  // namespace tilewise::attend::sm90
