// SPDX-License-Identifier: Apache-2.0
// The kernels of mean_pool_scores() on a GPU, run on the CPU line by line, against the host's mean_pool_scores().
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

#include "tests/machine/cuda/host_block.h"
#include "tests/plan/cuda/device_plan_testing.h"
#include "tests/select/testing.h"
#include "tilewise/select/cuda/mean_pool_args.h"

namespace tilewise::select::cuda {
namespace {

using testing::Guarded;
using testing::launch_on_host;

void run(const MeanPoolLaunch& launch, unsigned seed) {
  launch_on_host(launch.pool_blocks, kPoolThreads, kPoolSharedBytes, seed, [&](auto& block) { pool_kernel(block, launch.args); });
  launch_on_host(launch.product_blocks, kProductThreads, kProductSharedBytes, seed, [&](auto& block) { products_kernel(block, launch.args); });
  launch_on_host(launch.rows, kSoftmaxThreads, kSoftmaxSharedBytes, seed, [&](auto& block) { softmax_kernel(block, launch.args); });
}

TEST(DeviceMeanPool, ScoresAsTheHostDoes) {
  Context context;
  std::mt19937_64 engine(1);
  const auto uniform = [&](int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(engine); };
  for (unsigned seed = 0; seed < 60; ++seed) {
    const int64_t batch = uniform(1, 2), heads_kv = uniform(1, 2), heads_q = heads_kv * uniform(1, 2);
    const int64_t seqlen_q = uniform(1, seed % 6 == 0 ? 1200 : 150), seqlen_k = uniform(1, seed % 6 == 0 ? 1200 : 150);
    const int64_t dims[] = {1, 8, 20, 64, 128, 264};
    const int64_t dim = dims[uniform(0, 5)];
    const Dtype dtype = std::array{Dtype::f32, Dtype::bf16, Dtype::f16}[static_cast<size_t>(uniform(0, 2))];
    const testing::TestTensor q = testing::random_tensor(dtype, batch, heads_q, seqlen_q, dim, seed, 2),
                              k = testing::random_tensor(dtype, batch, heads_kv, seqlen_k, dim, seed + 1000, 2);
    Inputs inputs{.q = q.view, .k = k.view, .mask = Mask::causal(), .softmax_scale = 1 / std::sqrt(static_cast<float>(dim))};
    if (seed % 3 == 1) inputs.mask = Mask::full();
    if (seed % 3 == 2) inputs.mask.bands = {{uniform(0, seqlen_k), uniform(0, 9), uniform(0, 20)}};
    if (seed % 4 == 3) inputs.softcap = 5;
    const int tile = static_cast<int>(std::array<int64_t, 3>{16, 7, 64}[static_cast<size_t>(uniform(0, 2))]);
    ASSERT_EQ(refusal_of(inputs), std::nullopt);
    const Scores want = mean_pool_scores(inputs, tile, context);
    MeanPoolArgs sizes;
    const Guarded values(static_cast<size_t>(want.values.view.numel()) * sizeof(float)), workspace(mean_pool_workspace(inputs, want, nullptr, sizes));
    const Scores got = score_space(inputs, tile, values.data());
    ASSERT_EQ(got.values.view.shape(), want.values.view.shape());
    run(mean_pool_launch(inputs, got, workspace.data()), seed);
    ASSERT_TRUE(values.is_intact() && workspace.is_intact()) << seed;
    const auto *a = static_cast<const float*>(got.values.view.raw()), *b = static_cast<const float*>(want.values.view.raw());
    for (int64_t i = 0; i < want.values.view.numel(); ++i) ASSERT_NEAR(a[i], b[i], 2e-5f * b[i] + 1e-7f) << "seed " << seed << " at " << i;
  }
}

TEST(DeviceMeanPool, WidensHalfFloats) {
  for (uint32_t bits = 0; bits < 0x10000U; ++bits) {
    f16 half;
    half.bits = static_cast<uint16_t>(bits);
    const float want = static_cast<float>(half), got = float_of_f16(half.bits);
    ASSERT_TRUE(std::isnan(want) ? std::isnan(got) : std::bit_cast<uint32_t>(want) == std::bit_cast<uint32_t>(got)) << bits;
  }
}

// A query that is not finite spoils its own row alone, and selection then keeps all that the row sees.
TEST(DeviceMeanPool, ShowsWhatIsNotFinite) {
  Context context;
  const testing::TestTensor k = testing::random_tensor(Dtype::f32, 1, 1, 64, 8, 2);
  testing::TestTensor q = testing::random_tensor(Dtype::f32, 1, 1, 64, 8, 1);
  q.set(0, 0, 20, 3, std::numeric_limits<float>::quiet_NaN());
  const Inputs inputs{.q = q.view, .k = k.view, .mask = Mask::causal()};
  MeanPoolArgs sizes;
  Scores scores = score_space(inputs, 16, nullptr);
  const Guarded values(static_cast<size_t>(scores.values.view.numel()) * sizeof(float)),
      workspace(mean_pool_workspace(inputs, scores, nullptr, sizes));
  scores = score_space(inputs, 16, values.data());
  run(mean_pool_launch(inputs, scores, workspace.data()), 1);
  for (int64_t row = 0; row < 4; ++row) {
    double sum = 0;
    for (int64_t tile = 0; tile < 4; ++tile) sum += static_cast<double>(scores.row(0, 0, row)[tile]);
    EXPECT_EQ(std::isnan(sum), row == 1) << row;
  }
}

}  // namespace
}  // namespace tilewise::select::cuda
