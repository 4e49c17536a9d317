// SPDX-License-Identifier: Apache-2.0
#include "tilewise/select/lines.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <set>

namespace tilewise::select {
namespace {

using plan::Kind;

/// Pairs (q, k) of one row that its lists read, masked ones after the causal test. Each is counted.
std::vector<int> covered(const plan::PackedRow& row, int64_t q, int64_t seqlen_k) {
  std::vector<int> count(static_cast<size_t>(seqlen_k), 0);
  for (const Kind kind : {Kind::whole, Kind::masked, Kind::picked}) {
    for (const plan::PackedRun& run : row.list(kind)) {
      for (int64_t k = run.start; k < run.stop; ++k) {
        if (kind != Kind::masked || k <= q) ++count[static_cast<size_t>(k)];
      }
    }
  }
  return count;
}

/// The tiles of keys that a row's runs begin with, as the reference's index lists have them: every 64 keys from the start of each range.
std::vector<int> starts(const plan::PackedRow& row) {
  std::vector<std::pair<int, int>> runs;
  for (const Kind kind : {Kind::whole, Kind::masked}) {
    for (const plan::PackedRun& run : row.list(kind)) runs.emplace_back(run.start, run.stop);
  }
  std::sort(runs.begin(), runs.end());
  std::vector<int> tiles;
  for (const auto& [start, stop] : runs) {
    for (int at = start; at < stop; at += 64) tiles.push_back(at);
  }
  return tiles;
}

std::vector<int> singles(const plan::PackedRow& row) {
  std::vector<int> keys;
  for (const plan::PackedRun& run : row.list(Kind::picked)) {
    for (int k = run.start; k < run.stop; ++k) keys.push_back(k);
  }
  return keys;
}

// MInference spec 6, oracle 1.
TEST(LineRows, ConvertsTheSpecsExample) {
  const LineRows lines({{0, 5, 100, 300}, {0, 130}}, 64, 512, LineRows::Cover::exact);
  const std::vector<std::pair<std::vector<int>, std::vector<int>>> expected = {{{0}, {}},
                                                                               {{64}, {0, 5}},
                                                                               {{0, 128}, {100}},
                                                                               {{62, 192}, {0, 5}},
                                                                               {{126, 256}, {0, 5, 100}},
                                                                               {{190, 320}, {0, 5, 100, 300}},
                                                                               {{254, 384}, {0, 5, 100}},
                                                                               {{318, 448}, {0, 5, 100, 300}}};
  for (int64_t m = 0; m < 8; ++m) {
    plan::PackedRow row;
    lines.set_row(m * 64, m * 64 + 64, row);
    EXPECT_EQ(starts(row), expected[static_cast<size_t>(m)].first) << m;
    EXPECT_EQ(singles(row), expected[static_cast<size_t>(m)].second) << m;
  }
}

struct Case {
  Lines lines;
  int tile;
  int64_t seqlen_k;
};

Case random_case(unsigned seed) {
  std::mt19937 engine(seed);
  const auto draw = [&](int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(engine); };
  Case c{{}, std::vector<int>{16, 40, 64, 128}[static_cast<size_t>(draw(0, 3))], draw(1, 700)};
  std::set<int32_t> vertical, slash{0};
  for (int64_t i = draw(0, 30); i > 0; --i) vertical.insert(static_cast<int32_t>(draw(0, c.seqlen_k - 1)));
  for (int64_t i = draw(0, draw(0, 1) == 0 ? 6 : 200); i > 0; --i) slash.insert(static_cast<int32_t>(draw(0, c.seqlen_k - 1)));
  if (draw(0, 4) == 0) slash.erase(0);
  c.lines = {{vertical.begin(), vertical.end()}, {slash.begin(), slash.end()}};
  return c;
}

/// The spec's walk over sorted offsets, step by step: the ranges of the row that ends at `end`.
std::vector<std::pair<int64_t, int64_t>> walked_ranges(const Lines& lines, int64_t tile, int64_t end) {
  std::vector<std::pair<int64_t, int64_t>> ranges;
  for (auto o = lines.slash.rbegin(); o != lines.slash.rend(); ++o) {
    if (*o >= end) continue;
    const int64_t e = std::max<int64_t>(end - *o, tile);
    if (ranges.empty() || e > ranges.back().second + tile)
      ranges.emplace_back(e - tile, e);
    else if (e > ranges.back().second)
      ranges.back().second += tile;
  }
  return ranges;
}

// Oracle 2: every pair on a line is covered exactly once, nothing ahead of its query is, and what else is read lies in the walk's ranges.
TEST(LineRows, CoverEveryPairOnALineOnce) {
  for (unsigned seed = 0; seed < 400; ++seed) {
    const Case c = random_case(seed);
    const std::set<int32_t> vertical(c.lines.vertical.begin(), c.lines.vertical.end()), slash(c.lines.slash.begin(), c.lines.slash.end());
    const LineRows lines(c.lines, c.tile, c.seqlen_k, LineRows::Cover::exact);
    for (int64_t first = 0; first < c.seqlen_k; first = (first / c.tile + 1) * c.tile) {
      const int64_t end = (first / c.tile + 1) * c.tile, last = std::min(end, c.seqlen_k);
      const int64_t from = seed % 3 == 0 && first == 0 ? std::min<int64_t>(5, last - 1) : first;  // a row may begin within its tile
      plan::PackedRow row;
      lines.set_row(from, last, row);
      const auto ranges = walked_ranges(c.lines, c.tile, end);
      for (int64_t q = from; q < last; ++q) {
        const std::vector<int> count = covered(row, q, c.seqlen_k);
        for (int64_t k = 0; k < c.seqlen_k; ++k) {
          const int got = count[static_cast<size_t>(k)];
          const bool is_on_line = k <= q && (slash.count(static_cast<int32_t>(q - k)) != 0 || vertical.count(static_cast<int32_t>(k)) != 0);
          bool may_fill = vertical.count(static_cast<int32_t>(k)) != 0;
          for (const auto& [start, stop] : ranges) may_fill |= k >= start && k < stop;
          ASSERT_LE(got, 1) << "seed " << seed << " query " << q << " key " << k;
          if (is_on_line) {
            ASSERT_EQ(got, 1) << "seed " << seed << " query " << q << " key " << k;
          }
          if (got == 1) {
            ASSERT_TRUE(k <= q && may_fill) << "seed " << seed << " query " << q << " key " << k;
          }
        }
        for (const auto& [start, stop] : ranges) {  // they are read whole
          for (int64_t k = start; k < std::min({stop, q + 1, c.seqlen_k}); ++k) ASSERT_EQ(count[static_cast<size_t>(k)], 1) << seed;
        }
      }
      for (const plan::PackedRun& run : row.list(Kind::whole)) {
        EXPECT_EQ((run.stop - run.start) % c.tile, 0) << "one copy fetches a tile";
        EXPECT_LE(run.stop - 1, from);
      }
    }
  }
}

TEST(LineRows, AlignedReadsTheTilesThatHoldALineAndNoOther) {
  int64_t left_out = 0, rows_read = 0;
  for (unsigned seed = 0; seed < 400; ++seed) {
    const Case c = random_case(seed);
    const LineRows lines(c.lines, c.tile, c.seqlen_k, LineRows::Cover::aligned);
    for (int64_t first = 0; first < c.seqlen_k; first = (first / c.tile + 1) * c.tile) {
      const int64_t last = std::min((first / c.tile + 1) * c.tile, c.seqlen_k);
      const int64_t from = seed % 3 == 0 && first == 0 ? std::min<int64_t>(5, last - 1) : first;  // a row may begin within its tile
      plan::PackedRow row;
      lines.set_row(from, last, row);
      std::set<int64_t> tiles;
      for (int64_t q = from; q < last; ++q) {
        for (const int32_t o : c.lines.slash) {
          if (o <= q) tiles.insert((q - o) / c.tile);
        }
        for (const int32_t k : c.lines.vertical) {
          if (k <= q) tiles.insert(k / c.tile);
        }
      }
      left_out += (last - 1) / c.tile + 1 - static_cast<int64_t>(tiles.size());
      ++rows_read;
      for (int64_t q = from; q < last; ++q) {
        const std::vector<int> count = covered(row, q, c.seqlen_k);
        for (int64_t k = 0; k < c.seqlen_k; ++k)
          ASSERT_EQ(count[static_cast<size_t>(k)], k <= q && tiles.count(k / c.tile) != 0 ? 1 : 0)
              << "seed " << seed << " query " << q << " key " << k;
      }
      EXPECT_TRUE(row.list(Kind::picked).empty());
      for (const plan::PackedRun& run : row.list(Kind::whole)) {
        EXPECT_EQ(run.start % c.tile, 0);
        EXPECT_EQ(run.stop % c.tile, 0);
        EXPECT_LE(run.stop - 1, from);
      }
      for (const plan::PackedRun& run : row.list(Kind::masked)) EXPECT_EQ(run.start % c.tile, 0);
    }
  }
  EXPECT_GT(left_out, rows_read) << "the cases leave something out";
}

TEST(BestLines, ForcesTheFirstAndBreaksTiesDownward) {
  const std::vector<float> keys = {0, .1f, .4f, .1f, .1f, .3f}, offsets = {.2f, .1f, 0, .1f, .5f, .1f};
  const auto choose = [&](LineCounts counts) { return best_lines(keys.data(), offsets.data(), 6, counts); };
  EXPECT_EQ(choose({2, 2, 0, 0}).vertical, (std::vector<int32_t>{2, 5}));
  EXPECT_EQ(choose({3, 3, 0, 0}).vertical, (std::vector<int32_t>{1, 2, 5}));
  EXPECT_EQ(choose({3, 3, 0, 0}).slash, (std::vector<int32_t>{0, 1, 4}));
  EXPECT_EQ(choose({3, 3, 2, 1}).vertical, (std::vector<int32_t>{0, 1, 2}));
  EXPECT_EQ(choose({1, 2, 2, 3}).vertical, (std::vector<int32_t>{0})) << "more forced than kept: the smallest";
  EXPECT_EQ(choose({1, 2, 2, 3}).slash, (std::vector<int32_t>{0, 1}));
  EXPECT_EQ(choose({9, 9, 0, 0}).vertical.size(), 6u);
  EXPECT_TRUE(choose({0, 1, 0, 1}).vertical.empty());
}

TEST(BestLines, ReadsEverythingWhereASumIsNotFinite) {
  std::vector<float> keys(8, .1f), offsets(8, .1f);
  for (const float bad : {std::nanf(""), HUGE_VALF}) {
    offsets[3] = bad;
    const Lines lines = best_lines(keys.data(), offsets.data(), 8, {2, 2, 0, 1});
    EXPECT_EQ(lines.slash.size(), 8u);
    EXPECT_TRUE(lines.vertical.empty());
  }
}

}  // namespace
}  // namespace tilewise::select
