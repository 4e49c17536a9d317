// SPDX-License-Identifier: Apache-2.0
#include "tilewise/plan/sets.h"

#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <vector>

#include "tests/plan/random_pairs.h"
#include "tilewise/plan/bits.h"
#include "tilewise/plan/builder.h"
#include "tilewise/plan/complete.h"
#include "tilewise/plan/content_hash.h"
#include "tilewise/plan/count.h"
#include "tilewise/plan/heads.h"
#include "tilewise/plan/make.h"
#include "tilewise/plan/rows.h"
#include "tilewise/plan/validate.h"

namespace tilewise {
namespace {

using attend::testing::chance;
using attend::testing::PlanOptions;
using attend::testing::random_plan;
using attend::testing::RandomPlan;
using attend::testing::Rng;
using attend::testing::uniform;
using testing::pairs_of;

/// Options of a second plan with the sizes, mask, orders and pools of the first: those are drawn before the lists, from the same seed.
PlanOptions other_lists(Rng& rng, PlanOptions o) {
  const int64_t tiles[] = {16, 48, 64, 128, 256};
  o.tile = static_cast<int>(tiles[uniform(rng, 0, 4)]);
  o.groups = chance(rng, 0.5) ? 1 : o.heads_q;
  o.has_batched_lists = chance(rng, 0.5);
  o.density = 0.2 + 0.1 * static_cast<double>(uniform(rng, 0, 6));
  o.longest_run = static_cast<int>(uniform(rng, 1, 90));
  o.has_picked = chance(rng, 0.5);
  o.has_rows = chance(rng, 0.5);
  o.has_edges = chance(rng, 0.3);
  o.has_shared = chance(rng, 0.3);
  o.is_spaced = chance(rng, 0.3);
  o.is_by_key = chance(rng, 0.3);
  return o;
}

TEST(Sets, AreExactOverRandomPlans) {
  Context context;
  for (uint64_t seed = 0; seed < 500; ++seed) {
    Rng options_rng(seed + 100000);
    PlanOptions options = testing::random_options(options_rng);
    if (seed % 10 == 0) options.seqlen_q = uniform(options_rng, 300, 512);
    if (seed % 10 == 0) options.seqlen_k = uniform(options_rng, 300, 512);
    const PlanOptions other = other_lists(options_rng, options);
    Rng rng_a(seed), rng_b(seed);
    const RandomPlan a = random_plan(rng_a, options), b = random_plan(rng_b, other);
    const bool is_by_key = options.is_by_key && other.is_by_key;
    const Plan both = unite(a.plan, b.plan, context), common = intersect(a.plan, b.plan, context);
    std::vector<uint8_t> any(a.pairs.size()), all(a.pairs.size());
    for (size_t i = 0; i < any.size(); ++i) {
      any[i] = a.pairs[i] | b.pairs[i];
      all[i] = a.pairs[i] & b.pairs[i];
    }
    ASSERT_EQ(pairs_of(both, is_by_key, a.slots), any) << "seed " << seed;
    ASSERT_EQ(pairs_of(common, is_by_key, a.slots), all) << "seed " << seed;
    // Before the mask, too.
    EXPECT_EQ(reads(both) + reads(common), a.reads + b.reads) << "seed " << seed;
    for (const Plan& made : {both, common}) {
      const auto fault = find_fault(made, made->mask);
      ASSERT_FALSE(fault.has_value()) << *fault << " seed " << seed;
    }
    // Order of the arguments does not count, and nothing is left out or added on a second time.
    EXPECT_EQ(content_hash(unite(b.plan, a.plan, context)), content_hash(both)) << "seed " << seed;
    EXPECT_EQ(content_hash(intersect(b.plan, a.plan, context)), content_hash(common)) << "seed " << seed;
    EXPECT_EQ(content_hash(unite(both, both, context)), content_hash(both)) << "seed " << seed;
    EXPECT_EQ(content_hash(intersect(common, common, context)), content_hash(common)) << "seed " << seed;
    EXPECT_EQ(reads(unite(both, a.plan, context)), reads(both)) << "seed " << seed;
    EXPECT_EQ(reads(intersect(common, a.plan, context)), reads(common)) << "seed " << seed;
  }
}

PlanData sizes(int64_t seqlen, int heads, Mask mask) {
  PlanData data;
  data.seqlen_q = data.seqlen_k = seqlen;
  data.heads_q = heads;
  data.dense_reads = seqlen * seqlen * heads;
  data.mask = std::move(mask);
  return data;
}

/// Head `head` of two reads `runs` in its only row of 64; the other reads nothing.
Plan one_head(int head, const Mask& mask, RowRuns runs) {
  PlanData data = sizes(64, 2, mask);
  ListsBuilder builder(64, 1, 2, 1);
  builder.set(0, head, 0, std::move(runs));
  data.by_query = builder.build(host_memory(), data);
  return make_plan(std::move(data));
}

TEST(Sets, KeepWhatNeedsNoTest) {
  Context context;
  const Mask full = Mask::full();
  const uint64_t low = 0xffffffff, high = ~low;
  const Plan whole = one_head(0, full, {{{0, 16, {}}}, {}, {}}), masked = one_head(0, full, {{}, {{8, 24, {}}}, {}});
  const Plan picked_low = one_head(0, full, {{}, {}, {{4, 6, {low}}}}), picked_high = one_head(0, full, {{}, {}, {{5, 9, {high}}}});
  const auto counts = [](const Plan& plan) {
    const auto runs = [](const RunList& list) { return list.has_runs() ? list.start.numel() : 0; };
    return std::vector<int64_t>{runs(plan->by_query.whole), runs(plan->by_query.masked), runs(plan->by_query.picked)};
  };
  EXPECT_EQ(counts(unite(whole, masked, context)), (std::vector<int64_t>{1, 1, 0}));       // [0, 16) whole, [16, 24) masked
  EXPECT_EQ(counts(intersect(whole, masked, context)), (std::vector<int64_t>{1, 0, 0}));   // [8, 16) whole
  EXPECT_EQ(counts(unite(picked_low, picked_high, context)), (std::vector<int64_t>{0, 0, 5}));
  EXPECT_EQ(counts(intersect(picked_low, picked_high, context)), (std::vector<int64_t>{0, 0, 0}));
  EXPECT_EQ(counts(unite(whole, picked_low, context)), (std::vector<int64_t>{1, 0, 0}));
  EXPECT_EQ(counts(intersect(whole, picked_low, context)), (std::vector<int64_t>{0, 0, 2}));
  EXPECT_EQ(counts(unite(masked, picked_high, context)), (std::vector<int64_t>{0, 1, 3}));  // 8 is in the masked run
  EXPECT_EQ(counts(intersect(masked, picked_high, context)), (std::vector<int64_t>{0, 0, 1}));
}

std::string message_of(const std::function<void()>& call, Error::Kind kind) {
  try {
    call();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), kind) << error.what();
    return error.what();
  }
  return "";
}

TEST(Sets, TakeTheMaskOfThePlanThatReadsTheHead) {
  Context context;
  const Mask causal = Mask::causal();
  const Mask window{.bands = {{15, 0, 0}}};
  const Plan a = one_head(0, causal, {{}, {{0, 64, {}}}, {}}), b = one_head(1, window, {{}, {{0, 64, {}}}, {}});
  const Plan both = unite(a, b, context);
  ASSERT_EQ(both->mask.bands.size(), 2u);
  EXPECT_EQ(allowed_pairs(both, 0), 64 * 65 / 2);
  EXPECT_EQ(allowed_pairs(both, 1), 16 * 17 / 2 + 48 * 16);
  EXPECT_EQ(reads(intersect(a, b, context)), 0);
  const Plan other = one_head(0, window, {{}, {{0, 64, {}}}, {}});
  EXPECT_NE(message_of([&] { unite(a, other, context); }, Error::Kind::unsupported).find("head 0"), std::string::npos);
  EXPECT_NE(message_of([&] { intersect(a, other, context); }, Error::Kind::unsupported).find("intersect"), std::string::npos);
  // Spans beside bands become spans.
  Tensor spans(host_memory(), Dtype::i32, {1, 1, 64, 4});
  spans.fill_zero();
  for (int64_t q = 0; q < 64; ++q) spans.view.at<int32_t>(0, 0, q, 1) = static_cast<int32_t>(q / 2);
  Mask halves;
  halves.spans = spans.view;
  const Plan c = one_head(1, halves, {{}, {{0, 64, {}}}, {}});
  const Plan mixed = unite(a, c, context);
  EXPECT_TRUE(mixed->mask.spans.has_value());
  EXPECT_EQ(allowed_pairs(mixed, 0), allowed_pairs(a, 0));
  EXPECT_EQ(allowed_pairs(mixed, 1), allowed_pairs(c, 1));
  Mask grid;
  grid.grids = {{{.length = 64, .window = 3}}};
  const Plan d = one_head(1, grid, {{}, {{0, 64, {}}}, {}});
  EXPECT_NE(message_of([&] { unite(a, d, context); }, Error::Kind::unsupported).find("neighbourhoods"), std::string::npos);
  EXPECT_EQ(allowed_pairs(unite(d, d, context)), allowed_pairs(d));
}

TEST(Sets, RefusePlansThatDoNotGoTogether) {
  Context context;
  const Plan plan = dense_plan({.seqlen_q = 64, .seqlen_k = 64, .tile = 64, .heads_q = 2});
  const auto changed = [&](const std::function<void(PlanData&)>& change) {
    PlanData data = sizes(64, 2, Mask::causal());
    data.by_query = plan->by_query;
    data.shared = {plan};
    change(data);
    return make_plan(std::move(data));
  };
  const auto says = [&](const Plan& other, Error::Kind kind, const std::string& text) {
    EXPECT_NE(message_of([&] { unite(plan, other, context); }, kind).find(text), std::string::npos) << text;
    EXPECT_NE(message_of([&] { intersect(other, plan, context); }, kind).find(text), std::string::npos) << text;
  };
  says(nullptr, Error::Kind::value, "null");
  says(changed([](PlanData& d) { d.seqlen_k = 65; }), Error::Kind::value, "65");
  says(changed([](PlanData& d) { d.batch = 2; }), Error::Kind::value, "size");
  says(changed([](PlanData& d) { d.mask = {}; }), Error::Kind::value, "mask");
  says(changed([](PlanData& d) { d.mask = Mask::full(); }), Error::Kind::unsupported, "masks");
  says(changed([](PlanData& d) { d.pools = {4}; }), Error::Kind::unsupported, "pools");
  std::vector<int32_t> tokens(64);
  for (int32_t i = 0; i < 64; ++i) tokens[static_cast<size_t>(i)] = 63 - i;
  says(changed([&](PlanData& d) { d.order_k.token = TensorView::of(tokens.data(), {1, 1, 64}); }), Error::Kind::unsupported, "orders");
}

TEST(CombineHeads, KeepsWhatEachHeadCouldRead) {
  Context context;
  // Two classes in one plan: their dense reads differ, and so do their parts of the denominator.
  Mask mask{.bands = {{Mask::kAll, 0, 0}, {31, 0, 0}}, .head_class = {0, 1, 0, 1}};
  const Plan mixed = dense_plan({.seqlen_q = 256, .seqlen_k = 256, .tile = 64, .mask = mask, .batch = 2, .heads_q = 4});
  const Plan plain = dense_plan({.seqlen_q = 256, .seqlen_k = 256, .tile = 128, .batch = 2, .heads_q = 4});
  ASSERT_EQ(mixed->dense_reads_of_head.size(), 4u);
  EXPECT_NE(mixed->dense_reads_of_head[0], mixed->dense_reads_of_head[1]);
  EXPECT_TRUE(plain->dense_reads_of_head.empty());
  for (int head = 0; head < 4; ++head) EXPECT_DOUBLE_EQ(density(mixed, head), 1.0);
  const std::vector<int> plan_of_head{1, 0, 0, 1};
  const Plan plans[] = {mixed, plain};
  const Plan combined = combine_heads(plans, plan_of_head, context);
  for (int head = 0; head < 4; ++head) EXPECT_DOUBLE_EQ(density(combined, head), 1.0) << head;
  EXPECT_DOUBLE_EQ(density(combined), 1.0);
  EXPECT_FALSE(find_fault(combined, combined->mask).has_value());
  const std::vector<int> all_mixed{0, 0, 0, 0};
  EXPECT_EQ(combine_heads(plans, all_mixed, context)->dense_reads, mixed->dense_reads);
}

TEST(CombineHeads, CutsRowsWhereEachPlanDoes) {
  Context context;
  for (uint64_t seed = 0; seed < 120; ++seed) {
    Rng options_rng(seed + 300000);
    PlanOptions options = testing::random_options(options_rng);
    options.heads_q = options.heads_kv * 2;
    options.groups = 1;
    options.has_edges = true;
    const PlanOptions other = other_lists(options_rng, options);
    Rng rng_a(seed), rng_b(seed);
    const RandomPlan random[] = {random_plan(rng_a, options), random_plan(rng_b, other)};
    const Plan plans[] = {random[0].plan, random[1].plan};
    std::vector<int> plan_of_head;
    for (int head = 0; head < options.heads_q; ++head) plan_of_head.push_back(head % 2);
    const Plan combined = combine_heads(plans, plan_of_head, context);
    ASSERT_FALSE(find_fault(combined, combined->mask).has_value()) << *find_fault(combined, combined->mask) << " seed " << seed;
    const std::vector<uint8_t> pairs = pairs_of(combined, false, random[0].slots);
    for (size_t i = 0; i < pairs.size(); ++i) {
      const auto head = static_cast<int64_t>(i) / (random[0].slots * options.seqlen_q) % options.heads_q;
      ASSERT_EQ(pairs[i], random[head % 2].pairs[i]) << "seed " << seed << " head " << head;
    }
  }
}

TEST(Complete, KeepsTheHashOfWhatWasPlanned) {
  Context context;
  for (uint64_t seed = 0; seed < 60; ++seed) {
    Rng rng(seed);
    PlanOptions options = testing::random_options(rng);
    options.is_by_key = seed % 2 == 0;
    const Plan plan = random_plan(rng, options).plan;
    for (const int tile : {16, 64}) EXPECT_EQ(content_hash(complete(plan, context, tile)), content_hash(plan)) << "seed " << seed;
  }
}

}  // namespace
}  // namespace tilewise
