// SPDX-License-Identifier: Apache-2.0
// The kernels that plan MInference's patterns on a GPU, run on the CPU line by line, against the host's lines and the host's method from the same lines.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

#include "tests/machine/cuda/host_block.h"
#include "tests/plan/cuda/device_plan_testing.h"
#include "tests/select/cuda/last_queries_testing.h"
#include "tests/select/cuda/random_scores.h"
#include "tests/select/testing.h"
#include "tilewise/methods/minference.h"
#include "tilewise/plan/validate.h"
#include "tilewise/select/cuda/patterns_args.h"

namespace tilewise::select::cuda {
namespace {

using testing::Guarded;
using testing::launch_on_host;
using testing::Random;

std::vector<int32_t> numbers_of(const uint32_t* bits, int64_t size) {
  std::vector<int32_t> numbers;
  for (int64_t i = 0; i < size; ++i) {
    if (((bits[i / 32] >> (i % 32)) & 1) != 0) numbers.push_back(static_cast<int32_t>(i));
  }
  return numbers;
}

void run_best_lines(const BestLinesArgs& args, long heads, unsigned seed) {
  launch_on_host(2 * heads, kLineThreads, best_lines_shared_bytes(), seed, [&](auto& block) { best_lines_kernel(block, args); });
}

void run(const PatternLaunch& all, unsigned seed) {
  if (all.has_lines) {
    testing::run_last_queries(all.last, seed);
    run_best_lines(all.best, static_cast<long>(all.last.args.batch_heads), seed);
  }
  if (all.has_tiles) {
    launch_on_host(all.pool.pool_blocks, kPoolThreads, kPoolSharedBytes, seed, [&](auto& block) { pool_kernel(block, all.pool.args); });
    launch_on_host(all.pool.product_blocks, kProductThreads, kProductSharedBytes, seed, [&](auto& block) { products_kernel(block, all.pool.args); });
  }
  const int tiles = all.plan.args.tiles, threads = choose_threads(tiles);
  const unsigned long shared = line_rows_shared_bytes(all.rows.words);
  launch_on_host(all.plan.blocks, threads, choose_shared_bytes(tiles), seed, [&](auto& block) { choose_kernel<true>(block, all.plan.args); });
  if (all.has_line_rows)
    launch_on_host(all.plan.blocks, kLineRowThreads, shared, seed, [&](auto& block) { line_rows_kernel<false>(block, all.rows); });
  launch_on_host(1, plan::cuda::kPlaceRowsThreads, plan::cuda::place_rows_shared_bytes(), seed,
                 [&](auto& block) { plan::cuda::place_rows_kernel(block, all.plan.place); });
  launch_on_host(all.plan.blocks, threads, write_shared_bytes(tiles), seed, [&](auto& block) { write_runs_kernel(block, all.plan.args); });
  if (all.has_line_rows)
    launch_on_host(all.plan.blocks, kLineRowThreads, shared, seed, [&](auto& block) { line_rows_kernel<true>(block, all.rows); });
}

TEST(DeviceLines, AreTheHosts) {
  for (unsigned seed = 0; seed < 60; ++seed) {
    Random random(seed);
    const int64_t size = random(1, seed % 5 == 0 ? 40000 : 400), words = line_words(size);
    std::vector<float> sums[2];
    for (auto& of : sums) {
      for (int64_t i = 0; i < size; ++i) {
        const double uniform = std::uniform_real_distribution<double>(0, 1)(random.engine);
        of.push_back(seed % 3 == 0 ? static_cast<float>(random(0, 3)) / 4 : static_cast<float>(std::exp(-40 * uniform)));
      }
    }
    if (seed % 10 == 9)
      sums[seed % 2][static_cast<size_t>(random(0, size - 1))] = seed % 4 == 1 ? std::nanf("") : std::numeric_limits<float>::infinity();
    const LineCounts counts{random(0, size + 3), random(1, size + 3), random(0, 30), random(1, 100)};
    const Guarded memory(static_cast<size_t>(2 * words) * 4);
    BestLinesArgs args{};
    args.seqlen_k = size;
    args.words = words;
    args.heads = 1;
    args.count[0][0] = static_cast<int>(counts.vertical);
    args.count[1][0] = static_cast<int>(counts.slash);
    args.forced[0] = static_cast<int>(counts.first_keys);
    args.forced[1] = static_cast<int>(counts.nearest_offsets);
    for (int kind = 0; kind < 2; ++kind) {
      args.sums[kind] = sums[kind].data();
      args.bits[kind] = static_cast<uint32_t*>(memory.data()) + kind * words;
    }
    run_best_lines(args, 1, seed);
    ASSERT_TRUE(memory.is_intact());
    const Lines want = best_lines(sums[0].data(), sums[1].data(), size, counts);
    ASSERT_EQ(numbers_of(args.bits[0], size), want.vertical) << seed;
    ASSERT_EQ(numbers_of(args.bits[1], size), want.slash) << seed;
  }
}

/// A pattern for each head, as the method and as the kernels are told it.
struct Patterns {
  method::MInferenceOptions options;
  PatternParams params;

  Patterns(Random& random, int heads, bool is_fixed_kind, int kind) {
    options.tile = params.tile = static_cast<int>(std::array<int64_t, 3>{16, 24, 64}[static_cast<size_t>(random(0, 2))]);
    options.aligned = params.aligned = random.chance(0.3);
    options.last = params.last = static_cast<int>(random(1, 90));
    options.first = params.first = static_cast<int>(random(0, 20));
    options.nearest = params.nearest = static_cast<int>(random(1, 40));
    params.read = Mask::causal();
    for (int head = 0; head < heads; ++head) {
      const int of = is_fixed_kind ? kind : static_cast<int>(random(0, 2));
      method::MInferenceOptions::Head host;
      host.pattern = static_cast<method::MInferenceOptions::Pattern>(of);
      host.sizes[0] = static_cast<int>(random(0, of == 2 ? 6 : 100));
      host.sizes[1] = static_cast<int>(random(1, 120));
      options.heads.push_back(host);
      PatternHead pattern;
      Mask::Band band{Mask::kAll, 0, 0};
      if (of == 0) {
        pattern.vertical = std::max(host.sizes[0], 30);
        pattern.slash = std::max(host.sizes[1], 50);
      } else if (of == 1) {
        pattern.kind = PatternHead::Kind::band;
        band = {host.sizes[1] - 1, 0, host.sizes[0]};
      } else {
        pattern.kind = PatternHead::Kind::tiles;
        pattern.tiles = host.sizes[0];
      }
      params.heads.push_back(pattern);
      params.read.head_class.push_back(static_cast<uint8_t>(params.read.bands.size()));
      params.read.bands.push_back(band);
    }
  }
};

/// A plan in guarded memory, with room for `short_by` runs fewer of each list.
struct Made {
  plan::cuda::ListsSpace space;
  Guarded memory, workspace;
  PatternLaunch launch;
  Plan plan;

  Made(const Inputs& inputs, const PatternParams& params, unsigned seed, const plan::cuda::ListsSpace& room)
      : space(room), memory(plan::cuda::bytes_of(room)), workspace(bytes_of(inputs, params)) {
    PlanData data = begin_plan(params.read, inputs.mask, score_rows(inputs, params.tile), inputs.batch(), inputs.heads_q(), Context{});
    plan::cuda::MemoryParts parts(memory.data());
    data.by_query = plan::cuda::place_lists(space, parts, {});
    pattern_launch(inputs, params, &data, workspace.data(), launch);
    run(launch, seed);
    plan = std::make_shared<const PlanData>(std::move(data));
  }
  static size_t bytes_of(const Inputs& inputs, const PatternParams& params) {
    PatternLaunch counted;
    return pattern_launch(inputs, params, nullptr, nullptr, counted);
  }
};

TEST(DevicePatterns, ReadWhatTheMethodReads) {
  int64_t picked = 0;
  for (unsigned seed = 0; seed < 90; ++seed) {
    Random random(seed);
    const int64_t batch = random(1, 2), heads_kv = random(1, 2), most = seed % 3 == 1 && seed % 2 == 0 ? 1500 : 260;
    const int heads = static_cast<int>(heads_kv * random(1, 2));
    const int64_t seqlen_q = random(1, most), seqlen_k = random(1, most);
    // Small whole numbers: means of 16 or 64 and their products are exact, so that both sides rank the same numbers, many of them equal.
    testing::TestTensor q = testing::make_tensor(Dtype::f32, batch, heads, seqlen_q, 8),
                        k = testing::make_tensor(Dtype::f32, batch, heads_kv, seqlen_k, 8);
    for (testing::TestTensor* x : {&q, &k}) {
      for (int64_t b = 0; b < batch; ++b)
        for (int64_t h = 0; h < x->view.dim(1); ++h)
          for (int64_t s = 0; s < x->view.dim(2); ++s)
            for (int64_t d = 0; d < 8; ++d) x->set(b, h, s, d, static_cast<float>(random(-2, 2)));
    }
    Patterns patterns(random, heads, seed % 3 != 0, static_cast<int>(seed % 3 == 1 ? 0 : 2));
    if (patterns.params.tile == 24) patterns.params.tile = patterns.options.tile = 32;  // exact means
    const Inputs inputs{.q = q.view, .k = k.view, .mask = Mask::causal(), .softmax_scale = .7f};
    ASSERT_EQ(refusal_of(inputs, patterns.params), std::nullopt);
    const Made made(inputs, patterns.params, seed, pattern_space(inputs, patterns.params));
    ASSERT_TRUE(made.memory.is_intact() && made.workspace.is_intact()) << seed;
    ASSERT_EQ(made.plan->by_query.status.at<int32_t>(0), 0) << seed;
    ASSERT_EQ(find_fault(made.plan), std::nullopt) << seed;
    // The host's method from the kernels' own lines.
    method::MInferenceOptions options = patterns.options;
    for (int64_t item = 0; item < batch * heads; ++item) {
      Lines lines;
      if (patterns.params.heads[static_cast<size_t>(item % heads)].kind == PatternHead::Kind::lines) {
        lines.vertical = numbers_of(made.launch.best.bits[0] + item * made.launch.best.words, seqlen_k);
        lines.slash = numbers_of(made.launch.best.bits[1] + item * made.launch.best.words, seqlen_k);
        const auto& head = patterns.params.heads[static_cast<size_t>(item % heads)];
        const Lines want = best_lines(made.launch.last.args.key + item * seqlen_k, made.launch.last.args.offset + item * seqlen_k, seqlen_k,
                                      {head.vertical, head.slash, options.first, options.nearest});
        ASSERT_EQ(lines.vertical, want.vertical);
        ASSERT_EQ(lines.slash, want.slash);
      }
      options.lines.push_back(lines);
    }
    Context context;
    const Problem problem{.q = q.view, .k = k.view, .softmax_scale = .7f};
    const Plan want = method::minference(problem, options, context).plan;
    ASSERT_EQ(testing::difference(*made.plan, *want, false), "")
        << "seed " << seed << " Sq " << seqlen_q << " Sk " << seqlen_k << " tile " << options.tile << " aligned " << options.aligned;
    ASSERT_TRUE(testing::bits_of(*made.plan, true) == testing::bits_of(*want, true)) << seed;
    const RunList& singles = made.plan->by_query.picked;
    for (int64_t i = 0; singles.has_runs() && i < singles.count.numel(); ++i) picked += static_cast<const int32_t*>(singles.count.raw())[i];
  }
  EXPECT_GT(picked, 1000);
}

TEST(DevicePatterns, ReadMoreWhereTheRoomEnds) {
  int64_t outgrew = 0;
  for (unsigned seed = 0; seed < 20; ++seed) {
    Random random(seed);
    const int64_t seqlen = random(200, 500);
    const testing::TestTensor q = testing::random_tensor(Dtype::bf16, 1, 2, seqlen, 8, seed, 2),
                              k = testing::random_tensor(Dtype::bf16, 1, 1, seqlen, 8, seed + 99, 2);
    Patterns patterns(random, 2, true, 0);
    patterns.params.aligned = false;
    const Inputs inputs{.q = q.view, .k = k.view, .mask = Mask::causal()};
    plan::cuda::ListsSpace room = pattern_space(inputs, patterns.params);
    room.picked = random(0, 100);
    room.masked = 2 * score_rows(inputs, patterns.params.tile).rows() + random(0, 20);
    const Made made(inputs, patterns.params, seed, room), full(inputs, patterns.params, seed, pattern_space(inputs, patterns.params));
    ASSERT_TRUE(made.memory.is_intact() && made.workspace.is_intact());
    ASSERT_EQ(find_fault(made.plan), std::nullopt) << seed;
    outgrew += made.plan->by_query.status.at<int32_t>(0);
    const testing::Bits got = testing::bits_of(*made.plan, true), least = testing::bits_of(*full.plan, true);
    for (size_t i = 0; i < got.values.size(); ++i) ASSERT_GE(got.values[i], least.values[i]) << seed;
  }
  EXPECT_GT(outgrew, 20);
}

// A head whose estimate is not finite reads everything; the one beside it does not.
TEST(DevicePatterns, ReadAllWhereNothingIsKnown) {
  testing::TestTensor q = testing::random_tensor(Dtype::bf16, 1, 2, 300, 8, 1, 2);
  const testing::TestTensor k = testing::random_tensor(Dtype::bf16, 1, 1, 300, 8, 2, 2);
  q.set(0, 0, 290, 1, std::numeric_limits<float>::quiet_NaN());
  PatternParams params;
  params.heads.assign(2, {PatternHead::Kind::lines, 30, 50, 0});
  params.read = Mask::causal();
  const Inputs inputs{.q = q.view, .k = k.view, .mask = Mask::causal()};
  const Made made(inputs, params, 1, pattern_space(inputs, params));
  const testing::Bits bits = testing::bits_of(*made.plan, true);
  int64_t read[2] = {0, 0};
  for (size_t i = 0; i < bits.values.size(); ++i) read[i / (300 * 300)] += bits.values[i];
  EXPECT_EQ(read[0], 300 * 301 / 2);
  EXPECT_LT(read[1], read[0]);
}

TEST(DevicePatterns, RefuseWhatTheyDoNotTake) {
  const testing::TestTensor x = testing::make_tensor(Dtype::bf16, 1, 2, 256, 8);
  const Inputs inputs{.q = x.view, .k = x.view, .mask = Mask::causal()};
  PatternParams params;
  params.heads.assign(2, {});
  params.read = Mask::causal();
  EXPECT_EQ(refusal_of(inputs, params), std::nullopt);
  Inputs spans = inputs;
  spans.mask.bands.clear();
  EXPECT_NE(refusal_of(spans, params), std::nullopt);
  params.read.bands.clear();
  EXPECT_NE(refusal_of(inputs, params), std::nullopt);
}

}  // namespace
}  // namespace tilewise::select::cuda
