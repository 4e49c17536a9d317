// SPDX-License-Identifier: Apache-2.0
// The kernels that order a plan's rows, run on the CPU line by line.
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "tests/machine/cuda/host_block.h"
#include "tests/plan/cuda/device_plan_testing.h"
#include "tests/plan/random_pairs.h"
#include "tilewise/plan/cuda/longest_first_kernel.h"
#include "tilewise/plan/cuda/run_list.h"

namespace tilewise::plan::cuda {
namespace {

using attend::testing::PlanOptions;
using attend::testing::random_plan;
using attend::testing::RandomPlan;
using attend::testing::Rng;
using attend::testing::uniform;
using testing::Guarded;
using testing::launch_on_host;

void run(const LongestFirstArgs& args, unsigned seed) {
  if (are_few(args) && seed % 2 == 0) {
    launch_on_host(1, kSortThreads, sort_shared_bytes(), seed, [&](auto& block) { order_few_kernel(block, args); });
    return;
  }
  launch_on_host(length_blocks(args.items), kLengthThreads, kLengthSharedBytes, seed, [&](auto& block) { row_lengths_kernel(block, args); });
  launch_on_host((args.items + args.section - 1) / args.section, kSortThreads, sort_shared_bytes(), seed,
                 [&](auto& block) { longest_first_kernel(block, args); });
}

/// Sections one after another, each a stable sort by the bucket of the length.
std::vector<int32_t> expected(const LongestFirstArgs& args, const std::vector<int32_t>& lengths) {
  std::vector<int32_t> order(lengths.size());
  std::iota(order.begin(), order.end(), 0);
  const auto bucket = [&](int32_t item) { return std::min(lengths[static_cast<size_t>(item)] / args.bucket_keys, kBuckets - 1); };
  for (int first = 0; first < args.items; first += args.section) {
    std::stable_sort(order.begin() + first, order.begin() + std::min(first + args.section, args.items),
                     [&](int32_t a, int32_t b) { return bucket(a) > bucket(b); });
  }
  return order;
}

TEST(LongestFirst, OrdersTheRowsOfRandomPlans) {
  for (unsigned seed = 0; seed < 100; ++seed) {
    Rng rng(seed);
    PlanOptions options = testing::random_options(rng);
    options.is_by_key = false;
    const RandomPlan random = random_plan(rng, options);
    const PlanData& plan = *random.plan;
    const Lists& lists = plan.by_query;
    const auto rows = static_cast<int>(num_rows(lists, slots_q(plan)));
    LongestFirstArgs args{};
    args.lists[0] = run_list(lists.masked);
    args.lists[1] = run_list(lists.whole);
    args.lists[2] = run_list(lists.picked);
    args.items_per_row = static_cast<int>(uniform(rng, 1, 2));
    args.items_per_head = rows * args.items_per_row;
    args.items = args.items_per_head * plan.heads_q * static_cast<int>(plan.batch);
    args.heads_q = plan.heads_q;
    args.keys = static_cast<int>(slots_k_with_pools(plan));
    args.section = seed % 3 == 0 ? args.items : static_cast<int>(uniform(rng, 1, args.items));
    args.bucket_keys = static_cast<int>(uniform(rng, 1, 8));
    std::vector<int32_t> lengths;
    for (int64_t b = 0; b < plan.batch; ++b) {
      for (int head = 0; head < plan.heads_q; ++head) {
        for (int row = 0; row < rows; ++row) {
          int64_t keys = 0;
          for (const RunList* list : {&lists.whole, &lists.masked, &lists.picked}) {
            const Runs runs = runs_of(*list, b, head, plan.heads_q, row);
            for (int i = 0; i < runs.count; ++i) keys += std::min(run_stop(runs, i, list->grain, args.keys), int64_t{args.keys}) - runs.start[i];
          }
          lengths.insert(lengths.end(), static_cast<size_t>(args.items_per_row), static_cast<int32_t>(keys));
        }
      }
    }
    const Guarded memory((2 * static_cast<size_t>(args.items) + 2) * sizeof(int32_t));
    args.length = static_cast<int32_t*>(memory.data());
    args.order = args.length + args.items;
    args.counter = args.order + args.items;
    run(args, seed);
    ASSERT_EQ(std::vector<int32_t>(args.length, args.length + args.items), lengths) << seed;
    ASSERT_EQ(std::vector<int32_t>(args.order, args.order + args.items), expected(args, lengths)) << seed;
    EXPECT_EQ(args.counter[0], 0);
    EXPECT_EQ(args.counter[1], 0);
    EXPECT_TRUE(memory.is_intact());
  }
}

TEST(LongestFirst, SortsMoreRowsThanABlockHasThreads) {
  for (const int rows : {1023, 1024, 1025, 5000}) {
    for (const int heads : {1, 2}) {
      Rng rng(static_cast<uint64_t>(rows));
      std::vector<int64_t> begin;
      std::vector<int32_t> count, start, stop, lengths;
      for (int row = 0; row < rows * heads; ++row) {
        begin.push_back(row);
        count.push_back(uniform(rng, 0, 9) == 0 ? 0 : 1);
        start.push_back(static_cast<int32_t>(uniform(rng, 0, 100)));
        stop.push_back(static_cast<int32_t>(start.back() + uniform(rng, 1, 40000)));
        lengths.push_back(count.back() == 0 ? 0 : stop.back() - start.back());
      }
      LongestFirstArgs args{};
      args.lists[1] = {
          .begin = begin.data(), .count = count.data(), .start = start.data(), .stop = stop.data(), .begin_heads = heads, .count_heads = heads};
      args.items_per_row = 1;
      args.items_per_head = rows;
      args.items = rows * heads;
      args.heads_q = heads;
      args.keys = 40100;
      args.section = args.items;
      args.bucket_keys = (args.keys + kBuckets - 1) / kBuckets;
      const Guarded memory((2 * static_cast<size_t>(args.items) + 2) * sizeof(int32_t));
      args.length = static_cast<int32_t*>(memory.data());
      args.order = args.length + args.items;
      args.counter = args.order + args.items;
      run(args, 7);
      EXPECT_EQ(std::vector<int32_t>(args.order, args.order + args.items), expected(args, lengths)) << rows;
      EXPECT_TRUE(memory.is_intact());
    }
  }
}

// One block does what two launches do, for as many rows as it takes.
TEST(LongestFirst, OrdersFewRowsInOneLaunch) {
  for (const int rows : {1, 63, 128, 129, 300, 511, 512}) {
    Rng rng(static_cast<uint64_t>(rows));
    std::vector<int64_t> begin;
    std::vector<int32_t> count, start, stop, lengths;
    for (int row = 0; row < rows; ++row) {
      begin.push_back(static_cast<int64_t>(start.size()));
      count.push_back(static_cast<int32_t>(uniform(rng, 0, 20)));
      lengths.push_back(0);
      for (int i = 0; i < count.back(); ++i) {
        start.push_back(i * 200);
        stop.push_back(static_cast<int32_t>(i * 200 + uniform(rng, 1, 200)));
        lengths.back() += stop.back() - start.back();
      }
    }
    LongestFirstArgs args{};
    args.lists[0] = {.begin = begin.data(), .count = count.data(), .start = start.data(), .stop = stop.data()};
    args.items_per_row = 1;
    args.items_per_head = args.items = args.section = rows;
    args.heads_q = 1;
    args.keys = 4096;
    args.bucket_keys = (args.keys + kBuckets - 1) / kBuckets;
    ASSERT_TRUE(are_few(args));
    const Guarded memory((2 * static_cast<size_t>(rows) + 2) * sizeof(int32_t));
    args.length = static_cast<int32_t*>(memory.data());
    args.order = args.length + rows;
    args.counter = args.order + rows;
    run(args, 2);
    EXPECT_EQ(std::vector<int32_t>(args.length, args.length + rows), lengths) << rows;
    EXPECT_EQ(std::vector<int32_t>(args.order, args.order + rows), expected(args, lengths)) << rows;
    EXPECT_EQ(args.counter[0], 0);
    EXPECT_EQ(args.counter[1], 0);
    EXPECT_TRUE(memory.is_intact());
  }
}

// What a launch may have without asking for more.
TEST(LongestFirst, FitsInSharedMemory) { EXPECT_LE(sort_shared_bytes(), 48U * 1024); }

}  // namespace
}  // namespace tilewise::plan::cuda
