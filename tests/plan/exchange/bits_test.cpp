// SPDX-License-Identifier: Apache-2.0
#include "tilewise/plan/exchange/bits.h"

#include <gtest/gtest.h>

#include <cstring>
#include <functional>
#include <string>

#include "tests/plan/random_pairs.h"
#include "tilewise/plan/bits.h"
#include "tilewise/plan/count.h"
#include "tilewise/plan/make.h"
#include "tilewise/plan/validate.h"

namespace tilewise {
namespace {

using attend::testing::random_plan;
using attend::testing::Rng;

void expect_equal(const TensorView& want, const TensorView& got, const std::string& where) {
  ASSERT_EQ(want.shape(), got.shape()) << where;
  ASSERT_EQ(std::memcmp(want.raw(), got.raw(), static_cast<size_t>(want.numel())), 0) << where;
}

TEST(PlanOfBits, GivesBackEveryPairAtEveryTile) {
  Context context;
  for (uint64_t seed = 0; seed < 150; ++seed) {
    Rng rng(seed);
    auto options = testing::random_options(rng);
    options.pools.clear();
    const Plan plan = random_plan(rng, options).plan;
    const Tensor bits = to_bits(plan);
    for (const int tile : {16, 48, 64, 256}) {
      const std::string where = "seed " + std::to_string(seed) + " tile " + std::to_string(tile);
      const Plan made = plan_of_bits({.bits = bits.view, .tile = tile}, context);
      expect_equal(bits.view, to_bits(made).view, where);
      EXPECT_FALSE(find_fault(made, made->mask).has_value()) << where;
      // What the plan lets through is what its mask lets through: the same pairs under that mask.
      const Plan masked = plan_of_bits({.bits = bits.view, .tile = tile, .mask = plan->mask}, context);
      expect_equal(bits.view, to_bits(masked).view, where + " under the mask");
      EXPECT_FALSE(find_fault(masked, plan->mask).has_value()) << where;
    }
  }
}

TEST(PlanOfBits, FindsTheDensePlanInItsBits) {
  Context context;
  for (const auto& [sq, sk] : {std::pair<int64_t, int64_t>{200, 200}, {70, 300}, {1, 5}}) {
    const Plan dense = dense_plan({.seqlen_q = sq, .seqlen_k = sk, .tile = 64});
    const Tensor bits = to_bits(dense);
    const Plan made = plan_of_bits({.bits = bits.view, .tile = 64, .mask = Mask::causal(), .batch = 2, .heads_q = 3}, context);
    EXPECT_EQ(made->batch, 2);
    EXPECT_EQ(made->heads_q, 3);
    EXPECT_DOUBLE_EQ(density(made), 1.0);
    EXPECT_FALSE(made->by_query.masked.rows.has_value());
    EXPECT_EQ(made->by_query.whole.begin.dim(1), 1);  // one list for all
    EXPECT_EQ(allowed_pairs(made), 6 * allowed_pairs(dense));
  }
}

TEST(PlanOfBits, RefusesWhatItCannotTake) {
  Context context;
  Tensor bits(host_memory(), Dtype::boolean, {1, 2, 20, 30}), floats(host_memory(), Dtype::f32, {1, 2, 20, 30});
  std::memset(bits.view.raw(), 1, 1200);
  const auto says = [&](const PlanOfBitsParams& params, Error::Kind kind, const std::string& text) {
    try {
      plan_of_bits(params, context);
      ADD_FAILURE() << "took what " << text << " is wrong with";
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), kind) << error.what();
      EXPECT_NE(std::string(error.what()).find(text), std::string::npos) << error.what();
    }
  };
  says({}, Error::Kind::shape, "bits");
  says({.bits = floats.view}, Error::Kind::dtype, "bits is f32");
  says({.bits = bits.view, .tile = 15}, Error::Kind::value, "tile is 15");
  says({.bits = bits.view, .heads_q = 3}, Error::Kind::shape, "heads_q 3");
  says({.bits = bits.view, .batch = -1}, Error::Kind::value, "batch is -1");
  says({.bits = bits.view, .mask = {}}, Error::Kind::value, "mask");
  says({.bits = bits.view, .mask = Mask::causal()}, Error::Kind::value, "which mask forbids");
}

}  // namespace
}  // namespace tilewise
