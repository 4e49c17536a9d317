// SPDX-License-Identifier: Apache-2.0
#include "tilewise/methods/mean_pool.h"

#include "tests/methods/definition_testing.h"
#include "tests/select/mean_pool_reference.h"

namespace tilewise::method {
namespace {

TEST(MeanPoolMethod, EqualsItsDefinition) {
  unsigned seed = 300;
  for (const bool is_causal : {true, false}) {
    for (const testing::Sizes& sizes : testing::problem_sizes()) {
      for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) {
        SCOPED_TRACE(::testing::Message() << sizes << " " << dtype << (is_causal ? " causal" : " full"));
        const testing::TestProblem test(sizes, dtype, is_causal ? Mask::causal() : Mask::full(), ++seed);
        MeanPoolOptions options;
        options.tile = 32;
        options.threshold = .7f;
        Context context;
        testing::expect_tiles(
            mean_pool(test.problem, options, context).plan, test, 32, [&](int64_t b, int h, size_t row, int64_t q_first, int64_t q_last) {
              const auto p = testing::mean_pool_definition(test.q, test.k, b, h, test.head_kv(h), test.problem.mask, 32,
                                                           1 / std::sqrt(static_cast<double>(sizes.dim)), 0)[row];
              testing::Choice choice{testing::prefix(p, {}, static_cast<double>(.7f)), testing::distance_to_cut(p, {}, static_cast<double>(.7f))};
              choice.tiles.merge(testing::forced_tiles(test, 32, q_first, q_last));
              return choice;
            });
      }
    }
  }
}

TEST(MeanPoolMethod, KeepsTheAskedDensity) {
  const testing::TestProblem test({1, 2, 1, 640, 640, 16}, Dtype::f32, Mask::causal(), 7);
  Context context;
  const Plan plan = plan_with("mean_pool", test.problem, parse_options("mean_pool", "tile=16,density=0.25"), context).plan;
  const double density = static_cast<double>(testing::bits_of(*plan, false).count()) / static_cast<double>(plan->dense_reads);
  EXPECT_NEAR(density, .25, .02);
}

}  // namespace
}  // namespace tilewise::method
