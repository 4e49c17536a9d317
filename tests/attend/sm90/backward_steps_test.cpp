// SPDX-License-Identifier: Apache-2.0
// The kernels that make the backward's order of work, run on the CPU line by line, against the pairs that the plan means.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <set>
#include <vector>

#include "tests/attend/random_plan.h"
#include "tests/attend/test_tensor.h"
#include "tests/machine/cuda/host_block.h"
#include "tests/plan/cuda/device_plan_testing.h"
#include "tilewise/attend/prepare.h"
#include "tilewise/attend/sm90/backward_deal_kernel.h"
#include "tilewise/attend/sm90/backward_tiles_kernel.h"
#include "tilewise/attend/sm90/backward_walk_kernel.h"

namespace tilewise::attend::sm90 {
namespace {

using testing::chance;
using testing::MaskKind;
using testing::PlanOptions;
using testing::RandomPlan;
using testing::Rng;
using testing::uniform;
using tilewise::testing::Guarded;
using tilewise::testing::launch_on_host;

/// The order of work as the backward reads it.
struct BackwardSteps {
  int tile_q = 0;
  std::vector<BackwardItem> items;
  std::vector<int32_t> first_item;
  std::vector<uint64_t> steps, patterns;
  std::array<unsigned long long, kStatusWords> status{};
};

BackwardSteps make_steps(const PlanData& plan, int heads_kv, int tile_q, int thread_blocks, unsigned seed = 1, const StepsRoom* room = nullptr) {
  StepsArgs args = steps_args(plan, heads_kv, tile_q, thread_blocks);
  args.room = room == nullptr ? most_steps_room(args) : *room;
  const Guarded scratch(place_steps_scratch(args, nullptr)), items(place_items(args, nullptr)), patterns(pattern_bytes(args)),
      steps(step_bytes(args));
  place_steps_scratch(args, scratch.data());
  place_items(args, items.data());
  args.patterns = static_cast<uint64_t*>(patterns.data());
  args.steps = static_cast<uint64_t*>(steps.data());
  std::memset(scratch.data(), 0, steps_zero_bytes(args));
  std::fill_n(args.status, kStatusWords, 0ull);
  launch_on_host(tiles_blocks(args), kTilesThreads, tiles_shared_bytes(), seed, [&](auto& block) { tiles_kernel(block, args); });
  launch_on_host(static_cast<long>(args.readers() * args.key_tiles), kListThreads, list_shared_bytes(), seed,
                 [&](auto& block) { lists_kernel(block, args); });
  launch_on_host(sort_items_blocks(args), kSortItemsThreads, sort_items_shared_bytes(), seed, [&](auto& block) { sort_items_kernel(block, args); });
  launch_on_host(1, kDealThreads, deal_shared_bytes(), seed, [&](auto& block) { deal_kernel(block, args); });
  launch_on_host(walk_blocks(args), walk_threads(args), walk_shared_bytes(args), seed, [&](auto& block) { walk_kernel(block, args); });
  EXPECT_TRUE(scratch.is_intact() && items.is_intact() && patterns.is_intact() && steps.is_intact()) << "memory outside was written";
  BackwardSteps result;
  result.tile_q = tile_q;
  std::copy_n(args.status, kStatusWords, result.status.begin());
  result.first_item.assign(args.first_item, args.first_item + thread_blocks + 1);
  result.items.assign(args.items, args.items + result.first_item.back());
  if (!result.items.empty()) result.steps.assign(args.steps, args.steps + args.status[kSteps]);
  result.patterns.assign(args.patterns, args.patterns + args.room.patterns * kKeyTile * args.words());
  return result;
}

PlanOptions random_options(Rng& rng) {
  PlanOptions o;
  const auto one_of = [&rng](std::initializer_list<int64_t> values) {
    return *(values.begin() + uniform(rng, 0, static_cast<int64_t>(values.size()) - 1));
  };
  o.tile = static_cast<int>(one_of({16, 40, 64, 128, 192, 256}));
  o.batch = one_of({1, 1, 2});
  o.heads_kv = static_cast<int>(one_of({1, 2}));
  o.heads_q = o.heads_kv * static_cast<int>(one_of({1, 2, 4}));
  o.seqlen_q = chance(rng, 0.3) ? 64 * uniform(rng, 1, 4) + uniform(rng, -1, 1) : uniform(rng, 1, 400);
  o.seqlen_k = chance(rng, 0.3) ? 128 * uniform(rng, 1, 3) + uniform(rng, -1, 1) : uniform(rng, 1, 400);
  o.mask = static_cast<MaskKind>(uniform(rng, 0, 6));
  if (o.mask == MaskKind::grid) o.seqlen_k = o.seqlen_q;
  o.groups = static_cast<int>(one_of({1, o.heads_kv, o.heads_q}));
  o.has_batched_lists = chance(rng, 0.5);
  o.density = chance(rng, 0.2) ? 1 : 0.05 + 0.9 * std::uniform_real_distribution<double>(0, 1)(rng);
  o.longest_run = static_cast<int>(one_of({1, 20, 128, 600}));
  o.has_stop = chance(rng, 0.8);
  o.grain = static_cast<int>(one_of({1, 8, 64, 128}));
  o.has_picked = chance(rng, 0.3);
  o.has_rows = chance(rng, 0.3);
  o.has_edges = chance(rng, 0.3);
  o.has_shared = chance(rng, 0.3);
  o.is_spaced = chance(rng, 0.3);
  o.has_order_q = chance(rng, 0.3);
  o.has_order_k = chance(rng, 0.3);
  if (chance(rng, 0.2)) o.pools = {static_cast<int>(one_of({4, 16, 100}))};
  if (!o.pools.empty() && chance(rng, 0.4)) o.pools.push_back(7);
  return o;
}

// Token of a query slot.
int64_t token_of(const PlanData& plan, int64_t b, int head, int64_t slot) {
  const TensorView& token = plan.order_q.token;
  return token.has_value() ? token.at<int32_t>(plan::batch_index(token, b), plan::group_index(token, head, plan.heads_q), slot) : slot;
}

// The plan's pairs of the backward's slots of k, which name a pooled key once for each of its members.
std::vector<uint8_t> wanted_pairs(const RandomPlan& random) {
  const PlanData& plan = *random.plan;
  const int64_t slots_k = backward_slots_k(plan), rows = plan.batch * plan.heads_q * plan.seqlen_q;
  std::vector<int64_t> slot_of(static_cast<size_t>(random.slots_k));
  std::iota(slot_of.begin(), slot_of.end(), 0);
  int64_t end = random.slots_k;
  for (const int group : plan.pools) {
    for (int64_t member = 0; member < random.slots_k; ++member) slot_of.push_back(end + member / group);
    end += (random.slots_k + group - 1) / group;
  }
  std::vector<uint8_t> pairs;
  for (int64_t row = 0; row < rows; ++row) {
    const std::vector<int64_t>& tokens = random.tokens_k[static_cast<size_t>(row / plan.seqlen_q)];
    for (int64_t key = 0; key < slots_k; ++key) {
      const bool is_real = tokens[static_cast<size_t>(key % random.slots_k)] >= 0;
      pairs.push_back(is_real ? random.pairs[static_cast<size_t>(row * random.slots + slot_of[static_cast<size_t>(key)])] : uint8_t{0});
    }
  }
  return pairs;
}

// Every pair of the plan, once, and no other; ranks of a query tile 0, 1, 2, .. in the order of some run of the thread blocks that never waits in a circle.
void expect_steps(const RandomPlan& random, const PlanOptions& o, const BackwardSteps& made, int thread_blocks) {
  const int group = o.heads_q / o.heads_kv, words = made.tile_q / 64;
  const int64_t slots_k = backward_slots_k(*random.plan), key_tiles = (slots_k + kKeyTile - 1) / kKeyTile, slots_q = plan::slots_q(*random.plan);
  std::vector<uint8_t> pairs(static_cast<size_t>(o.batch * o.heads_q * o.seqlen_q * slots_k), 0);
  std::set<std::array<int32_t, 3>> items;
  std::map<std::array<int64_t, 3>, std::set<uint32_t>> ranks;
  ASSERT_EQ(made.first_item.size(), static_cast<size_t>(thread_blocks) + 1);
  ASSERT_EQ(made.first_item.back(), static_cast<int32_t>(made.items.size()));
  int64_t next_step = 0;
  for (const BackwardItem& item : made.items) {
    EXPECT_TRUE(items.insert({item.batch, item.head_kv, item.key_tile}).second) << "an item twice";
    EXPECT_EQ(item.first_step, next_step);
    next_step += item.steps;
    std::array<uint64_t, 2> live{};
    uint32_t member = 0;
    for (int64_t at = item.first_step; at < next_step; ++at) {
      const BackwardStep step = BackwardStep::unpack(made.steps[static_cast<size_t>(at)]);
      ASSERT_EQ(step.pack(), made.steps[static_cast<size_t>(at)]);
      EXPECT_GE(step.member, member) << "the heads of a group follow one another";
      member = step.member;
      const int64_t head = item.head_kv * group + step.member;
      EXPECT_TRUE((ranks[{item.batch, head, step.tile}].insert(step.rank).second));
      bool is_any = false;
      for (int64_t i = 0; i < made.tile_q && step.tile * made.tile_q + i < slots_q; ++i) {
        for (int64_t j = 0; j < kKeyTile; ++j) {
          const size_t word =
              (static_cast<size_t>(step.pattern) * kKeyTile + static_cast<size_t>(j)) * static_cast<size_t>(words) + static_cast<size_t>(i / 64);
          if (step.pattern != BackwardStep::kEvery && (made.patterns[word] >> (i % 64) & 1) == 0) continue;
          const int64_t query = token_of(*random.plan, item.batch, static_cast<int>(head), step.tile * made.tile_q + i);
          const int64_t key = item.key_tile * kKeyTile + j;
          ASSERT_GE(query, 0) << "padding";
          ASSERT_LT(key, slots_k) << "a key past the end";
          uint8_t& pair = pairs[static_cast<size_t>(((item.batch * o.heads_q + head) * o.seqlen_q + query) * slots_k + key)];
          EXPECT_EQ(pair, 0) << "a pair twice";
          pair = 1;
          live[static_cast<size_t>(j / 64)] |= uint64_t{1} << (j % 64);
          is_any = true;
        }
      }
      EXPECT_TRUE(is_any) << "a step without a pair";
    }
    for (int64_t key = std::max<int64_t>(0, slots_k - item.key_tile * kKeyTile); key < kKeyTile; ++key)
      live[static_cast<size_t>(key / 64)] |= uint64_t{1} << (key % 64);
    EXPECT_EQ(live[0], item.live[0]);
    EXPECT_EQ(live[1], item.live[1]);
  }
  EXPECT_EQ(items.size(), static_cast<size_t>(o.batch * o.heads_kv * key_tiles));
  EXPECT_EQ(pairs, wanted_pairs(random));
  for (const auto& [tile, of_tile] : ranks) {
    EXPECT_EQ(*of_tile.begin(), 0u);
    EXPECT_EQ(*of_tile.rbegin(), of_tile.size() - 1);
  }
}

// Runs thread blocks that wait for their turn at each query tile, the next to move chosen at random; false: all wait.
bool runs_through(const BackwardSteps& made, const PlanOptions& o, int64_t slots_q, int thread_blocks, Rng& rng) {
  const int64_t q_tiles = (slots_q + made.tile_q - 1) / made.tile_q;
  const int group = o.heads_q / o.heads_kv;
  std::vector<uint32_t> turn(static_cast<size_t>(o.batch * o.heads_q * q_tiles), 0);
  struct Block {
    int32_t item, last, at = 0;
  };
  std::vector<Block> blocks;
  for (int i = 0; i < thread_blocks; ++i) blocks.push_back({made.first_item[static_cast<size_t>(i)], made.first_item[static_cast<size_t>(i) + 1]});
  while (!blocks.empty()) {
    const auto start = static_cast<size_t>(uniform(rng, 0, static_cast<int64_t>(blocks.size()) - 1));
    bool has_moved = false;
    for (size_t i = 0; i < blocks.size() && !has_moved; ++i) {
      Block& block = blocks[(start + i) % blocks.size()];
      if (block.item == block.last) {
        blocks.erase(blocks.begin() + static_cast<int64_t>((start + i) % blocks.size()));
        has_moved = true;
        continue;
      }
      const BackwardItem& item = made.items[static_cast<size_t>(block.item)];
      if (block.at == item.steps) {
        ++block.item;
        block.at = 0;
        has_moved = true;
        continue;
      }
      const BackwardStep step = BackwardStep::unpack(made.steps[static_cast<size_t>(item.first_step + block.at)]);
      uint32_t& now = turn[static_cast<size_t>((item.batch * int64_t{o.heads_q} + item.head_kv * group + step.member) * q_tiles + step.tile)];
      if (now != step.rank) continue;
      ++now;
      ++block.at;
      has_moved = true;
    }
    if (!has_moved) return false;
  }
  return true;
}

TEST(BackwardSteps, EveryPairOnceAndNoCircle) {
  for (uint64_t seed = 1; seed <= 250; ++seed) {
    Rng rng(seed);
    const PlanOptions o = random_options(rng);
    const RandomPlan random = testing::random_plan(rng, o);
    const int tile_q = chance(rng, 0.5) ? 64 : 128, thread_blocks = static_cast<int>(uniform(rng, 1, 9));
    SCOPED_TRACE("seed " + std::to_string(seed));
    const BackwardSteps made = make_steps(*random.plan, o.heads_kv, tile_q, thread_blocks, static_cast<unsigned>(seed));
    EXPECT_EQ(made.status[kPatternsOutgrown] + made.status[kStepsOutgrown], 0u);
    expect_steps(random, o, made, thread_blocks);
    EXPECT_TRUE(runs_through(made, o, plan::slots_q(*random.plan), thread_blocks, rng)) << "thread blocks wait in a circle";
    if (HasFailure()) return;
  }
}

// A dense plan of 128-query rows: items that run at once meet different query tiles at any time, so nobody waits; and no tile needs a pattern.
TEST(BackwardSteps, DenseItemsDoNotMeet) {
  auto plan = std::make_shared<PlanData>();
  plan->seqlen_q = plan->seqlen_k = 2048;
  plan->heads_q = 2;
  plan->mask = Mask::full();
  plan->by_query.whole.begin = testing::plan_array<int64_t>(*plan, {1, 1, 16}, std::vector<int64_t>(16, 0));
  plan->by_query.whole.count = testing::plan_array<int32_t>(*plan, {1, 1, 16}, std::vector<int32_t>(16, 1));
  plan->by_query.whole.start = testing::plan_array<int32_t>(*plan, {1}, std::vector<int32_t>{0});
  plan->by_query.whole.stop = testing::plan_array<int32_t>(*plan, {1}, std::vector<int32_t>{2048});
  const BackwardSteps made = make_steps(*plan, 1, 64, 16);
  ASSERT_EQ(made.items.size(), 16u);
  for (int64_t time = 0; time < 64; ++time) {
    std::set<std::pair<uint32_t, uint32_t>> tiles;
    for (const BackwardItem& item : made.items) {
      ASSERT_EQ(item.steps, 64);
      const BackwardStep step = BackwardStep::unpack(made.steps[static_cast<size_t>(item.first_step + time)]);
      EXPECT_EQ(step.pattern, BackwardStep::kEvery);
      EXPECT_TRUE(tiles.insert({step.member, step.tile}).second) << "at step " << time;
    }
  }
}

// Without room for the patterns or for the steps there is no item, and the status says which it was; nothing is written outside.
TEST(BackwardSteps, TooLittleRoomIsReported) {
  Rng rng(5);
  PlanOptions o{.seqlen_q = 300, .seqlen_k = 300, .heads_q = 2, .heads_kv = 1, .tile = 64, .mask = MaskKind::causal, .density = 0.5};
  o.has_rows = true;
  const RandomPlan random = testing::random_plan(rng, o);
  const BackwardSteps enough = make_steps(*random.plan, 1, 64, 4);
  ASSERT_FALSE(enough.items.empty());
  const auto steps = static_cast<int64_t>(enough.status[kSteps]);
  ASSERT_GT(steps, 4);
  const StepsRoom exact{.steps = steps, .patterns = 1000}, few_patterns{.steps = steps, .patterns = 2},
      few_steps{.steps = steps - 1, .patterns = 1000}, none{};
  EXPECT_EQ(make_steps(*random.plan, 1, 64, 4, 1, &exact).items.size(), enough.items.size());
  for (const StepsRoom* room : {&few_patterns, &few_steps, &none}) {
    const BackwardSteps made = make_steps(*random.plan, 1, 64, 4, 1, room);
    EXPECT_EQ(made.first_item, std::vector<int32_t>(5, 0));
    EXPECT_EQ(made.status[kPatternsOutgrown], room == &few_steps ? 0u : 1u);
    if (room == &few_steps) {
      EXPECT_EQ(made.status[kStepsOutgrown], 1u);
    }
  }
}

// What is known of each tile of queries while they are put in order does not fit shared memory.
TEST(BackwardSteps, ManyTilesOfQueries) {
  auto plan = std::make_shared<PlanData>();
  plan->seqlen_q = 64 * (kMostTilesInShared + 1);
  plan->seqlen_k = 300;
  plan->mask = Mask::full();
  plan->by_query.tile = 256;
  const int64_t rows = (plan->seqlen_q + 255) / 256;
  plan->by_query.whole.begin = testing::plan_array<int64_t>(*plan, {1, 1, rows}, std::vector<int64_t>(static_cast<size_t>(rows), 0));
  plan->by_query.whole.count = testing::plan_array<int32_t>(*plan, {1, 1, rows}, std::vector<int32_t>(static_cast<size_t>(rows), 1));
  plan->by_query.whole.start = testing::plan_array<int32_t>(*plan, {1}, std::vector<int32_t>{0});
  plan->by_query.whole.stop = testing::plan_array<int32_t>(*plan, {1}, std::vector<int32_t>{300});
  const BackwardSteps made = make_steps(*plan, 1, 64, 2);
  ASSERT_EQ(made.items.size(), 3u);
  std::vector<std::set<uint32_t>> ranks(kMostTilesInShared + 1);
  for (const uint64_t bits : made.steps) ranks[BackwardStep::unpack(bits).tile].insert(BackwardStep::unpack(bits).rank);
  for (const auto& of_tile : ranks) EXPECT_EQ(of_tile, (std::set<uint32_t>{0, 1, 2}));
}

TEST(BackwardSteps, TooMuchForTheFieldsIsRefused) {
  PlanOptions o{.seqlen_q = 16, .seqlen_k = 16, .heads_q = 128, .heads_kv = 1, .tile = 16, .mask = MaskKind::full};
  Rng rng(1);
  const RandomPlan random = testing::random_plan(rng, o);
  EXPECT_THROW(make_steps(*random.plan, 1, 64, 4), Error);
}

TEST(BackwardSteps, PreparationOfAPlanElsewhereIsRefused) {
  PlanOptions o{.seqlen_q = 16, .seqlen_k = 16, .tile = 16, .mask = MaskKind::full, .density = 1};
  Rng rng(1);
  const RandomPlan random = testing::random_plan(rng, o);
  Context context;
  context.device = {Device::Type::cuda, 0};
  try {
    attend_prepare(random.plan, 1, context);
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), Error::Kind::device) << error.what();
  }
}

}  // namespace
}  // namespace tilewise::attend::sm90
