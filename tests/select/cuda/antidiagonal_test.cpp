// SPDX-License-Identifier: Apache-2.0
// The kernel of antidiagonal_scores() on a GPU, run on the CPU line by line, against the paper's definition in f64 and the host's antidiagonal_scores().
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

#include "tests/machine/cuda/host_block.h"
#include "tests/plan/cuda/device_plan_testing.h"
#include "tests/select/antidiagonal_reference.h"
#include "tilewise/select/cuda/antidiagonal_args.h"

namespace tilewise::select::cuda {
namespace {

using testing::Guarded;
using testing::launch_on_host;

void run(const AntidiagonalLaunch& launch, unsigned seed) {
  launch_on_host(launch.blocks, kScoreThreads, kScoreSharedBytes, seed, [&](auto& block) {
    if (launch.dtype == 0) antidiagonal_kernel<0>(block, launch.args, launch.blocks);
    if (launch.dtype == 1) antidiagonal_kernel<1>(block, launch.args, launch.blocks);
    if (launch.dtype == 2) antidiagonal_kernel<2>(block, launch.args, launch.blocks);
  });
}

/// Scores in guarded memory; `blocks` 0: as many as the launch would have.
struct Made {
  Scores scores;
  Guarded values, workspace;

  Made(const Inputs& inputs, const AntidiagonalParams& params, unsigned seed, long blocks = 0, bool takes_largest = false)
      : scores(score_space(inputs, params.tile, nullptr)),
        values(static_cast<size_t>(scores.values.view.numel()) * sizeof(float)),
        workspace(bytes_of(inputs, params, scores)) {
    scores = score_space(inputs, params.tile, values.data());
    AntidiagonalLaunch launch = antidiagonal_launch(inputs, params, scores, workspace.data(), takes_largest);
    if (blocks > 0) launch.blocks = std::min(launch.blocks, blocks);
    run(launch, seed);
  }
  static size_t bytes_of(const Inputs& inputs, const AntidiagonalParams& params, const Scores& scores) {
    AntidiagonalLaunch launch;
    return antidiagonal_workspace(inputs, params, scores, nullptr, launch);
  }
};

struct Case {
  Dtype dtype;
  int64_t batch, heads_kv, group, seqlen_q, seqlen_k, dim;
  AntidiagonalParams params;
  bool is_causal;
  float softcap;
};

void expect_definition(const Case& c, unsigned seed) {
  const testing::TestTensor q = testing::random_tensor(c.dtype, c.batch, c.heads_kv * c.group, c.seqlen_q, c.dim, seed, 2),
                            k = testing::random_tensor(c.dtype, c.batch, c.heads_kv, c.seqlen_k, c.dim, seed + 1000, 2);
  const float scale = 4 / std::sqrt(static_cast<float>(c.dim));
  const Inputs inputs{.q = q.view, .k = k.view, .mask = c.is_causal ? Mask::causal() : Mask::full(), .softmax_scale = scale, .softcap = c.softcap};
  ASSERT_EQ(refusal_of(inputs, c.params), std::nullopt);
  const Made made(inputs, c.params, seed, seed % 3 == 0 ? 2 : 0);
  ASSERT_TRUE(made.values.is_intact() && made.workspace.is_intact()) << seed;
  testing::AntidiagonalDefinition def;
  def.tile = c.params.tile;
  def.stride = c.params.stride;
  def.kdb = c.params.kdb;
  def.terms = c.params.selector == Selector::double_inverse ? 2 : c.params.selector == Selector::triple_inverse ? 3 : 1;
  def.query_order = query_order(c.params);
  def.norm = static_cast<double>(c.params.norm);
  def.scale = static_cast<double>(scale);
  def.softcap = static_cast<double>(c.softcap);
  def.is_causal = c.is_causal;
  for (int64_t b = 0; b < c.batch; ++b) {
    for (int64_t h = 0; h < c.heads_kv * c.group; ++h) {
      const auto want = testing::antidiagonal_definition(q, k, b, h, h / c.group, def);
      ASSERT_EQ(static_cast<int64_t>(want.size()), made.scores.grid.rows());
      for (size_t row = 0; row < want.size(); ++row) {
        for (size_t tile = 0; tile < want[row].size(); ++tile) {
          const double got = static_cast<double>(made.scores.row(b, h, static_cast<int64_t>(row))[tile]);
          // f32 sums of up to 3 S D products of size 16: a logit may be off by 1e-5 of its size, a probability by as much.
          ASSERT_NEAR(got, want[row][tile], 1e-4 * want[row][tile] + 1e-6) << "seed " << seed << " row " << row << " tile " << tile;
        }
      }
    }
  }
}

TEST(DeviceAntidiagonal, ScoresAsDefined) {
  std::mt19937_64 engine(1);
  const auto uniform = [&](int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(engine); };
  for (unsigned seed = 0; seed < 48; ++seed) {
    Case c{};
    c.dtype = std::array{Dtype::bf16, Dtype::f16, Dtype::f32}[seed % 3];
    c.batch = uniform(1, 2);
    c.heads_kv = uniform(1, 2);
    c.group = uniform(1, 2);
    const int64_t most = seed % 8 == 0 ? 600 : 150;
    c.seqlen_q = uniform(1, most);
    c.seqlen_k = uniform(1, most);
    c.dim = std::array<int64_t, 5>{1, 8, 20, 64, 72}[static_cast<size_t>(uniform(0, 4))];
    // Parts of 1, 2, 4, 8, 16, 32, 64 groups; tiles of several parts; more than one group a unit.
    const AntidiagonalParams all[] = {{.tile = 16, .stride = 16},  {.tile = 32, .stride = 16},          {.tile = 64, .stride = 16},
                                      {.tile = 128, .stride = 16}, {.tile = 128, .stride = 8},          {.tile = 64, .stride = 2},
                                      {.tile = 128, .stride = 2},  {.tile = 48, .stride = 16},          {.tile = 96, .stride = 4},
                                      {.tile = 128, .stride = 1},  {.tile = 64, .stride = 8, .kdb = 2}, {.tile = 256, .stride = 2, .kdb = 4}};
    c.params = all[seed % std::size(all)];
    c.params.selector = std::array{Selector::inverse, Selector::inverse,        Selector::slash,
                                   Selector::random,  Selector::double_inverse, Selector::triple_inverse}[static_cast<size_t>(uniform(0, 5))];
    c.params.norm = seed % 5 == 0 ? .5f : 1;
    c.params.seed = seed;
    c.is_causal = uniform(0, 2) != 0;
    c.softcap = seed % 4 == 3 ? 3 : 0;
    ASSERT_NO_FATAL_FAILURE(expect_definition(c, seed)) << "Sq " << c.seqlen_q << " Sk " << c.seqlen_k << " D " << c.dim << " tile " << c.params.tile
                                                        << " stride " << c.params.stride << " causal " << c.is_causal;
  }
}

// More than one step of key groups, more than one item a block, and the same bits whatever the number of blocks.
TEST(DeviceAntidiagonal, TakesLongSequences) {
  const testing::TestTensor q = testing::random_tensor(Dtype::bf16, 1, 2, 2300, 64, 1), k = testing::random_tensor(Dtype::bf16, 1, 1, 2400, 64, 2);
  Context context;
  for (const Mask& mask : {Mask::causal(), Mask::full()}) {
    const Inputs inputs{.q = q.view, .k = k.view, .mask = mask, .softmax_scale = 1.0f};
    const AntidiagonalParams params{.tile = 128, .stride = 8};
    const Scores want = antidiagonal_scores(inputs, params, context);
    const Made made(inputs, params, 1), again(inputs, params, 2, 2);
    ASSERT_TRUE(made.values.is_intact() && made.workspace.is_intact() && again.workspace.is_intact());
    ASSERT_EQ(made.scores.values.view.shape(), want.values.view.shape());
    const auto *a = static_cast<const float*>(made.scores.values.view.raw()), *b = static_cast<const float*>(want.values.view.raw());
    for (int64_t i = 0; i < want.values.view.numel(); ++i) ASSERT_NEAR(a[i], b[i], 1e-4f * b[i] + 1e-6f) << i;
    EXPECT_EQ(std::memcmp(a, again.scores.values.view.raw(), made.values.bytes()), 0);
  }
}

// Logits that grow along the sequence, far beyond the range of a float's exponent: a unit's earlier strips fade, its own maximum stays.
TEST(DeviceAntidiagonal, FollowsTheLargestLogit) {
  testing::TestTensor q = testing::make_tensor(Dtype::f32, 1, 1, 1024, 1), k = testing::make_tensor(Dtype::f32, 1, 1, 1024, 1);
  for (int64_t i = 0; i < 1024; ++i) {
    q.set(0, 0, i, 0, 1);
    k.set(0, 0, i, 0, static_cast<float>(i - i % 2));
  }
  const Inputs inputs{.q = q.view, .k = k.view, .mask = Mask::causal(), .softmax_scale = 1};
  const AntidiagonalParams params{.tile = 16, .stride = 2};
  const Made made(inputs, params, 1);
  testing::AntidiagonalDefinition def;
  def.tile = 16;
  def.stride = 2;
  const auto want = testing::antidiagonal_definition(q, k, 0, 0, 0, def);
  for (size_t row = 0; row < want.size(); ++row) {
    for (size_t tile = 0; tile < want[row].size(); ++tile)
      ASSERT_NEAR(static_cast<double>(made.scores.row(0, 0, static_cast<int64_t>(row))[tile]), want[row][tile], 1e-4) << row << " " << tile;
  }
}

// A query that is not finite spoils the row of its group alone; an infinite key those that see it.
TEST(DeviceAntidiagonal, ShowsWhatIsNotFinite) {
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    testing::TestTensor q = testing::random_tensor(Dtype::bf16, 1, 1, 128, 8, 1), k = testing::random_tensor(Dtype::bf16, 1, 1, 128, 8, 2);
    const Inputs inputs{.q = q.view, .k = k.view, .mask = Mask::causal()};
    const AntidiagonalParams params{.tile = 32, .stride = 8};
    const auto is_spoilt = [&](int64_t row) {
      const Made made(inputs, params, 1);
      double sum = 0;
      for (int64_t tile = 0; tile <= row; ++tile) sum += static_cast<double>(made.scores.row(0, 0, row)[tile]);
      return !std::isfinite(sum);
    };
    q.set(0, 0, 50, 3, bad);
    for (int64_t row = 0; row < 4; ++row) EXPECT_EQ(is_spoilt(row), row == 1) << row;
    q.set(0, 0, 50, 3, 0);
    k.set(0, 0, 70, 3, std::numeric_limits<float>::quiet_NaN());
    for (int64_t row = 0; row < 4; ++row) EXPECT_EQ(is_spoilt(row), row >= 2) << row;
  }
}

// With stride 1 a tile's score is the true probability on it: the largest over a row's queries, for the rule max of oracle.
TEST(DeviceAntidiagonal, TakesTheLargestQuery) {
  for (const bool is_causal : {true, false}) {
    const int64_t seqlen_q = 150, seqlen_k = 170, tile = 16;
    const testing::TestTensor q = testing::random_tensor(Dtype::bf16, 1, 1, seqlen_q, 16, 3, 2),
                              k = testing::random_tensor(Dtype::bf16, 1, 1, seqlen_k, 16, 4, 2);
    const Inputs inputs{.q = q.view, .k = k.view, .mask = is_causal ? Mask::causal() : Mask::full(), .softmax_scale = .5f};
    const Made made(inputs, {.tile = 16, .stride = 1}, 1, 0, true);
    ASSERT_TRUE(made.values.is_intact() && made.workspace.is_intact());
    const std::vector<int64_t> edges = testing::row_edges(seqlen_q, seqlen_k, 16, is_causal);
    for (size_t row = 0; row + 1 < edges.size(); ++row) {
      std::vector<double> want(static_cast<size_t>((seqlen_k + tile - 1) / tile), 0.0);
      for (int64_t query = edges[row]; query < edges[row + 1]; ++query) {
        const int64_t seen = is_causal ? query + seqlen_k - seqlen_q + 1 : seqlen_k;
        std::vector<double> mass(want.size(), 0.0);
        double total = 0;
        for (int64_t key = 0; key < seen; ++key) {
          double dot = 0;
          for (int64_t d = 0; d < 16; ++d) dot += q.get(0, 0, query, d) * k.get(0, 0, key, d);
          const double p = std::exp(.5 * dot);
          mass[static_cast<size_t>(key / tile)] += p;
          total += p;
        }
        for (size_t j = 0; j < want.size(); ++j) want[j] = std::max(want[j], mass[j] / total);
      }
      for (size_t j = 0; j < want.size(); ++j)
        ASSERT_NEAR(static_cast<double>(made.scores.row(0, 0, static_cast<int64_t>(row))[j]), want[j], 1e-4 * want[j] + 1e-6) << row << " " << j;
    }
  }
}

TEST(DeviceAntidiagonal, RefusesWhatItDoesNotTake) {
  const testing::TestTensor x = testing::make_tensor(Dtype::bf16, 1, 1, 256, 8);
  const Inputs inputs{.q = x.view, .k = x.view, .mask = Mask::causal()};
  EXPECT_EQ(refusal_of(inputs, {.tile = 128, .stride = 1}), std::nullopt);
  EXPECT_NE(refusal_of(inputs, {.tile = 256, .stride = 1}), std::nullopt);
  EXPECT_EQ(refusal_of(inputs, {.tile = 256, .stride = 1, .kdb = 2}), std::nullopt);
  EXPECT_NE(refusal_of(inputs, {.tile = 256, .stride = 128}), std::nullopt);
  Inputs spans = inputs;
  spans.mask.bands.clear();
  EXPECT_NE(refusal_of(spans, {}), std::nullopt);
}

}  // namespace
}  // namespace tilewise::select::cuda
