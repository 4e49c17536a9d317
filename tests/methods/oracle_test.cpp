// SPDX-License-Identifier: Apache-2.0
#include "tilewise/methods/oracle.h"

#include "tests/methods/definition_testing.h"

namespace tilewise::method {
namespace {

using testing::Choice;
using testing::TestProblem;

/// mass[j] of one row: softmax probabilities of each query, summed over its keys in tile j, then by `rule` over the queries.
std::vector<double> true_mass(const TestProblem& test, int64_t b, int h, int64_t q_first, int64_t q_last, int tile, OracleOptions::Rule rule) {
  const int64_t sk = test.k.view.dim(2), dim = test.k.view.dim(3), offset = sk - test.q.view.dim(2);
  std::vector<double> mass(static_cast<size_t>((sk + tile - 1) / tile), 0.0);
  for (int64_t q = q_first; q < q_last; ++q) {
    std::vector<double> of_query(mass.size(), 0.0), s(static_cast<size_t>(sk), -HUGE_VAL);
    double most = -HUGE_VAL, total = 0;
    for (int64_t k = 0; k < sk; ++k) {
      if (!testing::mask_allows(test.problem.mask, h, b, q, offset, k)) continue;
      double dot = 0;
      for (int64_t d = 0; d < dim; ++d) dot += test.q.get(b, h, q, d) * test.k.get(b, test.head_kv(h), k, d);
      s[static_cast<size_t>(k)] = dot / std::sqrt(static_cast<double>(dim));
      most = std::max(most, s[static_cast<size_t>(k)]);
    }
    for (const double value : s) total += most == -HUGE_VAL ? 0 : std::exp(value - most);
    for (int64_t k = 0; k < sk && total > 0; ++k) of_query[static_cast<size_t>(k / tile)] += std::exp(s[static_cast<size_t>(k)] - most) / total;
    for (size_t j = 0; j < mass.size(); ++j) mass[j] = rule == OracleOptions::Rule::sum ? mass[j] + of_query[j] : std::max(mass[j], of_query[j]);
  }
  return mass;
}

TEST(Oracle, EqualsItsDefinition) {
  const testing::OnReference on_reference;
  unsigned seed = 500;
  for (const bool is_causal : {true, false}) {
    for (const testing::Sizes& sizes : testing::problem_sizes()) {
      for (const int variant : {0, 1, 2}) {
        OracleOptions options;
        options.tile = 32;
        options.rule = variant == 2 ? OracleOptions::Rule::max : OracleOptions::Rule::sum;
        options.force = variant == 1;
        options.threshold = variant == 2 ? .3f : .8f;
        SCOPED_TRACE(::testing::Message() << sizes << " variant " << variant << (is_causal ? " causal" : " full"));
        const TestProblem test(sizes, variant == 0 ? Dtype::bf16 : Dtype::f32, is_causal ? Mask::causal() : Mask::full(), ++seed);
        Context context;
        testing::expect_tiles(oracle(test.problem, options, context).plan, test, 32,
                              [&](int64_t b, int h, size_t row, int64_t q_first, int64_t q_last) {
                                (void)row;
                                const std::vector<double> mass = true_mass(test, b, h, q_first, q_last, 32, options.rule);
                                const std::set<int64_t> forced = variant > 0 ? testing::forced_tiles(test, 32, q_first, q_last) : std::set<int64_t>{};
                                const double tau = static_cast<double>(options.threshold);
                                if (variant < 2) return Choice{testing::prefix(mass, forced, tau), testing::distance_to_cut(mass, forced, tau)};
                                Choice choice{forced};
                                for (size_t j = 0; j < mass.size(); ++j) {
                                  if (mass[j] >= tau) choice.tiles.insert(static_cast<int64_t>(j));
                                  choice.distance = std::min(choice.distance, std::abs(mass[j] - tau));
                                }
                                return choice;
                              });
      }
    }
  }
}

TEST(Oracle, TakesWindowsAndSpans) {
  const testing::OnReference on_reference;
  std::vector<int32_t> spans;
  for (int q = 0; q < 100; ++q) spans.insert(spans.end(), {0, q / 2 + 1, 60, 60 + q / 3});
  Mask window, of_spans;
  window.bands = {Mask::Band{30, 4, 8}};
  of_spans.spans = TensorView::of(spans.data(), {1, 1, 100, 4});
  for (const Mask& mask : {window, of_spans}) {
    const TestProblem test({1, 2, 1, 100, 100, 16}, Dtype::f32, Mask::full(), 77);
    Problem problem = test.problem;
    problem.mask = mask;
    Context context;
    const Plan all = plan_with("oracle", problem, parse_options("oracle", "threshold=1,tile=16"), context).plan;
    EXPECT_TRUE(testing::bits_of(*all, true) == testing::bits_of_mask(mask, 1, 2, 100, 100));
    const Plan most = plan_with("oracle", problem, parse_options("oracle", "threshold=0.5,tile=16"), context).plan;
    EXPECT_LT(testing::bits_of(*most, true).count(), testing::bits_of(*all, true).count());
  }
}

}  // namespace
}  // namespace tilewise::method
