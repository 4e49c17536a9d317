// SPDX-License-Identifier: Apache-2.0
// The builder, the dense plan, masks, counts, bits, hashes and heads.
#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "tests/attend/random_plan.h"
#include "tests/plan/plan_testing.h"
#include "tilewise/plan/bits.h"
#include "tilewise/plan/builder.h"
#include "tilewise/plan/complete.h"
#include "tilewise/plan/content_hash.h"
#include "tilewise/plan/count.h"
#include "tilewise/plan/heads.h"
#include "tilewise/plan/make.h"
#include "tilewise/plan/mask.h"
#include "tilewise/plan/rows.h"
#include "tilewise/plan/validate.h"

namespace tilewise {
namespace {

using testing::clone;

/// What a call that must fail says.
std::string message_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

PlanData sizes(int64_t seqlen_q, int64_t seqlen_k, int heads = 1) {
  PlanData data;
  data.seqlen_q = seqlen_q;
  data.seqlen_k = seqlen_k;
  data.heads_q = heads;
  data.dense_reads = seqlen_q * seqlen_k * heads;
  data.mask = Mask::full();
  return data;
}

TEST(ListsBuilder, SortsJoinsAndKeepsArraysOnlyWhereTheySaySomething) {
  PlanData data = sizes(100, 300);
  ListsBuilder builder(64, 1, 1, 2);
  builder.set(0, 0, 0, {{{128, 192, {}}, {0, 64, {}}, {64, 128, {}}}, {}, {{250, 253, {}}}});
  builder.set(0, 0, 1, {{{64, 128, {}}, {192, 300, {}}}, {{0, 32, {~uint64_t{0}}}}, {}});
  const Lists lists = builder.build(host_memory(), data);
  EXPECT_EQ(lists.whole.count.at<int32_t>(0, 0, 0), 1);  // three touching runs
  EXPECT_EQ(lists.whole.stop.at<int32_t>(0), 192);
  EXPECT_EQ(lists.whole.grain, 64);  // the run that ends with the keys is no multiple of it
  EXPECT_EQ(lists.picked.start.dim(0), 3);
  EXPECT_FALSE(lists.picked.stop.has_value());
  EXPECT_FALSE(lists.masked.rows.has_value());  // every slot reads the run
  EXPECT_FALSE(lists.masked.stop.has_value());  // one run: its length is the grain
  EXPECT_EQ(lists.masked.grain, 32);
  EXPECT_FALSE(lists.edge.has_value());
}

TEST(ListsBuilder, ImpliesStopsOfEqualRunsCutByTheEnd) {
  PlanData data = sizes(64, 150);
  ListsBuilder builder(64, 1, 1, 1);
  builder.keep_touching_apart();
  builder.set(0, 0, 0, {{{0, 64, {}}, {64, 128, {}}, {128, 150, {}}}, {}, {}});
  data.by_query = builder.build(host_memory(), data);
  EXPECT_EQ(data.by_query.whole.count.at<int32_t>(0, 0, 0), 3);
  EXPECT_EQ(data.by_query.whole.grain, 64);
  EXPECT_FALSE(data.by_query.whole.stop.has_value());
  EXPECT_EQ(reads(make_plan(std::move(data))), 64 * 150);
}

TEST(ListsBuilder, SharesListsAndFillsFromThreads) {
  PlanData data = sizes(64 * 16, 64 * 16, 2);
  ListsBuilder builder(64, 1, 2, 16);
  std::vector<std::thread> threads;
  for (int64_t part = 0; part < 4; ++part) {
    threads.emplace_back([&builder, part] {
      for (int64_t row = part * 4; row < part * 4 + 4; ++row) builder.set(0, 0, row, {{{0, static_cast<int32_t>(64 * row + 64), {}}}, {}, {}});
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (int64_t row = 0; row < 16; ++row) builder.share(0, 1, row, 0, 0, row);
  builder.share(0, 0, 3, 2);
  data.by_query = builder.build(host_memory(), data);
  EXPECT_EQ(data.by_query.whole.start.dim(0), 15);
  const Plan plan = make_plan(std::move(data));
  EXPECT_EQ(plan->by_query.whole.begin.at<int64_t>(0, 1, 3), plan->by_query.whole.begin.at<int64_t>(0, 0, 2));
  EXPECT_FALSE(find_fault(plan).has_value());
}

TEST(ListsBuilder, RefusesBadRows) {
  PlanData data = sizes(100, 300);
  EXPECT_NE(message_of([] { ListsBuilder(0, 1, 1, 1); }).find("tile is 0"), std::string::npos);
  EXPECT_NE(message_of([] { ListsBuilder(64, 0, 1, 1); }).find("batch 0"), std::string::npos);
  EXPECT_NE(message_of([] { ListsBuilder(64, 1, 1, 2, {0, 64}); }).find("takes 3"), std::string::npos);
  const auto refuses = [&](RowRuns runs, const char* text) {
    ListsBuilder builder(64, 1, 1, 2);
    builder.set(0, 0, 1, std::move(runs));
    const size_t buffers = data.memory.size();
    EXPECT_NE(message_of([&] { builder.build(host_memory(), data); }).find(text), std::string::npos) << text;
    EXPECT_EQ(data.memory.size(), buffers);  // nothing was written
  };
  refuses({{{5, 5, {}}}, {}, {}}, "the run [5, 5)");
  refuses({{{9, 3, {}}}, {}, {}}, "the run [9, 3)");
  refuses({{{-1, 3, {}}}, {}, {}}, "the run [-1, 3)");
  refuses({{}, {{290, 301, {}}}, {}}, "within [0, 300)");
  refuses({{{0, 3, {1}}}, {}, {}}, "put it into masked");
  refuses({{}, {{0, 3, {1, 1}}}, {}}, "takes 1 for tile 64");
  refuses({{}, {{0, 3, {uint64_t{1} << 40}}}, {}}, "no slot of row 1");  // row 1 has 36 slots
  ListsBuilder builder(64, 1, 1, 2);
  EXPECT_NE(message_of([&] { builder.set(0, 0, 2, {}); }).find("outside"), std::string::npos);
  EXPECT_NE(message_of([&] { builder.share(0, 0, 1, 0); }).find("no runs of its own"), std::string::npos);
}

TEST(DensePlan, ReadsWhatEachRowCanSee) {
  struct Case {
    Mask::Band band;
    int64_t seqlen_q, seqlen_k;
    int tile;
  };
  const std::vector<Case> cases{
      {{}, 200, 333, 64},          {{Mask::kAll, 0, 0}, 200, 200, 64}, {{Mask::kAll, 0, 0}, 150, 333, 128}, {{99, 0, 0}, 300, 300, 64},
      {{99, 0, 20}, 300, 300, 64}, {{30, 10, 70}, 190, 250, 32},       {{Mask::kAll, 0, 0}, 200, 90, 64},   {{0, 0, 0}, 65, 65, 16},
      {{-5, 30, 3}, 100, 140, 64}, {{4, -2, 9}, 100, 100, 16}};
  for (const Case& c : cases) {
    const Plan plan =
        dense_plan({.seqlen_q = c.seqlen_q, .seqlen_k = c.seqlen_k, .tile = c.tile, .mask = {.bands = {c.band}}, .batch = 2, .heads_q = 3});
    EXPECT_FALSE(find_fault(plan, plan->mask).has_value()) << *find_fault(plan, plan->mask);
    EXPECT_DOUBLE_EQ(density(plan), 1.0);
    int64_t allowed = 0, dense = 0;
    for (int64_t first = 0; first < c.seqlen_q; first += c.tile) {
      const int64_t last = std::min<int64_t>(first + c.tile, c.seqlen_q);
      for (int64_t k = 0; k < c.seqlen_k; ++k) {
        int64_t seen = 0;
        for (int64_t q = first; q < last; ++q) seen += plan::band_allows(c.band, q + c.seqlen_k - c.seqlen_q, k) ? 1 : 0;
        allowed += seen;
        dense += seen > 0 ? last - first : 0;
      }
    }
    EXPECT_EQ(allowed_pairs(plan), allowed * 6);
    EXPECT_EQ(plan->dense_reads, dense * 6);
    Context context;
    const Plan both = complete(plan, context, c.tile);
    EXPECT_FALSE(find_fault(both).has_value());
  }
  // Aligned lengths need no words in the transpose.
  Context context;
  const Plan both = complete(dense_plan({.seqlen_q = 512, .seqlen_k = 512, .tile = 128}), context);
  EXPECT_FALSE(both->by_key.masked.rows.has_value());
}

TEST(DensePlan, SharesListsAmongHeadsOfAClass) {
  const Mask mask{.bands = {{Mask::kAll, 0, 0}, {63, 0, 16}}, .head_class = {0, 1, 1, 0}};
  const Plan plan = dense_plan({.seqlen_q = 500, .seqlen_k = 500, .tile = 64, .mask = mask, .batch = 1, .heads_q = 4});
  EXPECT_FALSE(find_fault(plan, mask).has_value());
  EXPECT_DOUBLE_EQ(density(plan), 1.0);
  EXPECT_EQ(plan->by_query.masked.begin.at<int64_t>(0, 3, 5), plan->by_query.masked.begin.at<int64_t>(0, 0, 5));
  EXPECT_NE(plan->by_query.masked.begin.at<int64_t>(0, 1, 5), plan->by_query.masked.begin.at<int64_t>(0, 0, 5));
  EXPECT_THROW(dense_plan({.seqlen_q = 10, .seqlen_k = 10, .tile = 15}), Error);
  EXPECT_THROW(dense_plan({.seqlen_q = -1, .seqlen_k = 10}), Error);
  EXPECT_THROW(dense_plan({.seqlen_q = 10, .seqlen_k = 10, .mask = {.bands = {}, .grids = {{{10, 3, 1, 1, false}}}}}), Error);
}

TEST(DensePlan, AMillionTokens) {
  const int64_t n = int64_t{1} << 20;
  const Plan plan = dense_plan({.seqlen_q = n, .seqlen_k = n, .tile = 128, .heads_q = 32});
  size_t bytes = 0;
  for (const Buffer& buffer : plan->memory) bytes += buffer.bytes();
  EXPECT_LE(bytes, size_t{400000});  // begin, count and start of two lists, one for all heads
  EXPECT_EQ(plan->dense_reads, 32 * (n * n / 2 + n * 64));
  EXPECT_FALSE(find_fault(plan).has_value());
}

TEST(Masks, AgreeWithTheirDefinitions) {
  const Mask::Band band{3, 1, 2};
  for (int64_t q = 0; q < 12; ++q) {
    for (int64_t k = 0; k < 15; ++k) {
      const int64_t t = q + 3;  // Sk - Sq = 3
      EXPECT_EQ(plan::allows({.bands = {band}}, 0, 0, q, k, 3), k <= t + 1 && (k < 2 || k >= t - 3));
    }
  }
  // Degrees of a neighbourhood: every query sees `window` keys per axis, starts ascend.
  for (int length = 1; length <= 13; ++length) {
    for (int window = 1; window <= length; ++window) {
      for (int stride = 1; stride <= window; ++stride) {
        int64_t before = 0;
        for (int i = 0; i < length; ++i) {
          const plan::AxisWindow w = plan::axis_window({length, window, stride, 1, false}, i);
          EXPECT_EQ(w.stop - w.start, window);
          EXPECT_GE(w.start, before);
          EXPECT_GE(w.start, 0);
          EXPECT_LE(w.stop, length);
          before = w.start;
          const plan::AxisWindow causal = plan::axis_window({length, window, stride, 1, true}, i);
          EXPECT_EQ(causal.stop, i + 1);
          EXPECT_TRUE(causal.contains(i));
        }
      }
    }
  }
  // visible_keys says what allows() says.
  std::mt19937_64 rng(3);
  for (int i = 0; i < 300; ++i) {
    const auto draw = [&](int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(rng); };
    const Mask mask{.bands = {{draw(0, 3) == 0 ? Mask::kAll : draw(-5, 40), draw(0, 3) == 0 ? Mask::kAll : draw(-5, 20), draw(0, 30)}}};
    const int64_t seqlen_q = 30, seqlen_k = draw(10, 50);
    for (int64_t q = 0; q < seqlen_q; ++q) {
      const plan::VisibleKeys keys = plan::visible_keys(mask, 0, 0, q, seqlen_k - seqlen_q, seqlen_k);
      for (int64_t k = 0; k < seqlen_k; ++k) EXPECT_EQ(keys.overlap(k, k + 1) == 1, plan::allows(mask, 0, 0, q, k, seqlen_k - seqlen_q));
    }
  }
}

TEST(Counts, FlopsFillAndRuns) {
  PlanData data = sizes(64, 64, 2);
  data.mask = Mask::causal();
  ListsBuilder builder(64, 1, 1, 1);
  builder.set(0, 0, 0, {{{0, 1, {}}}, {{1, 33, {}}, {40, 64, {0xffffffff00000000ull}}}, {}});
  data.by_query = builder.build(host_memory(), data);
  const Plan plan = make_plan(std::move(data));
  EXPECT_EQ(reads(plan), 2 * (64 + 64 * 32 + 32 * 24));
  int64_t allowed = 64;
  for (int64_t q = 0; q < 64; ++q) {
    for (int64_t k = 1; k < 64; ++k) allowed += k <= q && (k < 33 || (k >= 40 && q >= 32)) ? 1 : 0;
  }
  EXPECT_EQ(allowed_pairs(plan), 2 * allowed);
  EXPECT_DOUBLE_EQ(fill(plan), static_cast<double>(allowed) / (64 + 64 * 32 + 32 * 24));
  EXPECT_DOUBLE_EQ(flops(plan, 64, 32), 2.0 * 96 * static_cast<double>(reads(plan)));
  EXPECT_EQ(max_runs(plan), 3);
  EXPECT_EQ(empty_rows(plan), 0);
}

TEST(Bits, TokensAndTilesMatchTheMakersPairs) {
  using namespace attend::testing;
  for (uint64_t seed = 0; seed < 60; ++seed) {
    Rng rng(seed);
    PlanOptions o;
    o.batch = 2;
    o.heads_q = 2;
    o.heads_kv = 1;
    o.seqlen_q = uniform(rng, 1, 90);
    o.seqlen_k = uniform(rng, 1, 90);
    o.tile = 16;
    o.groups = 2;
    o.mask = static_cast<MaskKind>(uniform(rng, 0, 6));
    o.has_picked = o.has_rows = true;
    o.has_order_q = chance(rng, 0.5);
    o.has_order_k = chance(rng, 0.5);
    if (chance(rng, 0.4)) o.pools = {4};
    o.is_by_key = chance(rng, 0.4);
    const RandomPlan random = random_plan(rng, o);
    const Tensor bits = to_bits(random.plan), with_pools = to_bits(random.plan, true), tiles = to_tiles(random.plan, 16, 8);
    for (int64_t b = 0; b < 2; ++b) {
      for (int64_t h = 0; h < 2; ++h) {
        const auto& tokens = random.tokens_k[static_cast<size_t>(b * 2 + h)];
        for (int64_t q = 0; q < o.seqlen_q; ++q) {
          std::vector<bool> plain(static_cast<size_t>(o.seqlen_k)), pooled(static_cast<size_t>(o.seqlen_k));
          for (int64_t slot = 0; slot < random.slots; ++slot) {
            if (!random.has(b, h, q, slot)) continue;
            const int64_t first = slot < random.slots_k ? slot : (slot - random.slots_k) * 4;
            const int64_t last = slot < random.slots_k ? slot + 1 : std::min(first + 4, random.slots_k);
            for (int64_t s = first; s < last; ++s) {
              if (tokens[static_cast<size_t>(s)] < 0) continue;
              pooled[static_cast<size_t>(tokens[static_cast<size_t>(s)])] = true;
              if (slot < random.slots_k) plain[static_cast<size_t>(tokens[static_cast<size_t>(s)])] = true;
            }
            if (!o.has_order_q) {
              EXPECT_TRUE(tiles.view.at<bool>(b, h, q / 16, slot / 8));
            }
          }
          for (int64_t k = 0; k < o.seqlen_k; ++k) {
            ASSERT_EQ(bits.view.at<bool>(b, h, q, k), plain[static_cast<size_t>(k)]) << "seed " << seed;
            ASSERT_EQ(with_pools.view.at<bool>(b, h, q, k), pooled[static_cast<size_t>(k)]) << "seed " << seed;
          }
        }
      }
    }
  }
  EXPECT_THROW(to_bits(nullptr), Error);
  EXPECT_THROW(to_tiles(dense_plan({.seqlen_q = 8, .seqlen_k = 8}), 0, 8), Error);
}

TEST(ContentHash, SeesMeaningNotLayout) {
  const auto make = [](int groups, bool joins, int32_t stop) {
    PlanData data = sizes(100, 200, 2);
    ListsBuilder builder(64, 1, groups, 2);
    if (!joins) builder.keep_touching_apart();
    for (int g = 0; g < groups; ++g) {
      builder.set(0, g, 0, {{{0, 64, {}}, {64, stop, {}}}, {}, {}});
      builder.set(0, g, 1, {{}, {{0, 90, {0xff}}}, {}});
    }
    data.by_query = builder.build(host_memory(), data);
    return make_plan(std::move(data));
  };
  const Plan plan = make(1, true, 128);
  EXPECT_EQ(content_hash(plan), content_hash(make(2, true, 128)));   // shared or not
  EXPECT_EQ(content_hash(plan), content_hash(make(2, false, 128)));  // touching runs joined or not
  EXPECT_NE(content_hash(plan), content_hash(make(1, true, 129)));
  Context context;
  EXPECT_EQ(content_hash(plan), content_hash(complete(plan, context, 64)));
  EXPECT_EQ(content_hash(plan), content_hash(clone(plan)));
  const std::shared_ptr<PlanData> past = clone(plan);  // bits past the row's 36 slots say nothing
  past->by_query.masked.rows.at<uint64_t>(0, 0) |= uint64_t{1} << 50;
  EXPECT_EQ(content_hash(plan), content_hash(past));
  const std::vector<std::function<void(PlanData&)>> changes{[](PlanData& d) { d.mask = Mask::causal(); },
                                                            [](PlanData& d) { d.dense_reads += 1; },
                                                            [](PlanData& d) { d.pools = {2}; },
                                                            [](PlanData& d) { d.mask.bands[0].sink = 1; },
                                                            [](PlanData& d) { d.batch = 2; },
                                                            [](PlanData& d) { d.by_query.masked.rows.at<uint64_t>(0, 0) = 0x7f; },
                                                            [](PlanData& d) { d.by_query.masked = d.by_query.whole; },
                                                            [](PlanData& d) { d.seqlen_k = 201; }};
  for (const auto& change : changes) {
    const std::shared_ptr<PlanData> data = clone(plan);
    change(*data);
    EXPECT_NE(content_hash(plan), content_hash(data));
  }
  EXPECT_EQ(content_hash_text(plan).size(), 16u);
}

TEST(Retile, RefinesAndCoarsensOneWay) {
  Context context;
  const Plan plan = dense_plan({.seqlen_q = 300, .seqlen_k = 300, .tile = 64});
  EXPECT_EQ(reads(refine(plan, context, 16)), reads(plan));
  EXPECT_EQ(reads(coarsen(plan, context, 256)), reads(plan));
  EXPECT_EQ(allowed_pairs(coarsen(plan, context, 256)), allowed_pairs(plan));
  EXPECT_EQ(refine(plan, context, 64)->by_query.tile, 64);
  EXPECT_NE(message_of([&] { refine(plan, context, 128); }).find("coarsen()"), std::string::npos);
  EXPECT_NE(message_of([&] { coarsen(plan, context, 32); }).find("refine()"), std::string::npos);
  EXPECT_NE(message_of([&] { retile(plan, context, 15); }).find("16 to 256"), std::string::npos);
  EXPECT_NE(message_of([&] { retile(nullptr, context, 64); }).find("null"), std::string::npos);
}

TEST(Complete, ShortPlansOfAMillionTokens) {
  // A window with sinks, and vertical lines: what runs at a million tokens.
  const int64_t n = int64_t{1} << 20;
  Context context;
  const Plan window = dense_plan({.seqlen_q = n, .seqlen_k = n, .tile = 128, .mask = {.bands = {{4095, 0, 64}}}});
  const Plan both = complete(window, context, 128);
  EXPECT_FALSE(find_fault(both).has_value());
  EXPECT_EQ(reads(both), reads(window));
  PlanData data = sizes(n, n);
  data.mask = Mask::causal();
  ListsBuilder builder(128, 1, 1, n / 128);
  for (int64_t row = 0; row < n / 128; ++row) {
    RowRuns runs;
    if (row > 8) runs.whole.push_back({static_cast<int32_t>(row * 128 - 777), static_cast<int32_t>(row * 128), {}});
    runs.masked.push_back({static_cast<int32_t>(row * 128), static_cast<int32_t>(row * 128 + 128), {}});
    for (int32_t line = 0; line < 50 && line * 131 < row * 128 - 800; ++line) runs.picked.push_back({line * 131, line * 131 + 1, {}});
    builder.set(0, 0, row, std::move(runs));
  }
  data.by_query = builder.build(host_memory(), data);
  const Plan lines = make_plan(std::move(data));
  const Plan transposed = complete(lines, context, 128);
  EXPECT_FALSE(find_fault(transposed).has_value());
  EXPECT_EQ(reads(transposed), reads(lines));
}

}  // namespace
}  // namespace tilewise
