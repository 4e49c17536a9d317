// SPDX-License-Identifier: Apache-2.0
// The kernel that cuts the last rows of a forward into parts, run on the CPU line by line.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <set>
#include <utility>

#include "tests/machine/cuda/host_block.h"
#include "tests/plan/random_pairs.h"
#include "tilewise/attend/sm90/split_rows_kernel.h"
#include "tilewise/plan/cuda/longest_first_kernel.h"

namespace tilewise::attend::sm90 {
namespace {

using attend::testing::Rng;
using attend::testing::uniform;
using plan::cuda::RunListView;
using tilewise::testing::launch_on_host;

/// One list of runs, one row after another.
struct HostRuns {
  std::vector<int64_t> begin;
  std::vector<int32_t> count, start, stop;

  RunListView view(int heads, bool has_stop, int grain) const {
    if (start.empty()) return {};
    return {.begin = begin.data(),
            .count = count.data(),
            .start = start.data(),
            .stop = has_stop ? stop.data() : nullptr,
            .begin_heads = heads,
            .count_heads = heads,
            .grain = grain};
  }
};

/// As RunsOf<C> of the kernel.
struct Runs {
  int end_masked = 0, num_runs = 0;
  int64_t begin_masked = 0, begin_whole = 0;
  int skip = 0, cut = 0;
};

/// A plan's rows, and what the kernel made of them in memory of exactly the sizes that it asks for.
struct Split {
  int heads, rows, blocks, grain, keys;
  bool has_stop;
  HostRuns masked = {}, whole = {};
  std::vector<int32_t> lengths = {}, order = {}, share_begin = {}, ends = {}, arrived = {};
  std::vector<RowPart> parts = {};
  SplitArgs args{};

  int items() const { return heads * rows; }
  void add_row(const std::vector<std::pair<int, int>>& masked_runs, const std::vector<std::pair<int, int>>& whole_runs) {
    int keys_of_row = 0;
    for (auto [list, runs] : {std::pair{&masked, &masked_runs}, std::pair{&whole, &whole_runs}}) {
      list->begin.push_back(static_cast<int64_t>(list->start.size()));
      list->count.push_back(static_cast<int32_t>(runs->size()));
      for (const auto& [start, stop] : *runs) {
        list->start.push_back(start);
        list->stop.push_back(stop);
        keys_of_row += stop - start;
      }
    }
    lengths.push_back(keys_of_row);
  }
  void run(unsigned seed) {
    order.resize(lengths.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](int32_t a, int32_t b) { return lengths[static_cast<size_t>(a)] > lengths[static_cast<size_t>(b)]; });
    const auto most = static_cast<size_t>(most_parts(items(), blocks));
    parts.assign(most, RowPart{-1, -1, -1, -1, -1, -1});
    share_begin.assign(static_cast<size_t>(blocks) + 1, -1);
    ends.assign(2, -1);
    arrived.assign(most * kSplitWarps, -1);
    args.lists[0] = masked.view(heads, true, 1);
    args.lists[1] = whole.view(heads, has_stop, grain);
    args.items = items();
    args.items_per_head = rows;
    args.heads_q = heads;
    args.keys = keys;
    args.blocks = blocks;
    args.length = lengths.data();
    args.order = order.data();
    args.parts = parts.data();
    args.share_begin = share_begin.data();
    args.ends = ends.data();
    args.arrived = arrived.data();
    launch_on_host(1, kSplitThreads, split_shared_bytes(), seed, [&](auto& block) { split_rows_kernel(block, args); });
  }
  Runs runs_of(int item) const {
    const auto at = static_cast<size_t>(item);
    Runs row;
    if (!masked.start.empty()) {
      row.begin_masked = masked.begin[at];
      row.end_masked = masked.count[at];
    }
    row.num_runs = row.end_masked;
    if (!whole.start.empty()) {
      row.begin_whole = whole.begin[at];
      row.num_runs += whole.count[at];
    }
    return row;
  }
  /// The keys of a row or of a part of one in the order in which the kernel reads them, the masked ones negative.
  std::vector<int> keys_of(const Runs& row, bool is_part) const {
    std::vector<int> all;
    for (int i = 0; i < row.num_runs; ++i) {
      const bool is_masked = i < row.end_masked;
      const auto at = static_cast<size_t>(is_masked ? row.begin_masked + i : row.begin_whole + i - row.end_masked);
      int32_t start = is_masked ? masked.start[at] : whole.start[at];
      int32_t stop = is_masked ? masked.stop[at] : whole.stop[at];
      if (is_part) cut_run(row, i, start, stop);
      EXPECT_LT(start, stop);
      for (int key = start; key < stop; ++key) all.push_back(is_masked ? -1 - key : key);
    }
    return all;
  }
};

/// Everything that the forward relies on. Returns whether rows were split.
bool expect_sound(const Split& split) {
  const int items = split.items(), first = items - tail_rows(items, split.blocks);
  for (const int32_t word : split.arrived) {
    EXPECT_EQ(word, 0);
    if (word != 0) return false;
  }
  if (split.ends[1] == items && split.ends[0] == items) return false;
  EXPECT_EQ(split.ends[0], first);
  const int shares = split.ends[1] - first;
  EXPECT_GE(shares, 1);
  EXPECT_LE(shares, split.blocks);
  EXPECT_EQ(split.share_begin[0], 0);
  EXPECT_LE(split.share_begin[static_cast<size_t>(shares)], most_parts(items, split.blocks));
  std::map<int, std::vector<int>> keys;           // of each row, part after part
  std::map<int, int> next_part, slots;            // of each row; its slot
  std::set<int> taken;
  std::vector<int> stages;
  for (int share = 0; share < shares; ++share) {
    const int begin = split.share_begin[static_cast<size_t>(share)], end = split.share_begin[static_cast<size_t>(share) + 1];
    EXPECT_LT(begin, end);
    int sum = 0;
    for (int i = begin; i < end; ++i) {
      const RowPart& part = split.parts[static_cast<size_t>(i)];
      EXPECT_TRUE(std::find(split.order.begin() + first, split.order.end(), part.item) != split.order.end());
      Runs row = split.runs_of(part.item);
      std::vector<int> mine;
      if (part.word == 0) {
        EXPECT_EQ(keys.count(part.item), 0U);
        mine = split.keys_of(row, false);
      } else {
        EXPECT_EQ(part_of(part.word), next_part[part.item]++);
        EXPECT_GE(parts_of(part.word), 2);
        EXPECT_LT(part_of(part.word), parts_of(part.word));
        const auto [slot, is_new] = slots.emplace(part.item, slot_of(part.word));
        EXPECT_EQ(slot->second, slot_of(part.word));
        EXPECT_TRUE(taken.insert(slot->second + part_of(part.word)).second);
        EXPECT_LT(slot->second + part_of(part.word), most_parts(items, split.blocks));
        take_part(part, row);
        mine = split.keys_of(row, true);
        EXPECT_GE(static_cast<int>(mine.size()), (kLeastStages - 1) * kStageKeys + 1);
      }
      sum += std::max(1, (static_cast<int>(mine.size()) + kStageKeys - 1) / kStageKeys);
      std::vector<int>& all = keys[part.item];
      all.insert(all.end(), mine.begin(), mine.end());
    }
    stages.push_back(sum);
  }
  EXPECT_EQ(keys.size(), static_cast<size_t>(items - first));
  for (const auto& [item, all] : keys) EXPECT_EQ(all, split.keys_of(split.runs_of(item), false)) << item;
  for (const auto& [item, parts] : next_part) {
    int last = 0;
    for (const RowPart& part : split.parts) {
      if (part.item == item && part.word != 0) last = std::max(last, parts_of(part.word));
    }
    EXPECT_EQ(parts, last) << item;
  }
  const int total = std::accumulate(stages.begin(), stages.end(), 0);
  EXPECT_LE(*std::max_element(stages.begin(), stages.end()), (total + shares - 1) / shares + 2 * kLeastStages);
  return true;
}

Split uniform_rows(int heads, int rows, int stages, int blocks) {
  Split split{.heads = heads, .rows = rows, .blocks = blocks, .grain = 128, .keys = stages * kStageKeys, .has_stop = true};
  for (int i = 0; i < heads * rows; ++i) split.add_row({}, {{0, stages * kStageKeys}});
  return split;
}

TEST(SplitRows, ReadsEachKeyOnce) {
  int num_split = 0;
  for (unsigned seed = 0; seed < 200; ++seed) {
    Rng rng(seed);
    const auto pick = [&](int64_t low, int64_t high) { return static_cast<int>(uniform(rng, low, high)); };
    Split split{.heads = pick(1, 3),
                .rows = pick(1, 40),
                .blocks = pick(1, seed % 2 == 0 ? 132 : 16),
                .grain = pick(0, 1) == 0 ? 64 : 128,
                .keys = 0,
                .has_stop = pick(0, 2) != 0};
    const int length = pick(1, 60) * 64, longest = pick(1, 600);
    for (int i = 0; i < split.items(); ++i) {
      std::vector<std::pair<int, int>> runs[2];
      int key = 0;
      for (const int list : {1, 0}) {
        const int end = list == 1 ? length * 3 / 4 : length;
        while (pick(0, 40) != 0) {
          const bool has_grain = list == 1 && !split.has_stop;
          const int start = key + pick(0, 100), stop = start + (has_grain ? split.grain : pick(1, longest));
          if (stop > end) break;
          runs[list].emplace_back(start, stop);
          key = stop;
        }
      }
      split.add_row(runs[0], runs[1]);
    }
    split.keys = length;
    split.run(seed);
    num_split += expect_sound(split) ? 1 : 0;
    ASSERT_FALSE(HasFailure()) << seed;
  }
  EXPECT_GT(num_split, 20);
}

// The last run of a list without stops ends with the keys.
TEST(SplitRows, EndsWithTheKeys) {
  Split split{.heads = 1, .rows = 3, .blocks = 20, .grain = 4096, .keys = 5000, .has_stop = false};
  for (int i = 0; i < 3; ++i) split.add_row({}, {{0, 4096}, {4096, 5000}});
  split.run(1);
  EXPECT_TRUE(expect_sound(split));
}

TEST(SplitRows, LeavesAloneWhatGainsNothing) {
  for (const auto& [rows, stages] :
       {std::pair{132, 64}, std::pair{264, 64}, std::pair{2048, 6}, std::pair{256, 8}, std::pair{131, 64}, std::pair{16, 4}}) {
    Split split = uniform_rows(1, rows, stages, 132);
    split.run(3);
    EXPECT_FALSE(expect_sound(split)) << rows << " rows of " << stages;
  }
}

TEST(SplitRows, SplitsAShortLastRound) {
  struct Row {
    int rows, stages, shares;
  };
  // 8K: 2,048 rows are 15 rounds of 132 and 68 rows; 32K: 8,192 leave 8; a head of 8K has 64 rows; one row.
  for (const Row& row : {Row{2048, 64, 132}, Row{2048, 32, 132}, Row{8192, 256, 132}, Row{64, 64, 132}, Row{16, 16, 32}, Row{1, 1024, 39}}) {
    Split split = uniform_rows(1, row.rows, row.stages, 132);
    split.run(5);
    EXPECT_TRUE(expect_sound(split)) << row.rows << " rows of " << row.stages;
    EXPECT_EQ(split.ends[1] - split.ends[0], row.shares) << row.rows << " rows of " << row.stages;
  }
}

// Rows without a key get a share all the same: their queries are set to 0.
TEST(SplitRows, KeepsRowsWithoutAKey) {
  Split split{.heads = 1, .rows = 20, .blocks = 132, .grain = 128, .keys = 8192, .has_stop = true};
  for (int i = 0; i < 20; ++i) {
    if (i % 3 == 0) {
      split.add_row({}, {});
    } else {
      split.add_row({{0, 300}}, {{1024, 8192}});
    }
  }
  split.run(2);
  EXPECT_TRUE(expect_sound(split));
}

TEST(SplitRows, FitsInSharedMemory) { EXPECT_LE(split_shared_bytes(), 48U * 1024); }

}  // namespace
}  // namespace tilewise::attend::sm90
