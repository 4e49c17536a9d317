// SPDX-License-Identifier: Apache-2.0
// One million tokens are planned and run: 32-bit tokens and 64-bit offsets hold, and memory grows with what is stored, not with the square of the length.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

#include "tilewise/attend/cpu/forward.h"
#include "tilewise/machine/cpu/context.h"
#include "tilewise/plan/builder.h"
#include "tilewise/plan/count.h"
#include "tilewise/plan/make.h"
#include "tilewise/plan/mask.h"
#include "tilewise/plan/validate.h"

namespace tilewise::attend {
namespace {

constexpr int64_t kTokens = 1'000'003;  // a ragged end
constexpr int64_t kHeadDim = 8;
constexpr double kDensity = 0.001;

size_t bytes_of(const PlanData& plan) {
  size_t total = 0;
  for (const Buffer& buffer : plan.memory) total += buffer.bytes();
  return total;
}

struct Inputs {
  Tensor q, k, v, out, lse;

  Inputs() {
    for (Tensor* const tensor : {&q, &k, &v, &out}) *tensor = Tensor(host_memory(), Dtype::f32, {1, 1, kTokens, kHeadDim});
    lse = Tensor(host_memory(), Dtype::f32, {1, 1, kTokens});
    uint64_t state = 1;
    for (const Tensor* const tensor : {&q, &k, &v}) {
      for (int64_t i = 0; i < tensor->view.numel(); ++i) {
        state = state * 6364136223846793005U + 1442695040888963407U;
        static_cast<float*>(tensor->view.raw())[i] = static_cast<float>(static_cast<int32_t>(state >> 32)) * 0x1p-30f;
      }
    }
  }
};

// The row of one query in f64, from the keys that `reads` names.
template <class Reads>
void expect_query(const Inputs& inputs, int64_t query, const Reads& reads) {
  const auto* const q = static_cast<const float*>(inputs.q.view.raw()) + query * kHeadDim;
  std::vector<double> s;
  std::vector<int64_t> keys;
  double most = -std::numeric_limits<double>::infinity(), sum = 0;
  for (int64_t key = 0; key < kTokens; ++key) {
    if (!reads(key)) continue;
    const auto* const k = static_cast<const float*>(inputs.k.view.raw()) + key * kHeadDim;
    double dot = 0;
    for (int64_t d = 0; d < kHeadDim; ++d) dot += static_cast<double>(q[d]) * static_cast<double>(k[d]);
    s.push_back(dot / std::sqrt(static_cast<double>(kHeadDim)));
    keys.push_back(key);
    most = std::max(most, s.back());
  }
  ASSERT_FALSE(keys.empty());
  double out[kHeadDim] = {};
  for (size_t i = 0; i < s.size(); ++i) {
    const double p = std::exp(s[i] - most);
    sum += p;
    for (int64_t d = 0; d < kHeadDim; ++d) out[d] += p * static_cast<double>(static_cast<const float*>(inputs.v.view.raw())[keys[i] * kHeadDim + d]);
  }
  for (int64_t d = 0; d < kHeadDim; ++d) EXPECT_NEAR(static_cast<double>(inputs.out.view.at<float>(0, 0, query, d)), out[d] / sum, 4e-6) << query;
  EXPECT_NEAR(static_cast<double>(inputs.lse.view.at<float>(0, 0, query)), most + std::log(sum), 4e-6) << query;
}

// Runs the plan and gives the most memory that the call held.
size_t run(const Inputs& inputs, const Plan& plan) {
  Context context = cpu_context(2);
  const auto counting = std::make_shared<CountingMemory>(context.memory);
  context.memory = counting;
  const Ran ran = cpu::forward(
      {.q = inputs.q.view, .k = inputs.k.view, .v = inputs.v.view, .out = inputs.out.view, .lse = inputs.lse.view, .plan = plan}, context);
  EXPECT_EQ(ran.pairs_read, reads(plan));
  return counting->peak_bytes();
}

constexpr size_t kWorkers = size_t{4} << 20;  // what two workers hold, whatever the length
const std::vector<int64_t> kSomeQueries{0, 1, 63, 64, 511'999, 999'999, kTokens - 1};

TEST(MillionTokens, AWindowWithASinkPlansAndRuns) {
  Mask mask;
  mask.bands = {{.left = static_cast<int64_t>(kDensity * kTokens / 2), .right = static_cast<int64_t>(kDensity * kTokens / 2), .sink = 4}};
  const Plan plan = dense_plan({.seqlen_q = kTokens, .seqlen_k = kTokens, .tile = 128, .mask = mask});
  EXPECT_FALSE(find_fault(plan).has_value());
  EXPECT_LT(bytes_of(*plan), size_t{2} << 20);
  const double share = static_cast<double>(allowed_pairs(plan)) / (static_cast<double>(kTokens) * kTokens);
  EXPECT_NEAR(share, kDensity, kDensity * 0.02);
  const Inputs inputs;
  EXPECT_LT(run(inputs, plan), kWorkers);
  for (const int64_t query : kSomeQueries) {
    expect_query(inputs, query, [&](int64_t key) { return plan::allows(mask, 0, 0, query, key, 0); });
  }
}

// Tiles drawn for each row, over an order that scatters queries and keys: the copies of k and v, and nothing else, grow with the length.
TEST(MillionTokens, DrawnTilesUnderAnOrderPlanAndRun) {
  constexpr int kTile = 64;
  const int64_t rows = (kTokens + kTile - 1) / kTile, slots = rows * kTile;
  PlanData data;
  data.seqlen_q = data.seqlen_k = kTokens;
  data.dense_reads = kTokens * kTokens;
  data.mask = Mask::full();
  std::vector<int32_t> tokens(static_cast<size_t>(slots));
  const int64_t step = 700'001;  // prime to `slots`: every slot once
  ASSERT_EQ(std::gcd(step, slots), 1);
  for (int64_t s = 0; s < slots; ++s) {
    const int64_t token = s * step % slots;
    tokens[static_cast<size_t>(s)] = token < kTokens ? static_cast<int32_t>(token) : -1;
  }
  Tensor token(host_memory(), Dtype::i32, {1, 1, slots});
  std::copy(tokens.begin(), tokens.end(), static_cast<int32_t*>(token.view.raw()));
  data.memory.push_back(std::move(token.buffer));
  data.order_q.token = data.order_k.token = token.view;
  ListsBuilder builder(kTile, 1, 1, rows);
  std::vector<std::vector<int32_t>> tiles(static_cast<size_t>(rows));
  std::mt19937_64 rng(3);
  const auto count = static_cast<int64_t>(kDensity * static_cast<double>(rows));
  for (int64_t row = 0; row < rows; ++row) {
    std::vector<int32_t>& drawn = tiles[static_cast<size_t>(row)];
    for (int64_t i = 0; i < count; ++i) drawn.push_back(static_cast<int32_t>(rng() % static_cast<uint64_t>(rows)));
    std::sort(drawn.begin(), drawn.end());
    drawn.erase(std::unique(drawn.begin(), drawn.end()), drawn.end());
    RowRuns runs;
    for (const int32_t tile : drawn) runs.masked.push_back({tile * kTile, (tile + 1) * kTile});  // some hold padding
    builder.set(0, 0, row, std::move(runs));
  }
  data.by_query = builder.build(host_memory(), data);
  const Plan plan = make_plan(std::move(data));
  EXPECT_FALSE(find_fault(plan).has_value());
  EXPECT_NEAR(density(plan), kDensity, kDensity * 0.1);
  EXPECT_LT(bytes_of(*plan), size_t{8} << 20);
  const Inputs inputs;
  EXPECT_LT(run(inputs, plan), kWorkers + 2 * static_cast<size_t>(slots * kHeadDim) * sizeof(float));
  std::vector<int32_t> slot_of(static_cast<size_t>(kTokens));
  for (int64_t s = 0; s < slots; ++s) {
    if (tokens[static_cast<size_t>(s)] >= 0) slot_of[static_cast<size_t>(tokens[static_cast<size_t>(s)])] = static_cast<int32_t>(s);
  }
  for (const int64_t query : kSomeQueries) {
    const std::vector<int32_t>& drawn = tiles[static_cast<size_t>(slot_of[static_cast<size_t>(query)] / kTile)];
    expect_query(inputs, query,
                 [&](int64_t key) { return std::binary_search(drawn.begin(), drawn.end(), slot_of[static_cast<size_t>(key)] / kTile); });
  }
}

}  // namespace
}  // namespace tilewise::attend
