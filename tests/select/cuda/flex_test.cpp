// SPDX-License-Identifier: Apache-2.0
// The kernels of flexprefill's choice on a GPU, run on the CPU line by line, against the definition in f64.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

#include "tests/machine/cuda/host_block.h"
#include "tests/methods/flexprefill_definition.h"
#include "tests/plan/cuda/device_plan_testing.h"
#include "tests/select/cuda/last_queries_testing.h"
#include "tilewise/plan/validate.h"
#include "tilewise/select/cuda/flex_args.h"

namespace tilewise::select::cuda {
namespace {

using testing::Guarded;
using testing::launch_on_host;

void run_means(const MeanPoolLaunch& launch, unsigned seed) {
  launch_on_host(launch.pool_blocks, kPoolThreads, kPoolSharedBytes, seed, [&](auto& block) { pool_kernel(block, launch.args); });
  launch_on_host(launch.product_blocks, kProductThreads, kProductSharedBytes, seed, [&](auto& block) { products_kernel(block, launch.args); });
  launch_on_host(launch.rows, kSoftmaxThreads, kSoftmaxSharedBytes, seed, [&](auto& block) { softmax_kernel(block, launch.args); });
}

/// A plan in guarded memory.
struct Made {
  plan::cuda::ListsSpace space;
  Guarded memory, workspace;
  FlexLaunch launch;
  Plan plan;

  Made(const Inputs& inputs, const FlexParams& params, unsigned seed)
      : space(space_of(inputs, params)), memory(plan::cuda::bytes_of(space)), workspace(bytes_of(inputs, params)) {
    PlanData data = begin_plan(inputs.mask, inputs.mask, score_rows(inputs, params.tile), inputs.batch(), inputs.heads_q(), Context{});
    plan::cuda::MemoryParts parts(memory.data());
    data.by_query = plan::cuda::place_lists(space, parts, {});
    flex_launch(inputs, params, &data, workspace.data(), launch);
    const auto heads = static_cast<long>(launch.last.args.batch_heads);
    testing::run_last_queries(launch.last, seed);
    run_means(launch.last_mean, seed);
    run_means(launch.map, seed);
    launch_on_host(heads, kFlexThreads, flex_shared_bytes(launch.args.tiles), seed, [&](auto& block) { flex_kernel(block, launch.args); });
    launch_on_host(heads, kFlexThreads, flex_map_shared_bytes(), seed, [&](auto& block) { flex_map_kernel(block, launch.args); });
    const PlanLaunch& rows = launch.plan;
    const int tiles = rows.args.tiles, threads = choose_threads(tiles);
    launch_on_host(rows.blocks, threads, choose_shared_bytes(tiles), seed, [&](auto& block) { choose_kernel<true>(block, rows.args); });
    launch_on_host(1, plan::cuda::kPlaceRowsThreads, plan::cuda::place_rows_shared_bytes(), seed,
                   [&](auto& block) { plan::cuda::place_rows_kernel(block, rows.place); });
    launch_on_host(rows.blocks, threads, write_shared_bytes(tiles), seed, [&](auto& block) { write_runs_kernel(block, rows.args); });
    plan = std::make_shared<const PlanData>(std::move(data));
  }
  static plan::cuda::ListsSpace space_of(const Inputs& inputs, const FlexParams& params) {
    const Scores scores = score_space(inputs, params.tile, nullptr);
    return plan_space(scores, most_runs_of(scores, {}));
  }
  static size_t bytes_of(const Inputs& inputs, const FlexParams& params) {
    FlexLaunch counted;
    return flex_launch(inputs, params, nullptr, nullptr, counted);
  }
};

TEST(DeviceFlex, EqualsTheDefinition) {
  unsigned seed = 700;
  int64_t by_map = 0, by_lines = 0;
  for (const testing::Sizes& s : std::vector<testing::Sizes>{
           {1, 4, 2, 500, 500, 16}, {2, 2, 1, 131, 131, 16}, {1, 2, 1, 65, 300, 16}, {1, 2, 2, 64, 256, 16}, {1, 2, 1, 1, 177, 16}}) {
    for (const int variant : {0, 1, 2, 3}) {
      method::FlexPrefillOptions options;
      options.tile = 16;
      options.tau = variant == 0 ? 0.0f : variant == 1 ? 1.0f : .35f;
      options.gamma = variant == 3 ? .5f : .8f;
      if (variant == 2) options.min_budget = 3, options.max_budget = 4;
      SCOPED_TRACE(::testing::Message() << s << " variant " << variant);
      testing::TestProblem test(s, Dtype::f32, Mask::causal(), ++seed);
      const Inputs inputs{.q = test.q.view, .k = test.k.view, .mask = Mask::causal(), .softmax_scale = .25f};
      const Made made(inputs, {options.gamma, options.tau, options.min_budget, options.max_budget, options.tile}, seed);
      ASSERT_TRUE(made.memory.is_intact() && made.workspace.is_intact());
      ASSERT_EQ(made.plan->by_query.status.at<int32_t>(0), 0);
      ASSERT_NO_THROW(validate(made.plan, test.problem.mask));
      std::vector<std::pair<double, std::vector<std::vector<bool>>>> heads;
      for (int64_t b = 0; b < s.batch; ++b) {
        for (int h = 0; h < s.heads_q; ++h) {
          testing::FlexPrefillDefinition definition{test, options};
          auto has = definition.head(b, h);
          heads.emplace_back(definition.distance, std::move(has));
          (definition.is_by_map ? by_map : by_lines) += 1;
        }
      }
      testing::expect_tiles(
          made.plan, test, 16,
          [&](int64_t b, int h, size_t, int64_t, int64_t q_last) {
            const auto& [distance, has] = heads[static_cast<size_t>(b * s.heads_q + h)];
            testing::Choice choice{{}, distance};
            const int64_t m = (q_last - 1 + s.seqlen_k - s.seqlen_q) / 16;
            for (size_t j = 0; j < has.size(); ++j) {
              if (has[static_cast<size_t>(m)][j]) choice.tiles.insert(static_cast<int64_t>(j));
            }
            return choice;
          },
          1e-6);
    }
  }
  EXPECT_GT(by_map, 10);
  EXPECT_GT(by_lines, 10);
}

// The walk over values is the host's count_cover(), whatever their sizes, ties and zeros.
TEST(DeviceFlex, CoversAsTheHostDoes) {
  std::mt19937 engine(7);
  for (int round = 0; round < 200; ++round) {
    std::vector<float> values(static_cast<size_t>(std::uniform_int_distribution<int>(1, 3000)(engine)));
    std::exponential_distribution<float> draw(1);
    double total = 0;
    for (float& value : values) {
      value = round % 4 == 0 ? static_cast<float>(engine() % 4) / 16384 : std::pow(draw(engine), round % 2 == 0 ? 1.0f : 6.0f);
      total += static_cast<double>(value);
    }
    for (float& value : values) value = static_cast<float>(static_cast<double>(value) / total);
    const float share = static_cast<float>(engine() % 1000) / 1000;
    int64_t covered = -1;
    launch_on_host(1, kFlexThreads, flex_map_shared_bytes(), 1, [&](auto& block) {
      machine::cuda::SharedParts parts(block.shared());
      const CoverParts at(parts);
      covered = cover_cut(
                    block, at, static_cast<int64_t>(values.size()), [&](int64_t i) { return values[static_cast<size_t>(i)]; }, fixed_of(share))
                    .covered;
    });
    const int64_t want = method::count_cover(values, static_cast<double>(share)), got = std::min(covered + 1, static_cast<int64_t>(values.size()));
    // Equal values make a cut of many that rounding moves by one.
    EXPECT_NEAR(static_cast<double>(got), static_cast<double>(want), round % 4 == 0 ? 1.0 : 0.0) << round;
  }
}

TEST(DeviceFlex, ReadsAllWhereNothingIsKnown) {
  testing::TestTensor q = testing::random_tensor(Dtype::bf16, 1, 1, 200, 8, 1, 2);
  const testing::TestTensor k = testing::random_tensor(Dtype::bf16, 1, 1, 200, 8, 2, 2);
  q.set(0, 0, 195, 1, std::numeric_limits<float>::quiet_NaN());
  const Inputs inputs{.q = q.view, .k = k.view, .mask = Mask::causal()};
  const Made made(inputs, {.tile = 16}, 1);
  EXPECT_TRUE(testing::bits_of(*made.plan, true) == testing::bits_of_mask(Mask::causal(), 1, 1, 200, 200));
}

}  // namespace
}  // namespace tilewise::select::cuda
