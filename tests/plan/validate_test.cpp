// SPDX-License-Identifier: Apache-2.0
#include "tilewise/plan/validate.h"

#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <vector>

#include "tests/attend/random_plan.h"
#include "tests/plan/plan_testing.h"
#include "tilewise/plan/builder.h"
#include "tilewise/plan/complete.h"
#include "tilewise/plan/count.h"
#include "tilewise/plan/fingerprint.h"
#include "tilewise/plan/make.h"
#include "tilewise/plan/pack.h"

namespace tilewise {
namespace {

using testing::clone;

void set_mask_spans(PlanData& data) {
  data.mask = {};
  std::vector<int32_t> spans;
  for (int32_t q = 0; q < data.seqlen_q; ++q) spans.insert(spans.end(), {0, std::min<int32_t>(10, q + 1), q / 50 * 50, q + 1});
  data.mask.spans = plan::own(spans.data(), {1, 1, data.seqlen_q, 4}, host_memory(), data);
}

/// Causal rows of 64 with every list, `rows`, an edge and both directions. Rows: [0, 64) [64, 100) [100, 164) [164, 200).
Plan rich_plan() {
  PlanData data;
  data.seqlen_q = data.seqlen_k = 200;
  data.heads_q = 4;
  data.dense_reads = 4 * 200 * 200;
  data.mask = Mask::causal();
  ListsBuilder builder(64, 1, 2, 4, {0, 64, 100, 164, 200});
  for (int g = 0; g < 2; ++g) {
    builder.set(0, g, 0, {{}, {{0, 64, {}}}, {}});
    builder.set(0, g, 1, {{{0, 32, {}}, {40, 50, {}}}, {{64, 100, {}}}, {{55, 56, {}}, {60, 61, {}}}});
    builder.set(0, g, 2, {{{0, 16, {}}}, {{30, 40, {0xff00ff00ull}}, {100, 164, {}}}, {{50, 51, {0xf0f0ull}}, {70 + g, 71 + g, {}}}});
    builder.set(0, g, 3, {{{0, 100, {}}}, {{164, 200, {}}}, {{120, 121, {}}}});
  }
  data.by_query = builder.build(host_memory(), data);
  Context context;
  return complete(make_plan(std::move(data)), context, 64);
}

/// Orders with padding and two pools; 60 tokens in 64 slots.
Plan pooled_plan() {
  PlanData data;
  data.seqlen_q = data.seqlen_k = 60;
  data.heads_q = 4;
  data.dense_reads = 4 * 60 * 60;
  data.mask = Mask::full();
  data.pools = {4, 16};
  std::vector<int32_t> tokens;
  for (int32_t slot = 0; slot < 64; ++slot) tokens.push_back(slot % 16 == 7 ? -1 : (slot - (slot + 8) / 16) * 7 % 60);
  data.order_q = {plan::own(tokens.data(), {1, 1, 64}, host_memory(), data), {}};
  data.order_k = data.order_q;
  ListsBuilder builder(32, 1, 1, 2);
  builder.set(0, 0, 0, {{{8, 20, {}}, {64, 70, {}}, {80, 84, {}}}, {{20, 32, {}}}, {{40, 41, {}}}});
  builder.set(0, 0, 1, {{{72, 80, {}}, {80, 82, {}}}, {{0, 64, {}}}, {}});
  data.by_query = builder.build(host_memory(), data);
  Context context;
  return complete(make_plan(std::move(data)), context, 16);
}

TEST(Validate, TakesWhatIsRight) {
  for (const Plan& plan : {rich_plan(), pooled_plan()}) {
    const auto fault = find_fault(plan, plan->mask);
    EXPECT_FALSE(fault.has_value()) << *fault;
    EXPECT_NO_THROW(validate(plan));
  }
  // Seeded plans of every kind, with spaced arrays, shared rows, orders and pools.
  Context context;
  for (uint64_t seed = 0; seed < 300; ++seed) {
    using namespace attend::testing;
    Rng rng(seed);
    PlanOptions o;
    const int64_t tiles[] = {16, 64, 128, 256};
    o.batch = uniform(rng, 1, 2);
    o.heads_kv = static_cast<int>(uniform(rng, 1, 2));
    o.heads_q = o.heads_kv * static_cast<int>(uniform(rng, 1, 2));
    o.seqlen_q = uniform(rng, 1, 150);
    o.seqlen_k = uniform(rng, 1, 150);
    o.tile = static_cast<int>(tiles[uniform(rng, 0, 3)]);
    o.groups = uniform(rng, 0, 1) == 0 ? 1 : o.heads_q;
    o.has_batched_lists = chance(rng, 0.5);
    o.mask = static_cast<MaskKind>(uniform(rng, 0, 6));
    o.has_picked = chance(rng, 0.5);
    o.has_rows = chance(rng, 0.5);
    o.has_edges = chance(rng, 0.3);
    o.has_shared = chance(rng, 0.3);
    o.is_spaced = chance(rng, 0.3);
    o.has_order_q = chance(rng, 0.3);
    o.has_order_k = chance(rng, 0.3);
    if (chance(rng, 0.25)) o.pools = {4, 16};
    o.is_by_key = chance(rng, 0.3);
    const RandomPlan random = random_plan(rng, o);
    const auto fault = find_fault(random.plan, random.plan->mask);
    ASSERT_FALSE(fault.has_value()) << "seed " << seed << ": " << *fault;
    const Plan both = complete(random.plan, context, 64);
    const auto fault_of_both = find_fault(both, both->mask);
    ASSERT_FALSE(fault_of_both.has_value()) << "seed " << seed << " completed: " << *fault_of_both;
  }
}

TEST(Validate, NamesEveryCorruption) {
  struct Corruption {
    std::string says;  // part of the text
    std::function<void(PlanData&)> make;
  };
  const auto at = [](const TensorView& view, int64_t i) -> int32_t& { return static_cast<int32_t*>(view.raw())[i]; };
  const std::vector<Corruption> rich{
      {"seqlen_q is -1", [](PlanData& d) { d.seqlen_q = -1; }},
      {"heads_q 0", [](PlanData& d) { d.heads_q = 0; }},
      {"dense_reads -1", [](PlanData& d) { d.dense_reads = -1; }},
      {"a divisor of 3", [](PlanData& d) { d.heads_q = 3; }},
      {"by_query.tile is 8", [](PlanData& d) { d.by_query.tile = 8; }},
      {"takes 1 to 32 slots", [](PlanData& d) { d.by_query.tile = 32; }},
      {"by_query.edge goes from 1", [&](PlanData& d) { at(d.by_query.edge, 0) = 1; }},
      {"to 199, takes 0 to 200", [&](PlanData& d) { at(d.by_query.edge, 4) = 199; }},
      {"by_query row 2 is [100, 90)", [&](PlanData& d) { at(d.by_query.edge, 3) = 90; }},
      {"by_query.whole.begin is", [](PlanData& d) { d.by_query.whole.begin = d.by_query.whole.begin.slice(2, 0, 3); }},
      {"by_query.masked.count is", [](PlanData& d) { d.by_query.masked.count = d.by_query.masked.start; }},
      {"the capacity is", [](PlanData& d) { d.by_query.whole.begin.at<int64_t>(0, 0, 1) = 1000; }},
      {"by_query.picked row 1", [](PlanData& d) { d.by_query.picked.begin.at<int64_t>(0, 0, 1) = -1; }},
      {"by_query.whole row 3", [](PlanData& d) { d.by_query.whole.count.at<int32_t>(0, 1, 3) = -2; }},
      {"before the end of the run ahead", [](PlanData& d) { d.by_query.whole.count.at<int32_t>(0, 0, 1) = 3; }},
      {"overlap at",
       [](PlanData& d) {
         d.by_query.picked.count.at<int32_t>(0, 0, 1) = 1;
         d.by_query.picked.begin.at<int64_t>(0, 1, 1) = 0;
       }},
      {"starts at -4", [&](PlanData& d) { at(d.by_query.whole.start, 0) = -4; }},
      {"starts at 200", [&](PlanData& d) { at(d.by_query.whole.start, 1) = 200; }},
      {"before the end of the run ahead", [&](PlanData& d) { at(d.by_query.whole.start, 1) = 20; }},
      {"takes at least one slot", [&](PlanData& d) { at(d.by_query.whole.stop, 0) = 0; }},
      {"takes at least one slot, up to 200", [&](PlanData& d) { at(d.by_query.whole.stop, 3) = 201; }},
      {"no multiple of its grain 16", [](PlanData& d) { d.by_query.whole.grain = 16; }},
      {"grain 0", [](PlanData& d) { d.by_query.masked.grain = 0; }},
      {"picked runs are single slots", [](PlanData& d) { d.by_query.picked.grain = 2; }},
      {"picked runs are single slots", [](PlanData& d) { d.by_query.picked.stop = d.by_query.picked.start; }},
      {"whole has rows", [](PlanData& d) { d.by_query.whole.rows = d.by_query.masked.rows; }},
      {"by_query.masked.rows is", [](PlanData& d) { d.by_query.masked.rows = d.by_query.masked.rows.slice(0, 0, 3); }},
      {"rows has no bit", [](PlanData& d) { d.by_query.masked.rows.at<uint64_t>(2, 0) = 0; }},
      {"rows has no bit", [](PlanData& d) { d.by_query.masked.rows.at<uint64_t>(1, 0) = uint64_t{1} << 40; }},  // past the 36 slots of row 1
      {"the masked run [64, 100) shares slots with a whole run", [&](PlanData& d) { at(d.by_query.whole.stop, 1) = 70; }},
      {"the whole run [40, 50) shares slots with a picked run", [&](PlanData& d) { at(d.by_query.picked.start, 0) = 44; }},
      {"shares slots with a picked run", [&](PlanData& d) { at(d.by_query.masked.stop, 2) = 56; }},
      {"by_key names other pairs", [&](PlanData& d) { at(d.by_query.picked.start, 0) = 56; }},
      {"by_key names other pairs", [&](PlanData& d) { at(d.by_query.whole.stop, 0) = 30; }},
      {"by_key names other pairs", [](PlanData& d) { d.by_query.masked.rows.at<uint64_t>(2, 0) ^= 1; }},
      {"by_key names other pairs", [](PlanData& d) { d.by_key.masked.rows.at<uint64_t>(0, 0) ^= uint64_t{1} << 9; }},
      {"by_key names other pairs than by_query for head 2", [&](PlanData& d) { d.by_query.whole.count.at<int32_t>(0, 1, 3) = 0; }},
      {"by_key names other pairs", [](PlanData& d) { d.by_key = d.by_query; }},  // untransposed
      {"has 0 forms", [](PlanData& d) { d.mask.bands.clear(); }},
      {"has 2 forms", [](PlanData& d) { d.mask.grids = {{{200, 3, 1, 1, false}}}; }},
      {"has mask class 1", [](PlanData& d) { d.mask.head_class = {0, 1, 0, 0}; }},
      {"names 3 heads", [](PlanData& d) { d.mask.head_class = {0, 0, 0}; }},
      {"takes 1 to 16", [](PlanData& d) { d.mask.bands.assign(17, Mask::Band{}); }},
      {"at most 2^40", [](PlanData& d) { d.mask.bands[0].left = (int64_t{1} << 40) + 1; }},
      {"a sink of 0 to 2^40", [](PlanData& d) { d.mask.bands[0].sink = -1; }},
      {"stride of 1 to window", [](PlanData& d) { d.mask = {.bands = {}, .spans = {}, .grids = {{{200, 3, 4, 1, false}}}}; }},
      {"window x dilation", [](PlanData& d) { d.mask = {.bands = {}, .spans = {}, .grids = {{{200, 101, 1, 2, false}}}}; }},
      {"the grid takes tokens [5, 205)", [](PlanData& d) { d.mask = {.bands = {}, .spans = {}, .grids = {{{200, 3, 1, 1, false}}}, .first = 5}; }},
      {"takes spans within",
       [](PlanData& d) {
         set_mask_spans(d);
         d.mask.spans.at<int32_t>(0, 0, 7, 1) = 201;
       }},
      {"mask.spans is",
       [](PlanData& d) {
         set_mask_spans(d);
         d.mask.spans = d.mask.spans.slice(2, 0, 100);
       }},
      {"a pool has groups of 1", [](PlanData& d) { d.pools = {1}; }},
      {"passes the border of a pool",
       [](PlanData& d) {
         d.pools = {4};
         d.by_key.edge = {};
         d.by_key.tile = 64;
         for (RunList* list : {&d.by_key.whole, &d.by_key.masked, &d.by_key.picked}) *list = {};
         d.by_key.whole = d.by_query.whole;
       }},
      {"has arrays but no begin", [](PlanData& d) { d.by_query.picked.begin = {}; }},
      {"status reports fault 3",
       [](PlanData& d) {
         const std::vector<int32_t> status{0, 3};
         d.by_query.status = plan::own(status.data(), {2}, host_memory(), d);
       }},
      {"order_q has boxes but no tokens", [](PlanData& d) { d.order_q.boxes = BoxOrder{{4}, {2}, {1}}; }},
  };
  const std::vector<Corruption> pooled{
      {"holds token 60", [&](PlanData& d) { at(d.order_k.token, 0) = 60; }},
      {"holds token -2", [&](PlanData& d) { at(d.order_k.token, 0) = -2; }},
      {"a second time", [&](PlanData& d) { at(d.order_q.token, 1) = at(d.order_q.token, 0); }},
      {"holds 59 of 60 tokens", [&](PlanData& d) { at(d.order_q.token, 0) = -1; }},
      {"order_k.token is", [](PlanData& d) { d.order_k.token = d.order_k.token.slice(2, 0, 59); }},
      {"holds a padding slot",
       [&](PlanData& d) {
         d.by_query.masked.grain = 1;
         at(d.by_query.whole.stop, 0) = 24;
         at(d.by_query.masked.start, 0) = 24;
       }},
      {"holds a padding slot", [&](PlanData& d) { at(d.by_query.picked.start, 0) = 39; }},
      {"up to 80 (the end of the axis or of a pool)", [&](PlanData& d) { at(d.by_query.whole.stop, 1) = 82; }},
      {"up to 64 (the end of the axis or of a pool)", [&](PlanData& d) { at(d.by_query.masked.stop, 1) = 66; }},
      {"takes 1 to 16 slots", [&](PlanData& d) { at(d.by_key.edge, 1) = 17; }},
      {"starts at 80, takes 0 to 79", [](PlanData& d) { d.pools = {4}; }},
      {"by_key names other pairs", [&](PlanData& d) { at(d.by_query.whole.start, 2) = 81; }},
      {"order_q.boxes has", [](PlanData& d) { d.order_q.boxes = BoxOrder{{4, 15}, {2}, {1}}; }},
      {"axis 0 has grid 4, box 0", [](PlanData& d) { d.order_q.boxes = BoxOrder{{4}, {0}, {1}}; }},
  };
  int rejected = 0;
  for (const auto& [plan, corruptions] : {std::pair{rich_plan(), rich}, std::pair{pooled_plan(), pooled}}) {
    for (const Corruption& corruption : corruptions) {
      const std::shared_ptr<PlanData> data = clone(plan);
      corruption.make(*data);
      const auto fault = find_fault(data);
      ASSERT_TRUE(fault.has_value()) << "not found: " << corruption.says;
      EXPECT_NE(fault->find(corruption.says), std::string::npos) << "wanted '" << corruption.says << "', got '" << *fault << "'";
      EXPECT_THROW(validate(Plan(data)), Error) << corruption.says;
      ++rejected;
    }
  }
  EXPECT_GE(rejected, 60);
}

TEST(Validate, HoldsPairsAgainstMasks) {
  const Plan plan = rich_plan();
  // The model allows less than the plan: a window.
  const auto fault = find_fault(plan, {.bands = {{100, 0, 0}}});
  ASSERT_TRUE(fault.has_value());
  EXPECT_NE(fault->find("the model's mask forbids"), std::string::npos) << *fault;
  // It allows more: fine.
  EXPECT_FALSE(find_fault(plan, Mask::full()).has_value());
  // The plan's own mask forbids an untested pair: structure is right, the rule is not.
  const std::shared_ptr<PlanData> data = clone(plan);
  data->mask.bands[0] = {80, 0, 0};
  EXPECT_FALSE(find_fault(data).has_value());
  const auto broken = find_fault(data, Mask::full());
  ASSERT_TRUE(broken.has_value());
  EXPECT_NE(broken->find("the plan's own mask forbids"), std::string::npos) << *broken;
}

TEST(Validate, FingerprintSeesSingleExchangesAndNotPadding) {
  const Plan plan = rich_plan();
  std::mt19937_64 rng(5);
  const uint64_t right = plan::fingerprint(*plan, plan::Direction::by_query, 0, 0);
  EXPECT_EQ(right, plan::fingerprint(*plan, plan::Direction::by_key, 0, 0));
  for (int i = 0; i < 2000; ++i) {
    const std::shared_ptr<PlanData> data = clone(plan);
    // Another set of readers for the first run with rows of group 0.
    data->by_query.masked.rows.at<uint64_t>(2, 0) = 0xff00ff00ull ^ (rng() | 1);
    EXPECT_NE(plan::fingerprint(*data, plan::Direction::by_query, 0, 0), right);
  }
  EXPECT_EQ(plan::fingerprint(*pooled_plan(), plan::Direction::by_query, 0, 3), plan::fingerprint(*pooled_plan(), plan::Direction::by_key, 0, 3));
}

TEST(Validate, RefusesNull) {
  EXPECT_THROW(validate(nullptr), Error);
  EXPECT_THROW(find_fault(nullptr, Mask::causal()), Error);
}

}  // namespace
}  // namespace tilewise
