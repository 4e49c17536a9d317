// SPDX-License-Identifier: Apache-2.0
// The kernels of select::plan() on a GPU, run on the CPU line by line, against the host's select::plan().
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "tests/machine/cuda/host_block.h"
#include "tests/plan/cuda/device_plan_testing.h"
#include "tests/select/cuda/random_scores.h"
#include "tilewise/plan/validate.h"
#include "tilewise/select/cuda/plan_args.h"

namespace tilewise::select::cuda {
namespace {

using testing::difference;
using testing::Guarded;
using testing::launch_on_host;
using testing::Random;
using testing::random_budget;
using testing::random_scores;

void run(const PlanLaunch& launch, unsigned seed) {
  const int threads = choose_threads(launch.args.tiles);
  launch_on_host(launch.blocks, threads, choose_shared_bytes(launch.args.tiles), seed,
                 [&](auto& block) { choose_kernel<false>(block, launch.args); });
  launch_on_host(1, plan::cuda::kPlaceRowsThreads, plan::cuda::place_rows_shared_bytes(), seed,
                 [&](auto& block) { plan::cuda::place_rows_kernel(block, launch.place); });
  launch_on_host(launch.blocks, threads, write_shared_bytes(launch.args.tiles), seed, [&](auto& block) { write_runs_kernel(block, launch.args); });
}

/// A plan in guarded memory.
struct Made {
  Guarded memory, workspace;
  Plan plan;

  Made(const Scores& scores, const Budget& budget, const PlanRoom& room, unsigned seed)
      : memory(plan::cuda::bytes_of(plan_space(scores, room))), workspace(sizes(scores)) {
    Context context;
    PlanData data = begin_plan(scores.mask, scores.mask, scores.grid, scores.batch, scores.heads, context);
    plan::cuda::MemoryParts parts(memory.data());
    data.by_query = plan::cuda::place_lists(plan_space(scores, room), parts, {});
    run(plan_launch(scores, budget, data, workspace.data()), seed);
    plan = std::make_shared<const PlanData>(std::move(data));
  }
  static size_t sizes(const Scores& scores) {
    ChooseArgs args;
    plan::cuda::PlaceRowsArgs place;
    return plan_workspace(scores, nullptr, args, place);
  }
  int status(int i) const { return plan->by_query.status.at<int32_t>(i); }
  bool is_intact() const { return memory.is_intact() && workspace.is_intact(); }
};

TEST(DevicePlan, ChoosesWhatTheHostChooses) {
  Context context;
  for (unsigned seed = 0; seed < 400; ++seed) {
    Random random(seed);
    const Scores scores = random_scores(random, seed % 10 == 0 ? 900 : 120);
    const Budget budget = random_budget(random, scores);
    ASSERT_EQ(refusal_of(scores, budget), std::nullopt);
    const Plan want = select::plan(scores, budget, context);
    const Made made(scores, budget, most_runs_of(scores, budget), seed);
    ASSERT_EQ(difference(*made.plan, *want, false), "") << "seed " << seed;
    ASSERT_TRUE(made.is_intact()) << seed;
    ASSERT_EQ(made.status(0), 0) << "seed " << seed;
    ASSERT_EQ(made.status(1), 0);
    ASSERT_EQ(find_fault(made.plan), std::nullopt) << seed;
  }
}

TEST(DevicePlan, TakesRowsOfManyTiles) {
  Context context;
  for (const int64_t tiles : {1023, 1024, 1025, 8192}) {
    Random random(static_cast<uint64_t>(tiles));
    Scores scores;
    scores.tile_k = 16;
    scores.batch = scores.heads = 1;
    scores.mask = tiles % 2 == 0 ? Mask::causal() : Mask::full();
    scores.grid = RowGrid::on_key_tiles(32, tiles * 16 - 3, 16);
    scores.values = Tensor(host_memory(), Dtype::f32, {1, 1, scores.grid.rows(), tiles});
    for (int64_t i = 0; i < scores.values.view.numel(); ++i)
      static_cast<float*>(scores.values.view.raw())[i] =
          static_cast<float>(std::exp(-30 * std::uniform_real_distribution<double>(0, 1)(random.engine)));
    for (const Budget& budget : {Budget{.mass = {.9f}, .sink = 1, .diagonal = 1}, Budget{.count = {tiles / 3}}, Budget{.share = {.1f}, .floor = 5}}) {
      const Plan want = select::plan(scores, budget, context);
      const Made made(scores, budget, most_runs_of(scores, budget), 3);
      EXPECT_EQ(difference(*made.plan, *want, false), "") << tiles;
      EXPECT_TRUE(made.is_intact());
    }
  }
}

// Half of the total is what the best tile holds, as long as the small ones are added last, where they are lost in rounding.
TEST(DevicePlan, AddsUpInTheOrderOfTiles) {
  Context context;
  constexpr int64_t kTiles = 67;
  Scores scores;
  scores.tile_k = 16;
  scores.batch = scores.heads = 1;
  scores.mask = Mask::full();
  scores.grid = RowGrid::plain(16, kTiles * 16, 16);
  scores.values = Tensor(host_memory(), Dtype::f32, {1, 1, 1, kTiles});
  for (const bool is_best_first : {true, false}) {
    for (int64_t tile = 0; tile < kTiles; ++tile) {
      const int64_t rank = is_best_first ? tile : kTiles - 1 - tile;
      scores.row(0, 0, 0)[tile] = rank == 0 ? 1.0f : rank == 1 ? 0.75f : rank == 2 ? 0.25f : 0x1p-53f;
    }
    const Budget budget{.mass = {.5f}};
    const Plan want = select::plan(scores, budget, context);
    EXPECT_EQ(testing::runs_in(*want, want->by_query)[0], 1);
    EXPECT_EQ(want->by_query.whole.grain, is_best_first ? 16 : 32) << "one tile, or the best two";
    const Made made(scores, budget, most_runs_of(scores, budget), 1);
    EXPECT_EQ(difference(*made.plan, *want, false), "");
  }
}

TEST(DevicePlan, ReadsMoreWhereTheRoomEnds) {
  Context context;
  int64_t merged = 0;
  for (unsigned seed = 0; seed < 120; ++seed) {
    Random random(7000 + seed);
    const Scores scores = random_scores(random, 200);
    const Budget budget = random_budget(random, scores);
    const Plan want = select::plan(scores, budget, context);
    const auto runs = testing::runs_in(*want, want->by_query);
    const int64_t rows = scores.batch * scores.heads * scores.grid.rows();
    const PlanRoom room = {random(0, runs[0]), std::max(rows, random(0, runs[1]))};
    const Made made(scores, budget, room, seed);
    ASSERT_TRUE(made.is_intact()) << seed;
    ASSERT_EQ(made.status(1), 0);
    ASSERT_EQ(find_fault(made.plan), std::nullopt) << seed;
    merged += made.status(0);
    bool is_merging = false;
    int64_t rows_merged = 0;
    for (int64_t b = 0; b < scores.batch; ++b) {
      for (int head = 0; head < scores.heads; ++head) {
        for (int64_t row = 0; row < scores.grid.rows(); ++row) {
          std::vector<testing::FlatRun> wanted, got;
          for (const bool is_masked : {false, true}) {
            const auto add = [&](std::vector<testing::FlatRun>& to, const PlanData& plan) {
              const Lists& lists = plan.by_query;
              const auto of = testing::flat_runs(plan, lists, is_masked ? lists.masked : lists.whole, false, b, head, row);
              to.insert(to.end(), of.begin(), of.end());
            };
            add(wanted, *want);
            add(got, *made.plan);
          }
          if (wanted == got && !is_merging) continue;
          is_merging = true;  // from here on every row is merged
          if (wanted.empty()) {
            ASSERT_TRUE(got.empty());
            continue;
          }
          ++rows_merged;
          ASSERT_EQ(got.size(), 1U);
          int64_t first = INT64_MAX, last = 0;
          for (const auto& run : wanted) {
            first = std::min(first, run.start);
            last = std::max(last, run.stop);
          }
          ASSERT_EQ(got[0].start, first) << seed;
          ASSERT_EQ(got[0].stop, last) << seed;
        }
      }
    }
    ASSERT_LE(rows_merged, made.status(0)) << seed;  // a row of one masked run merges into itself
  }
  EXPECT_GT(merged, 100);
}

TEST(DevicePlan, RefusesWhatItDoesNotTake) {
  Random random(1);
  Scores scores = random_scores(random, 50);
  EXPECT_EQ(refusal_of(scores, {}), std::nullopt);
  EXPECT_NE(refusal_of(scores, {.scope = Budget::Scope::head}), std::nullopt);
  Scores odd;
  odd.tile_k = 16;
  odd.heads = 1;
  odd.batch = 1;
  odd.mask = Mask::causal();
  odd.grid = RowGrid::plain(64, 64, 16);
  odd.grid.edge = {0, 10, 20, 64};
  EXPECT_NE(refusal_of(odd, {}), std::nullopt);
  odd.grid = RowGrid::plain(64, 16 * 8193, 16);
  EXPECT_NE(refusal_of(odd, {}), std::nullopt);
  odd.grid = RowGrid::plain(64, 64, 16);
  odd.mask.bands.clear();
  EXPECT_NE(refusal_of(odd, {}), std::nullopt);
}

}  // namespace
}  // namespace tilewise::select::cuda
