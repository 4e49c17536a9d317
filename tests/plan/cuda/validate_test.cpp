// SPDX-License-Identifier: Apache-2.0
// The kernel of validate() on a GPU, run on the CPU line by line: the first fault of damaged plans, and none of sound ones.
#include <gtest/gtest.h>

#include <algorithm>
#include <string>

#include "tests/machine/cuda/host_block.h"
#include "tests/plan/random_pairs.h"
#include "tilewise/plan/complete.h"
#include "tilewise/plan/cuda/validate_args.h"
#include "tilewise/plan/validate.h"

namespace tilewise::plan::cuda {
namespace {

using attend::testing::PlanOptions;
using attend::testing::random_plan;
using attend::testing::RandomPlan;
using attend::testing::Rng;
using attend::testing::uniform;

std::optional<RowFault> fault_in(const PlanData& plan, unsigned seed) {
  uint64_t word = ~uint64_t{0};
  for (const bool is_by_query : {true, false}) {
    const ValidateLaunch launch = validate_launch(plan, is_by_query, &word);
    testing::launch_on_host(launch.blocks, kValidateThreads, 0, seed, [&](auto& block) { validate_kernel(block, launch.args); });
  }
  return row_fault(plan, word);
}

TEST(DeviceValidate, FindsNoFaultInSoundPlans) {
  Context context;
  for (unsigned seed = 0; seed < 200; ++seed) {
    Rng rng(seed);
    const RandomPlan random = random_plan(rng, testing::random_options(rng));
    ASSERT_FALSE(fault_in(*random.plan, seed)) << seed << ": " << fault_in(*random.plan, seed)->what;
    const Plan both = complete(random.plan, context, seed % 2 == 0 ? 64 : 0);
    ASSERT_FALSE(fault_in(*both, seed)) << seed << ": " << fault_in(*both, seed)->what;
  }
}

TEST(DeviceValidate, NamesTheFirstRowOfADamagedRun) {
  int damaged = 0;
  for (unsigned seed = 0; seed < 600; ++seed) {
    Rng rng(seed);
    PlanOptions options = testing::random_options(rng);
    options.grain = uniform(rng, 0, 1) == 0 ? 1 : 8;
    const RandomPlan random = random_plan(rng, options);
    const PlanData& plan = *random.plan;
    const Lists& lists = options.is_by_key ? plan.by_key : plan.by_query;
    const auto kind = static_cast<size_t>(uniform(rng, 0, 2));
    const RunList& list = *std::array{&lists.whole, &lists.masked, &lists.picked}[kind];
    if (!list.has_runs() || list.start.numel() == 0) continue;
    // The first reader, in the order of the words, of each run.
    const int64_t slots = options.is_by_key ? slots_k_with_pools(plan) : slots_q(plan);
    struct Reader {
      int64_t b, row;
      int head;
    };
    const auto first_reader = [&](int64_t run) -> std::optional<Reader> {
      for (int64_t b = 0; b < plan.batch; ++b) {
        for (int head = 0; head < plan.heads_q; ++head) {
          for (int64_t row = 0; row < num_rows(lists, slots); ++row) {
            const Runs runs = runs_of(list, b, head, plan.heads_q, row);
            const int64_t begin = runs.start - static_cast<const int32_t*>(list.start.raw());
            if (run >= begin && run < begin + runs.count) return Reader{b, row, head};
          }
        }
      }
      return std::nullopt;
    };
    const int64_t run = uniform(rng, 0, list.start.numel() - 1);
    const auto reader = first_reader(run);
    if (!reader) continue;
    auto* const starts = static_cast<int32_t*>(list.start.raw());
    auto* const stops = list.stop.has_value() ? static_cast<int32_t*>(list.stop.raw()) : nullptr;
    const int64_t end = options.is_by_key ? slots_q(plan) : slots_k_with_pools(plan);
    std::string expected;
    switch (uniform(rng, 0, 4)) {
      case 0:
        starts[run] = static_cast<int32_t>(uniform(rng, 0, 1) == 0 ? -1 : end);
        expected = "has a run that starts outside of the axis";
        break;
      case 1:
        if (stops == nullptr) continue;
        stops[run] = static_cast<int32_t>(uniform(rng, 0, 1) == 0 ? starts[run] : end + 1);
        expected = "has a run without a slot, or past the end of the axis or of a pool";
        break;
      case 2: {
        const Runs runs = runs_of(list, reader->b, reader->head, plan.heads_q, reader->row);
        if (runs.count < 2 || run == runs.start - starts) continue;
        if (!options.is_by_key && part_end(plan, starts[run]) != part_end(plan, starts[run - 1])) continue;  // it would pass the end of a part, too
        starts[run] = starts[run - 1];
        expected = "has a run that starts before the end of the run ahead of it";
        break;
      }
      case 3:
        if (!list.rows.has_value()) continue;
        for (int64_t word = 0; word < list.rows.dim(1); ++word) list.rows.at<uint64_t>(run, word) = 0;
        expected = "has a run that no slot of it reads";
        break;
      default: {
        const int64_t bi = batch_index(list.count, reader->b);
        const int64_t g = group_index(list.count, reader->head, plan.heads_q);
        list.count.at<int32_t>(bi, g, reader->row) = static_cast<int32_t>(list.start.numel() + 1);
        expected = "has runs outside of its list";
      }
    }
    ++damaged;
    const auto fault = fault_in(plan, seed);
    ASSERT_TRUE(fault.has_value()) << seed << " " << expected;
    EXPECT_NE(find_fault(random.plan), std::nullopt) << seed;
    EXPECT_EQ(fault->is_by_key, options.is_by_key) << seed;
    EXPECT_EQ(fault->list, static_cast<int>(kind)) << seed << " " << fault->what;
    EXPECT_EQ(fault->b, reader->b) << seed;
    EXPECT_EQ(fault->head, reader->head) << seed;
    EXPECT_EQ(fault->row, reader->row) << seed;
    EXPECT_EQ(std::string(fault->what), expected) << seed;
  }
  EXPECT_GT(damaged, 100);
}

TEST(DeviceValidate, TellsListsThatShareSlotsAndFaultsOfTheirKernel) {
  auto plan = std::make_shared<PlanData>();
  plan->seqlen_q = 32;
  plan->seqlen_k = 64;
  plan->mask = Mask::full();
  plan->by_query.tile = 16;
  int64_t begin[] = {0, 1};
  int32_t count[] = {1, 1}, start[] = {0, 16}, stop[] = {16, 32}, start_masked[] = {16, 24}, stop_masked[] = {32, 40}, status[] = {0, 0};
  const auto runs = [&](int32_t* starts, int32_t* stops) {
    return RunList{
        TensorView::of(begin, {1, 1, 2}), TensorView::of(count, {1, 1, 2}), TensorView::of(starts, {2}), TensorView::of(stops, {2}), {}, 1};
  };
  plan->by_query.whole = runs(start, stop);
  plan->by_query.masked = runs(start_masked, stop_masked);
  auto fault = fault_in(*plan, 1);
  ASSERT_TRUE(fault.has_value());
  EXPECT_EQ(fault->row, 1);
  EXPECT_EQ(std::string(fault->what), "has runs of two lists that share slots");
  start_masked[1] = 32;
  EXPECT_FALSE(fault_in(*plan, 1));
  plan->by_query.status = TensorView::of(status, {2});
  EXPECT_FALSE(fault_in(*plan, 1));
  status[1] = 1;
  fault = fault_in(*plan, 1);
  ASSERT_TRUE(fault.has_value());
  EXPECT_EQ(std::string(fault->what), "the kernel that wrote the lists met a fault");
  status[1] = 0;
  plan->by_query.whole.grain = 3;
  fault = fault_in(*plan, 1);
  ASSERT_TRUE(fault.has_value());
  EXPECT_EQ(std::string(fault->what), "has a run whose length is no multiple of the grain");
  plan->by_query.whole.grain = 1;
  int32_t edge[] = {0, 20, 32};
  plan->by_query.edge = TensorView::of(edge, {3});
  fault = fault_in(*plan, 1);
  ASSERT_TRUE(fault.has_value());
  EXPECT_EQ(std::string(fault->what), "has no slot, more than its tile, or passes the border of a pool");
}

}  // namespace
}  // namespace tilewise::plan::cuda
