// SPDX-License-Identifier: Apache-2.0
// The tools that backends are tested with notice what they are there to notice.
#include "tests/attend/attend_testing.h"

#include <gtest/gtest-spi.h>
#include <gtest/gtest.h>

namespace tilewise::attend::testing {
namespace {

ForwardProblem problem_of(Dtype dtype) {
  Rng rng(51);
  ProblemOptions options;
  options.plan = {.batch = 2, .seqlen_q = 65, .seqlen_k = 80, .heads_q = 4, .heads_kv = 2, .tile = 64, .has_picked = true, .has_rows = true};
  options.dtype = dtype;
  options.head_dim = 32;
  options.layout = Layout::padded;
  return make_problem(rng, options);
}

// Runs the reference, then does one thing wrong.
template <class Mistake>
void forward_with(const ForwardProblem& problem, const Mistake& mistake) {
  Context context;
  expect_forward(
      problem,
      [&](const AttendParams& params, Context& c) {
        Ran ran = reference::forward(params, c);
        mistake(params, ran);
        return ran;
      },
      context, "mistake");
}

TEST(AttendTesting, ExpectForwardNoticesMistakes) {
  static const ForwardProblem f32 = problem_of(Dtype::f32), bf16 = problem_of(Dtype::bf16);
  forward_with(f32, [](const AttendParams&, Ran&) {});
  forward_with(bf16, [](const AttendParams&, Ran&) {});
  EXPECT_NONFATAL_FAILURE(forward_with(f32, [](const AttendParams&, Ran& ran) { ++ran.pairs_read; }), "pairs_read");
  EXPECT_NONFATAL_FAILURE(forward_with(f32, [](const AttendParams& p, Ran&) { p.out.at<float>(1, 3, 64, 31) += 2e-5f; }), "out");
  EXPECT_NONFATAL_FAILURE(forward_with(f32, [](const AttendParams& p, Ran&) { p.lse.at<float>(1, 3, 64) += 2e-5f; }), "lse");
  EXPECT_NONFATAL_FAILURE(forward_with(f32, [](const AttendParams& p, Ran&) { p.out.at<float>(0, 0, 0, 0) = std::nanf(""); }), "out");
  EXPECT_NONFATAL_FAILURE(forward_with(bf16, [](const AttendParams& p, Ran&) { p.out.at<tilewise::bf16>(0, 0, 0, 0) = tilewise::bf16(0.25f); }),
                          "out");
  EXPECT_NONFATAL_FAILURE(forward_with(f32, [](const AttendParams& p, Ran&) { p.out.at<float>(0, 0, 0, 32) = 1; }),
                          "outside of out");  // one past a row
  EXPECT_NONFATAL_FAILURE(forward_with(f32, [](const AttendParams& p, Ran&) { p.lse.at<float>(1, 3, 65) = 1; }), "outside of lse");
}

TEST(AttendTesting, SameSeedSamePlanAndAllKindsOccur) {
  int whole = 0, masked = 0, picked = 0, with_rows = 0, shared = 0, empty_rows = 0;
  for (uint64_t seed = 0; seed < 60; ++seed) {
    Rng a(seed), b(seed);
    const ForwardProblem one = make_problem(a, random_options(a, true)), two = make_problem(b, random_options(b, true));
    EXPECT_EQ(one.plan.pairs, two.plan.pairs);
    EXPECT_EQ(values_of(one.q.view), values_of(two.q.view));
    const Lists& lists = one.options.plan.is_by_key ? one.plan.plan->by_key : one.plan.plan->by_query;
    const auto runs = [](const RunList& list) {
      int64_t total = 0;
      for (int64_t i = 0; list.has_runs() && i < list.count.numel(); ++i) total += list.count.data<int32_t>()[i];
      return total;
    };
    whole += runs(lists.whole) > 0;
    masked += runs(lists.masked) > 0;
    picked += runs(lists.picked) > 0;
    with_rows += lists.masked.rows.has_value();
    for (int64_t i = 1; i < lists.whole.begin.numel(); ++i) {
      shared += lists.whole.count.data<int32_t>()[i] > 0 && lists.whole.begin.data<int64_t>()[i] == lists.whole.begin.data<int64_t>()[i - 1];
      empty_rows += lists.whole.count.data<int32_t>()[i] == 0 && lists.masked.count.data<int32_t>()[i] == 0;
    }
  }
  EXPECT_GT(whole, 20);
  EXPECT_GT(masked, 30);
  EXPECT_GT(picked, 10);
  EXPECT_GT(with_rows, 10);
  EXPECT_GT(shared, 10);
  EXPECT_GT(empty_rows, 10);
}

}  // namespace
}  // namespace tilewise::attend::testing
