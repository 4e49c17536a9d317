// SPDX-License-Identifier: Apache-2.0
// The kernel of plan_of_mask() on a GPU, run on the CPU line by line, against the host's plan_of_mask().
#include <gtest/gtest.h>

#include "tests/machine/cuda/host_block.h"
#include "tests/plan/cuda/device_plan_testing.h"
#include "tests/select/cuda/random_scores.h"
#include "tilewise/plan/validate.h"
#include "tilewise/select/cuda/mask_plan_args.h"

namespace tilewise::select::cuda {
namespace {

TEST(DeviceMaskPlan, ReadsWhatTheHostReads) {
  Context context;
  for (unsigned seed = 0; seed < 300; ++seed) {
    testing::Random random(seed);
    const int64_t most = seed % 10 == 0 ? 9000 : 200, batch = random(1, 2), seqlen_q = random(1, most), seqlen_k = random(1, most);
    const int heads = static_cast<int>(random(1, 3)), tile = static_cast<int>(random(0, 1) == 0 ? 16 : random(16, 100));
    const Mask mask = testing::random_mask(random, seqlen_k, heads);
    const RowGrid grid = random.chance(0.5) ? RowGrid::on_key_tiles(seqlen_q, seqlen_k, tile) : RowGrid::plain(seqlen_q, seqlen_k, tile);
    ASSERT_EQ(refusal_of(mask, grid, heads), std::nullopt);
    const plan::cuda::ListsSpace space = mask_plan_space(mask, grid, heads);
    const testing::Guarded memory(plan::cuda::bytes_of(space));
    PlanData data = begin_plan(mask, mask, grid, batch, heads, context);
    plan::cuda::MemoryParts parts(memory.data());
    data.by_query = plan::cuda::place_lists(space, parts, {});
    const MaskPlanArgs args = mask_plan_args(mask, grid, data.by_query);
    testing::launch_on_host(mask_plan_blocks(args.items), kMaskPlanThreads, 0, seed, [&](auto& block) { mask_plan_kernel(block, args); });
    ASSERT_TRUE(memory.is_intact()) << seed;
    const Plan want = plan_of_mask(mask, mask, grid, batch, heads, context);
    ASSERT_EQ(testing::difference(data, *want, false), "") << seed;
    ASSERT_EQ(find_fault(std::make_shared<const PlanData>(std::move(data))), std::nullopt) << seed;
  }
}

TEST(DeviceMaskPlan, RefusesWhatItDoesNotTake) {
  const RowGrid grid = RowGrid::plain(64, 64, 16);
  EXPECT_EQ(refusal_of(Mask::causal(), grid, 4), std::nullopt);
  EXPECT_NE(refusal_of(Mask{}, grid, 4), std::nullopt);
  EXPECT_NE(refusal_of(Mask::causal(), grid, 257), std::nullopt);
  RowGrid odd = grid;
  odd.edge = {0, 10, 20, 64};
  EXPECT_NE(refusal_of(Mask::causal(), odd, 4), std::nullopt);
}

}  // namespace
}  // namespace tilewise::select::cuda
