// SPDX-License-Identifier: Apache-2.0
#include "tilewise/plan/exchange/bsr.h"

#include <gtest/gtest.h>

#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "tests/plan/random_pairs.h"
#include "tilewise/plan/bits.h"
#include "tilewise/plan/count.h"
#include "tilewise/plan/make.h"
#include "tilewise/plan/validate.h"

namespace tilewise {
namespace {

using attend::testing::chance;
using attend::testing::random_plan;
using attend::testing::Rng;
using attend::testing::uniform;

/// What the blocks say, in plain loops: bool [B, Hq, Sq, Sk].
std::vector<uint8_t> pairs_of(const Bsr& bsr, int64_t batch, int heads) {
  std::vector<uint8_t> pairs(static_cast<size_t>(batch * heads * bsr.seqlen_q * bsr.seqlen_k), 0);
  for (int64_t b = 0; b < batch; ++b) {
    for (int64_t h = 0; h < heads; ++h) {
      const int64_t be = bsr.indptr.dim(0) == 1 ? 0 : b, g = h * bsr.indptr.dim(1) / heads;
      for (int64_t row = 0; row + 1 < bsr.indptr.dim(2); ++row) {
        for (int64_t i = bsr.indptr.at<int32_t>(be, g, row); i < bsr.indptr.at<int32_t>(be, g, row + 1); ++i) {
          for (int64_t q = 0; q < bsr.block_q; ++q) {
            for (int64_t k = 0; k < bsr.block_k; ++k) {
              const int64_t query = row * bsr.block_q + q, key = int64_t{bsr.indices.at<int32_t>(i)} * bsr.block_k + k;
              if (query >= bsr.seqlen_q || key >= bsr.seqlen_k || (bsr.mask.has_value() && !bsr.mask.at<bool>(i, q, k))) continue;
              ++pairs[static_cast<size_t>(((b * heads + h) * bsr.seqlen_q + query) * bsr.seqlen_k + key)];
            }
          }
        }
      }
    }
  }
  return pairs;
}

std::vector<uint8_t> pairs_of(const Plan& plan) {
  const Tensor bits = to_bits(plan);
  const auto* values = static_cast<const uint8_t*>(bits.view.raw());
  return {values, values + bits.view.numel()};
}

TEST(Bsr, HoldsEveryPairOfAPlanAndGivesItBack) {
  Context context;
  for (uint64_t seed = 0; seed < 150; ++seed) {
    Rng rng(seed);
    auto options = testing::random_options(rng);
    options.pools.clear();
    options.has_order_q = options.has_order_k = false;
    const Plan plan = random_plan(rng, options).plan;
    const int block_q = static_cast<int>(uniform(rng, 1, 70)), block_k = static_cast<int>(uniform(rng, 1, 70));
    const std::string where = "seed " + std::to_string(seed) + " blocks " + std::to_string(block_q) + " x " + std::to_string(block_k);
    const OwnedBsr made = bsr_of_plan({.plan = plan, .block_q = block_q, .block_k = block_k, .has_mask = true}, context);
    ASSERT_EQ(pairs_of(made.bsr, plan->batch, plan->heads_q), pairs_of(plan)) << where;
    for (const int tile : {0, 16, 64, 256}) {
      const Plan back = plan_of_bsr({.bsr = made.bsr, .tile = tile, .batch = plan->batch, .heads_q = plan->heads_q}, context);
      ASSERT_EQ(pairs_of(back), pairs_of(plan)) << where << " tile " << tile;
      ASSERT_FALSE(find_fault(back, back->mask).has_value()) << where;
      const Plan masked = plan_of_bsr({.bsr = made.bsr, .tile = tile, .mask = plan->mask, .batch = plan->batch, .heads_q = plan->heads_q}, context);
      ASSERT_EQ(pairs_of(masked), pairs_of(plan)) << where << " under the mask, tile " << tile;
      ASSERT_FALSE(find_fault(masked, plan->mask).has_value()) << where;
    }
    // 1 x 1 blocks hold any plan without a mask.
    const OwnedBsr single = bsr_of_plan({.plan = plan, .block_q = 1, .block_k = 1}, context);
    EXPECT_FALSE(single.bsr.mask.has_value());
    ASSERT_EQ(pairs_of(single.bsr, plan->batch, plan->heads_q), pairs_of(plan)) << where;
  }
}

/// Random blocks, per head where `groups` says so.
struct Blocks {
  std::vector<int32_t> indptr, indices;
  Bsr bsr;
};
Blocks random_blocks(Rng& rng, int64_t sq, int64_t sk, int block_q, int block_k, int64_t batch, int64_t groups) {
  Blocks blocks;
  const int64_t rows = (sq + block_q - 1) / block_q, columns = (sk + block_k - 1) / block_k;
  for (int64_t list = 0; list < batch * groups; ++list) {
    blocks.indptr.push_back(static_cast<int32_t>(blocks.indices.size()));
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t j = 0; j < columns; ++j) {
        if (chance(rng, 0.4)) blocks.indices.push_back(static_cast<int32_t>(j));
      }
      blocks.indptr.push_back(static_cast<int32_t>(blocks.indices.size()));
    }
  }
  blocks.indices.reserve(blocks.indices.size() + 1);
  blocks.bsr = {sq,
                sk,
                block_q,
                block_k,
                TensorView::of(blocks.indptr.data(), {batch, groups, rows + 1}),
                TensorView::of(blocks.indices.data(), {static_cast<int64_t>(blocks.indices.size())}),
                {}};
  return blocks;
}

TEST(Bsr, ComesBackBlockForBlock) {
  Context context;
  for (uint64_t seed = 0; seed < 100; ++seed) {
    Rng rng(seed);
    const int64_t sq = uniform(rng, 1, 200), sk = uniform(rng, 1, 200), batch = uniform(rng, 1, 2);
    const int block_q = static_cast<int>(uniform(rng, 1, 300)), block_k = static_cast<int>(uniform(rng, 1, 70));
    const int groups = static_cast<int>(uniform(rng, 1, 2)), heads = 4;
    const Blocks blocks = random_blocks(rng, sq, sk, block_q, block_k, batch, groups);
    const Plan plan = plan_of_bsr({.bsr = blocks.bsr, .batch = 2, .heads_q = heads}, context);
    ASSERT_EQ(pairs_of(plan), pairs_of(blocks.bsr, 2, heads)) << "seed " << seed;
    const OwnedBsr back = bsr_of_plan({.plan = plan, .block_q = block_q, .block_k = block_k}, context);
    EXPECT_FALSE(back.bsr.mask.has_value());
    ASSERT_EQ(pairs_of(back.bsr, 2, heads), pairs_of(blocks.bsr, 2, heads)) << "seed " << seed;
    // Under a mask the blocks are tested.
    const Plan causal = plan_of_bsr({.bsr = blocks.bsr, .mask = Mask::causal(), .batch = 2, .heads_q = heads}, context);
    std::vector<uint8_t> want = pairs_of(blocks.bsr, 2, heads);
    for (size_t i = 0; i < want.size(); ++i) {
      const int64_t key = static_cast<int64_t>(i) % sk, query = static_cast<int64_t>(i) / sk % sq;
      if (key > query + sk - sq) want[i] = 0;
    }
    ASSERT_EQ(pairs_of(causal), want) << "seed " << seed;
    ASSERT_FALSE(find_fault(causal, causal->mask).has_value()) << "seed " << seed;
  }
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

TEST(Bsr, NamesWhatBlocksCannotSay) {
  Context context;
  const Plan causal = dense_plan({.seqlen_q = 100, .seqlen_k = 100, .tile = 32, .heads_q = 2});
  const std::string partial = message_of([&] { bsr_of_plan({.plan = causal}, context); }, Error::Kind::unsupported);
  EXPECT_NE(partial.find("query 0 of head 0 reads 1 of the 32 keys of block 0"), std::string::npos) << partial;
  EXPECT_NE(partial.find("has_mask"), std::string::npos) << partial;
  const Plan full = dense_plan({.seqlen_q = 100, .seqlen_k = 90, .tile = 32, .mask = Mask::full(), .heads_q = 2});
  const OwnedBsr blocks = bsr_of_plan({.plan = full, .block_k = 16}, context);
  EXPECT_EQ(blocks.bsr.indices.dim(0), 4 * 6);
  EXPECT_EQ(blocks.bsr.indptr.shape(), (Shape{1, 1, 5}));
  std::vector<int32_t> tokens(90);
  for (int32_t i = 0; i < 90; ++i) tokens[static_cast<size_t>(i)] = i;
  const auto ordered = std::make_shared<PlanData>();
  ordered->seqlen_q = 100, ordered->seqlen_k = 90, ordered->mask = Mask::full();
  ordered->order_k.token = TensorView::of(tokens.data(), {1, 1, 90});
  EXPECT_NE(message_of([&] { bsr_of_plan({.plan = ordered}, context); }, Error::Kind::unsupported).find("order_k"), std::string::npos);
  ordered->order_k = {};
  ordered->pools = {8};
  EXPECT_NE(message_of([&] { bsr_of_plan({.plan = ordered}, context); }, Error::Kind::unsupported).find("pools"), std::string::npos);
  EXPECT_NE(message_of([&] { bsr_of_plan({}, context); }, Error::Kind::value).find("null"), std::string::npos);
  EXPECT_NE(message_of([&] { bsr_of_plan({.plan = full, .block_q = -1}, context); }, Error::Kind::value).find("block_q is -1"), std::string::npos);
}

TEST(Bsr, RefusesBadArrays) {
  Context context;
  Rng rng(1);
  const auto says = [&](const std::function<void(Blocks&, PlanOfBsrParams&)>& change, Error::Kind kind, const std::string& text) {
    Blocks blocks = random_blocks(rng, 100, 100, 20, 10, 1, 2);
    blocks.indices.resize(static_cast<size_t>(blocks.bsr.indices.dim(0)));
    PlanOfBsrParams params{.bsr = blocks.bsr, .heads_q = 4};
    change(blocks, params);
    const std::string message = message_of([&] { plan_of_bsr(params, context); }, kind);
    EXPECT_NE(message.find(text), std::string::npos) << "wanted '" << text << "', got '" << message << "'";
  };
  says([](Blocks&, PlanOfBsrParams& p) { p.bsr.indptr = {}; }, Error::Kind::shape, "indptr");
  says([](Blocks&, PlanOfBsrParams& p) { p.bsr.indices = {}; }, Error::Kind::shape, "indices");
  says([](Blocks&, PlanOfBsrParams& p) { p.bsr.indptr = p.bsr.indptr.slice(2, 0, 3); }, Error::Kind::shape, "indptr");
  says([](Blocks&, PlanOfBsrParams& p) { p.heads_q = 3; }, Error::Kind::shape, "a divisor of 3");
  says([](Blocks&, PlanOfBsrParams& p) { p.bsr.block_q = 0; }, Error::Kind::value, "block_q is 0");
  says([](Blocks&, PlanOfBsrParams& p) { p.bsr.seqlen_q = -1; }, Error::Kind::value, "seqlen_q is -1");
  says([](Blocks&, PlanOfBsrParams& p) { p.tile = 300; }, Error::Kind::value, "tile is 300");
  says([](Blocks&, PlanOfBsrParams& p) { p.mask = {}; }, Error::Kind::value, "mask");
  says([](Blocks& b, PlanOfBsrParams&) { b.indptr[2] = -1; }, Error::Kind::value, "indptr of block row 1");
  says([](Blocks& b, PlanOfBsrParams&) { b.indptr.back() += 1; }, Error::Kind::value, "indptr of block row 4");
  says([](Blocks& b, PlanOfBsrParams&) { b.indices[0] = 10; }, Error::Kind::value, "indices[0]");
  says([](Blocks& b, PlanOfBsrParams&) { b.indices[1] = b.indices[0]; }, Error::Kind::value, "indices[1]");
  Tensor mask(host_memory(), Dtype::boolean, {3, 20, 10});
  mask.fill_zero();
  says([&](Blocks&, PlanOfBsrParams& p) { p.bsr.mask = mask.view; }, Error::Kind::shape, "mask is [3, 20, 10]");
  Tensor floats(host_memory(), Dtype::f32, {100});
  says([&](Blocks&, PlanOfBsrParams& p) { p.bsr.indices = floats.view; }, Error::Kind::dtype, "indices is f32");
}

}  // namespace
}  // namespace tilewise
