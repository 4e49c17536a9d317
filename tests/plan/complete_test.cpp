// SPDX-License-Identifier: Apache-2.0
#include "tilewise/plan/complete.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <span>
#include <vector>

#include "tests/plan/random_pairs.h"
#include "tilewise/plan/count.h"
#include "tilewise/plan/heads.h"
#include "tilewise/plan/make.h"
#include "tilewise/plan/rows.h"
#include "tilewise/plan/validate.h"

namespace tilewise {
namespace {

using attend::testing::MaskKind;
using attend::testing::PlanOptions;
using attend::testing::random_plan;
using attend::testing::RandomPlan;
using attend::testing::Rng;
using attend::testing::uniform;
using testing::pairs_of;
using testing::random_options;

TEST(Complete, KeepsEveryPairAtEveryTile) {
  Context context;
  for (uint64_t seed = 0; seed < 400; ++seed) {
    Rng rng(seed);
    const PlanOptions options = random_options(rng);
    const RandomPlan random = random_plan(rng, options);
    for (const int tile : {16, 64, 128, 256}) {
      const Plan both = complete(random.plan, context, tile);
      ASSERT_EQ(pairs_of(both, !options.is_by_key, random.slots), random.pairs) << "seed " << seed << " tile " << tile;
      // And back: what was made becomes the direction at hand.
      auto made = std::make_shared<PlanData>();
      made->seqlen_q = both->seqlen_q;
      made->seqlen_k = both->seqlen_k;
      made->batch = both->batch;
      made->heads_q = both->heads_q;
      (options.is_by_key ? made->by_query : made->by_key) = options.is_by_key ? both->by_query : both->by_key;
      made->order_q = both->order_q;
      made->order_k = both->order_k;
      made->pools = both->pools;
      made->mask = both->mask;
      const Plan back = complete(made, context, options.tile);
      ASSERT_EQ(pairs_of(back, options.is_by_key, random.slots), random.pairs) << "seed " << seed << " tile " << tile << " and back";
      EXPECT_EQ(reads(made), random.reads) << "seed " << seed << " tile " << tile;
    }
    EXPECT_EQ(reads(random.plan), random.reads) << "seed " << seed;
    int64_t allowed = 0;
    for (const uint8_t pair : random.pairs) allowed += pair;
    EXPECT_EQ(allowed_pairs(random.plan), allowed) << "seed " << seed;
  }
}

TEST(Retile, KeepsEveryPairFinerAndCoarser) {
  Context context;
  for (uint64_t seed = 1000; seed < 1300; ++seed) {
    Rng rng(seed);
    const PlanOptions options = random_options(rng);
    const RandomPlan random = random_plan(rng, options);
    for (const int tile : {16, 48, 64, 128, 256}) {
      const Plan other = retile(random.plan, context, tile, tile);
      ASSERT_LE((options.is_by_key ? other->by_key : other->by_query).tile, std::max(tile, options.tile));
      ASSERT_EQ(pairs_of(other, options.is_by_key, random.slots), random.pairs) << "seed " << seed << " tile " << tile;
      EXPECT_EQ(reads(other), random.reads) << "seed " << seed << " tile " << tile;
      ASSERT_EQ(pairs_of(retile(other, context, options.tile, options.tile), options.is_by_key, random.slots), random.pairs)
          << "seed " << seed << " tile " << tile << " and back";
    }
  }
}

// One list for heads that differ in order and in mask: each head's mask is asked about its own tokens.
TEST(Retile, AsksTheMaskInEachHeadsOrder) {
  Context context;
  for (uint64_t seed = 1; seed <= 60; ++seed) {
    Rng rng(seed);
    PlanOptions options;
    options.seqlen_q = options.seqlen_k = 48;
    options.heads_q = 4;
    options.heads_kv = 2;
    options.tile = 16;
    options.mask = seed % 2 == 0 ? MaskKind::spans : MaskKind::classes;
    options.longest_run = 3;
    options.has_picked = options.has_edges = options.has_order_q = true;
    options.has_order_k = seed % 3 == 0;
    options.is_by_key = seed % 4 < 2;
    const RandomPlan random = random_plan(rng, options);
    ASSERT_EQ(find_fault(random.plan, random.plan->mask), std::nullopt);
    const Plan other = retile(random.plan, context, 64, 64);
    EXPECT_EQ(pairs_of(other, options.is_by_key, random.slots), random.pairs) << "seed " << seed;
  }
}

TEST(CombineHeads, GivesEachHeadItsOwnPlan) {
  Context context;
  for (uint64_t seed = 2000; seed < 2150; ++seed) {
    Rng rng(seed);
    PlanOptions options = random_options(rng);
    options.mask = static_cast<MaskKind>(uniform(rng, 0, 4));
    options.has_order_q = options.has_order_k = options.has_edges = options.is_by_key = false;
    options.pools.clear();
    options.heads_q = 4;
    options.heads_kv = 2;
    options.groups = uniform(rng, 0, 1) == 0 ? 1 : 2;
    std::vector<RandomPlan> random;
    std::vector<Plan> plans;
    for (const int tile : {128, 64, 128}) {
      options.tile = tile;
      options.mask = static_cast<MaskKind>(uniform(rng, 0, 4));
      random.push_back(random_plan(rng, options));
      plans.push_back(random.back().plan);
    }
    const std::vector<int> plan_of_head{0, 2, 1, 0};
    Plan combined;
    try {
      combined = combine_heads(plans, plan_of_head, context);
    } catch (const Error& error) {
      FAIL() << error.what() << " seed " << seed;
    }
    const auto pairs = pairs_of(combined, false, options.seqlen_k);
    for (int64_t b = 0; b < options.batch; ++b) {
      for (int64_t head = 0; head < 4; ++head) {
        for (int64_t query = 0; query < options.seqlen_q; ++query) {
          for (int64_t key = 0; key < options.seqlen_k; ++key) {
            const bool has = pairs[static_cast<size_t>(((b * 4 + head) * options.seqlen_q + query) * options.seqlen_k + key)] != 0;
            const auto& own = random[static_cast<size_t>(plan_of_head[static_cast<size_t>(head)])];
            ASSERT_EQ(has, own.has(b, head, query, key)) << "seed " << seed << " head " << head << " pair " << query << ", " << key;
          }
        }
      }
    }
  }
}

TEST(CombineHeads, RefusesPlansThatDoNotGoTogether) {
  Context context;
  const auto sized = [](int64_t seqlen) {
    auto data = std::make_shared<PlanData>();
    data->seqlen_q = data->seqlen_k = seqlen;
    data->heads_q = 2;
    data->mask = Mask::causal();
    return data;
  };
  const std::vector<int> both{0, 1};
  EXPECT_THROW(combine_heads({}, both, context), Error);
  EXPECT_THROW(combine_heads(std::vector<Plan>{sized(64), nullptr}, both, context), Error);
  EXPECT_THROW(combine_heads(std::vector<Plan>{sized(64), sized(128)}, both, context), Error);
  EXPECT_THROW(combine_heads(std::vector<Plan>{sized(64), sized(64)}, std::vector<int>{0}, context), Error);
  EXPECT_THROW(combine_heads(std::vector<Plan>{sized(64), sized(64)}, std::vector<int>{0, 2}, context), Error);
  auto unbanded = sized(64);
  unbanded->mask.bands.clear();
  EXPECT_THROW(combine_heads(std::vector<Plan>{sized(64), unbanded}, both, context), Error);
}

TEST(Complete, TransposesDensePlansIntoAsFewRuns) {
  const int64_t n = int64_t{1} << 20, rows = n / 128;
  Context context;
  // Every key row has the same readers: one run that all rows share.
  const Plan full = complete(dense_plan({.seqlen_q = n, .seqlen_k = n, .tile = 128, .mask = Mask::full()}), context);
  EXPECT_FALSE(find_fault(full).has_value());
  ASSERT_EQ(full->by_key.whole.start.numel(), 1);
  EXPECT_FALSE(full->by_key.whole.stop.has_value());
  EXPECT_FALSE(full->by_key.masked.has_runs());
  EXPECT_EQ(full->by_key.whole.begin.at<int64_t>(0, 0, rows - 1), full->by_key.whole.begin.at<int64_t>(0, 0, 0));
  EXPECT_EQ(full->by_key.whole.count.at<int32_t>(0, 0, rows - 1), 1);

  // A diagonal tile and one run behind it: no `rows`, and the end of the queries says where the runs stop.
  const Plan causal = complete(dense_plan({.seqlen_q = n, .seqlen_k = n, .tile = 128}), context);
  EXPECT_FALSE(find_fault(causal).has_value());
  EXPECT_EQ(causal->by_key.whole.start.numel(), rows - 1);
  EXPECT_EQ(causal->by_key.masked.start.numel(), rows);
  EXPECT_EQ(causal->by_key.masked.grain, 128);
  for (const RunList* list : {&causal->by_key.whole, &causal->by_key.masked}) {
    EXPECT_FALSE(list->stop.has_value());
    EXPECT_FALSE(list->rows.has_value());
  }
}

TEST(Complete, RefusesUntestedPairsThatTheMaskForbids) {
  Context context;
  auto plan = std::make_shared<PlanData>();
  plan->seqlen_q = plan->seqlen_k = 64;
  plan->mask = Mask::causal();
  int64_t begin[] = {0};
  int32_t count[] = {1}, start[] = {0}, stop[] = {64};
  plan->by_query.tile = 64;
  plan->by_query.whole = {
      TensorView::of(begin, {1, 1, 1}), TensorView::of(count, {1, 1, 1}), TensorView::of(start, {1}), TensorView::of(stop, {1}), {}, 1};
  EXPECT_THROW(complete(plan, context), Error);
}

}  // namespace
}  // namespace tilewise
