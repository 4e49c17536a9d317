// SPDX-License-Identifier: Apache-2.0
// The kernels of complete() on a GPU, run on the CPU line by line, against the host's complete().
#include <gtest/gtest.h>

#include <algorithm>

#include "tests/machine/cuda/host_block.h"
#include "tests/plan/cuda/device_plan_testing.h"
#include "tests/plan/random_pairs.h"
#include "tilewise/plan/complete.h"
#include "tilewise/plan/cuda/complete_args.h"
#include "tilewise/plan/make.h"
#include "tilewise/plan/validate.h"

namespace tilewise::plan::cuda {
namespace {

using attend::testing::MaskKind;
using attend::testing::PlanOptions;
using attend::testing::random_plan;
using attend::testing::RandomPlan;
using attend::testing::Rng;
using attend::testing::uniform;
using testing::difference;
using testing::Guarded;
using testing::launch_on_host;

void run(const CompleteLaunch& launch, unsigned seed) {
  if (launch.edge != nullptr) cut_axis(launch.args.to, launch.args.to_rows.tile, launch.edge);
  *launch.args.needs_rows = 0;
  const auto pass = [&](bool writes) {
    const auto with_words = [&]<int kWords>() {
      launch_on_host(launch.blocks, kCompleteThreads, complete_shared_bytes<kWords>(), seed,
                     [&](auto& block) { complete_kernel<kWords>(block, launch.args, writes); });
    };
    if (launch.args.words == 1)
      with_words.template operator()<1>();
    else if (launch.args.words == 2)
      with_words.template operator()<2>();
    else
      with_words.template operator()<4>();
  };
  pass(false);
  launch_on_host(1, kPlaceRowsThreads, place_rows_shared_bytes(), seed, [&](auto& block) { place_rows_kernel(block, launch.place); });
  pass(true);
}

/// A completed plan in guarded memory.
struct Made {
  Guarded memory, workspace;
  Plan plan;

  Made(const Plan& from, const CompleteRoom& room, unsigned seed) : memory(bytes_of(complete_space(*from, room))), workspace(sizes()) {
    auto data = std::make_shared<PlanData>(share(from));
    const bool is_by_query = from->by_query.has_runs() || !from->by_key.has_runs();
    data->is_by_key = !is_by_query;
    MemoryParts parts(memory.data());
    (is_by_query ? data->by_key : data->by_query) = place_lists(complete_space(*from, room), parts, {});
    run(complete_launch(*data, workspace.data()), seed);
    plan = data;
  }
  static size_t sizes() {
    PlaceRowsArgs place;
    CompleteArgs args;
    return complete_workspace(nullptr, place, args);
  }
  const Lists& lists() const { return plan->is_by_key ? plan->by_query : plan->by_key; }
  int status(int i) const { return lists().status.at<int32_t>(i); }
  bool is_intact() const { return memory.is_intact() && workspace.is_intact(); }
};

TEST(DeviceComplete, MakesTheListsOfTheHost) {
  Context context;
  for (unsigned seed = 0; seed < 300; ++seed) {
    Rng rng(seed);
    PlanOptions options = testing::random_options(rng);
    if (seed % 5 == 0) options.tile = static_cast<int>(uniform(rng, 16, 256));
    const RandomPlan random = random_plan(rng, options);
    const int tile = std::array{0, 16, 64, 128, 256, 48, 192}[seed % 7];
    const Plan want = complete(random.plan, context, tile);
    const auto runs = testing::runs_in(*want, options.is_by_key ? want->by_query : want->by_key);
    const Made made(random.plan, {.whole = runs[0], .masked = runs[1], .has_rows = true, .tile = tile}, seed);  // room for what is there, exactly
    ASSERT_EQ(difference(*made.plan, *want, !options.is_by_key), "") << "seed " << seed << " tile " << tile;
    ASSERT_EQ(made.status(0), 0) << seed;
    ASSERT_EQ(made.status(1), kNoFault) << seed;
    ASSERT_TRUE(made.is_intact()) << seed;
    ASSERT_EQ(find_fault(made.plan), std::nullopt) << seed;
    const CompleteRoom most = most_room_of(*random.plan, tile);
    EXPECT_GE(most.whole, runs[0]) << seed;
    EXPECT_GE(most.masked, runs[1]) << seed;
  }
}

TEST(DeviceComplete, JoinsRunsOverMoreRowsThanABlockHasThreads) {
  Context context;
  for (const int64_t n : {16 * kCompleteThreads - 1, 16 * kCompleteThreads, 16 * kCompleteThreads + 1, 16 * 3 * kCompleteThreads + 5}) {
    for (const bool is_causal : {false, true}) {
      const Plan plan = dense_plan({.seqlen_q = n, .seqlen_k = n, .tile = 16, .mask = is_causal ? Mask::causal() : Mask::full()});
      const Plan want = complete(plan, context);
      const auto runs = testing::runs_in(*want, want->by_key);
      const Made made(plan, {.whole = runs[0], .masked = runs[1]}, 1);
      EXPECT_EQ(difference(*made.plan, *want, true), "") << n;
      EXPECT_TRUE(made.is_intact());
    }
  }
  // Scattered: runs of all lengths cross the border of two rounds.
  for (unsigned seed = 0; seed < 6; ++seed) {
    Rng rng(seed);
    PlanOptions options;
    options.seqlen_q = 16 * 300;
    options.seqlen_k = 200;
    options.tile = 16;
    options.mask = MaskKind::full;
    options.density = seed % 2 == 0 ? 0.95 : 0.5;
    options.longest_run = 200;
    options.grain = seed < 3 ? 16 : 1;
    const RandomPlan random = random_plan(rng, options);
    const Plan want = complete(random.plan, context);
    const auto runs = testing::runs_in(*want, want->by_key);
    const Made made(random.plan, {.whole = runs[0], .masked = runs[1]}, seed);
    EXPECT_EQ(difference(*made.plan, *want, true), "") << seed;
  }
}

TEST(DeviceComplete, ReportsWhatItHasNoRoomFor) {
  Context context;
  for (unsigned seed = 0; seed < 60; ++seed) {
    Rng rng(5000 + seed);
    const PlanOptions options = testing::random_options(rng);
    const RandomPlan random = random_plan(rng, options);
    const Plan want = complete(random.plan, context);
    const auto runs = testing::runs_in(*want, options.is_by_key ? want->by_query : want->by_key);
    if (runs[0] + runs[1] == 0) continue;
    const CompleteRoom room = {.whole = uniform(rng, 0, runs[0]), .masked = runs[1] == 0 ? 0 : uniform(rng, 0, runs[1] - 1)};
    const Made made(random.plan, room, seed);
    EXPECT_TRUE(made.is_intact()) << seed;
    const bool is_short = room.whole < runs[0] || room.masked < runs[1];
    EXPECT_EQ(made.status(0) > 0, is_short) << seed;
    EXPECT_EQ(made.status(1), is_short ? kOverCapacity : kNoFault) << seed;
    if (is_short) {
      EXPECT_NE(find_fault(made.plan), std::nullopt) << "a plan whose kernel reports a fault is none";
    }
  }
}

TEST(DeviceComplete, ReportsThatRowsAreNeeded) {
  Context context;
  int needed = 0;
  for (unsigned seed = 0; seed < 60; ++seed) {
    Rng rng(9000 + seed);
    const PlanOptions options = testing::random_options(rng);
    const RandomPlan random = random_plan(rng, options);
    const Plan want = complete(random.plan, context);
    const Lists& lists = options.is_by_key ? want->by_query : want->by_key;
    const auto runs = testing::runs_in(*want, lists);
    const Made made(random.plan, {.whole = runs[0], .masked = runs[1], .has_rows = false}, seed);
    EXPECT_TRUE(made.is_intact()) << seed;
    EXPECT_EQ(made.status(1), lists.masked.rows.has_value() ? kNeedsRows : kNoFault) << seed;
    needed += lists.masked.rows.has_value() ? 1 : 0;
  }
  EXPECT_GT(needed, 10);
}

}  // namespace
}  // namespace tilewise::plan::cuda
