// SPDX-License-Identifier: Apache-2.0
// Random problems of every kind, each from one seed: the CPU backend against the float64 definition. K and V end at pages that nobody may touch, keys outside of
// every run are NaN, out and lse lie between red zones. TILEWISE_TEST_CASES=20000 runs more of them, TILEWISE_TEST_CASE=817 that one alone.
#include <gtest/gtest.h>
#include <signal.h>

#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>

#include "tests/attend/backward_testing.h"
#include "tests/attend/cpu/cpu_testing.h"
#include "tests/attend/decode_testing.h"
#include "tests/attend/random_case.h"
#include "tilewise/attend/cpu/backward.h"
#include "tilewise/attend/cpu/decode.h"
#include "tilewise/attend/cpu/forward.h"
#include "tilewise/attend/cpu/measure.h"
#include "tilewise/machine/cpu/context.h"

namespace tilewise::attend::testing {
namespace {

// Which case runs, for one who reads the last words of a program that touched a guarded page.
char current_case[200];
struct sigaction action_before;

void say_case(int, siginfo_t*, void*) {
  if (write(STDERR_FILENO, current_case, std::strlen(current_case)) < 0) std::abort();
  sigaction(SIGSEGV, &action_before, nullptr);  // returning runs the instruction again, into the handler that was there before
}

std::string reproduction(uint64_t seed) {
  return "case " + std::to_string(seed) + "; again: TILEWISE_TEST_CASE=" + std::to_string(seed) + " attend_random_cases_test";
}

class RandomCases : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    struct sigaction action{};
    action.sa_sigaction = &say_case;
    action.sa_flags = SA_SIGINFO;
    sigaction(SIGSEGV, &action, &action_before);
  }
  static void TearDownTestSuite() { sigaction(SIGSEGV, &action_before, nullptr); }

  // One context for each number of threads.
  Context& context_of(int threads) {
    const auto [at, is_new] = contexts_.try_emplace(threads);
    if (is_new) at->second = cpu_context(threads);
    return at->second;
  }

  void run_case(uint64_t seed) {
    const std::string note = reproduction(seed);
    std::snprintf(current_case, sizeof(current_case), "\nstopped in %s\n", note.c_str());
    Rng rng(seed);
    const auto targets = machine::cpu::available_targets();
    const ForcedTarget forced(targets[static_cast<size_t>(uniform(rng, 0, static_cast<int64_t>(targets.size()) - 1))]);
    Context& context = context_of(static_cast<int>(uniform(rng, 1, 3)));
    const ProblemOptions options = random_case_options(rng);
    ForwardProblem problem = make_problem(rng, options);
    if (chance(rng, 0.3)) {
      const float sink = chance(rng, 0.5) ? 20.0f : -std::numeric_limits<float>::infinity();
      for_each_offset(problem.sink_logit.view, [&](int64_t offset) {
        if (chance(rng, 0.5)) from_double(problem.sink_logit.view, offset, static_cast<double>(sink));
      });
    }
    if (chance(rng, 0.7)) poison_untouched(problem);
    expect_forward(problem, [](const AttendParams& params, Context& c) { return cpu::forward(params, c); }, context, note, 1);
    if (chance(rng, 0.6)) {
      const MeasureProblem measurement = random_case_measure(rng, problem);
      expect_measure(measurement, [](const MeasureParams& params, Context& c) { return cpu::measure(params, c); }, context, note);
    }
    if (chance(rng, 0.2)) {  // a cache of its own kinds: plain, quantised, paged
      const DecodeCase decode_case = make_case(rng, random_decode(rng, false));
      cpu::decode(check_decode(decode_case.params(), context), context);
      expect_answer(decode_case, 0x1p-22, note + ": decode, " + describe(decode_case.options));
    }
    if (chance(rng, 0.4)) {
      const BackwardProblem gradient = make_backward_of(rng, problem);
      if (cpu::refusal(gradient.params())) return;
      SCOPED_TRACE(note + ": backward, " + describe(options));
      gradient.wipe();
      EXPECT_EQ(cpu::backward(gradient.params(), context).pairs_read, problem.plan.reads);
      expect_gradients(gradient, exact_backward(gradient), backward_in_dtype(gradient), 1);
    }
  }

  std::map<int, Context> contexts_;
};

TEST_F(RandomCases, EqualTheDefinition) {
  const char* const one = std::getenv("TILEWISE_TEST_CASE");
  if (one != nullptr) return run_case(std::strtoull(one, nullptr, 10));
  const char* const text = std::getenv("TILEWISE_TEST_CASES");
  const uint64_t cases = text != nullptr ? std::strtoull(text, nullptr, 10) : 1000;
  ASSERT_GE(cases, 1U);
  for (uint64_t seed = 1; seed <= cases && !HasFailure(); ++seed) {
    try {
      run_case(seed);
    } catch (const std::exception& error) {
      ADD_FAILURE() << reproduction(seed) << ": " << error.what();
    }
  }
}

// What the generator makes must reach every corner: counted over the cases that CI runs.
TEST_F(RandomCases, ReachEveryCorner) {
  std::map<std::string, int> seen;
  for (uint64_t seed = 1; seed <= 1000; ++seed) {
    Rng rng(seed);
    uniform(rng, 0, 3);
    uniform(rng, 1, 3);
    const ProblemOptions o = random_case_options(rng);
    const PlanOptions& p = o.plan;
    ++seen["mask " + std::to_string(static_cast<int>(p.mask))];
    ++seen["GQA " + std::to_string(p.heads_q / p.heads_kv)];
    ++seen["layout " + std::to_string(static_cast<int>(o.layout))];
    ++seen["dtype " + std::to_string(static_cast<int>(o.dtype))];
    seen["Sq 0"] += p.seqlen_q == 0 ? 1 : 0;
    seen["Sq 1"] += p.seqlen_q == 1 ? 1 : 0;
    seen["Sk 0"] += p.seqlen_k == 0 ? 1 : 0;
    seen["Sk 1"] += p.seqlen_k == 1 ? 1 : 0;
    for (const int64_t step : {-1, 0, 1}) seen["tile " + std::to_string(step)] += p.seqlen_q == p.tile + step && p.seqlen_k > 1 ? 1 : 0;
    seen["empty rows"] += p.empty_rows > 0.5 ? 1 : 0;
    seen["one run"] += p.has_one_run ? 1 : 0;
    seen["everything kept"] += p.density == 1 ? 1 : 0;
    seen["both orders and pools"] += p.has_order_q && p.has_order_k && !p.pools.empty() ? 1 : 0;
    seen["by key"] += p.is_by_key ? 1 : 0;
    seen["softcap and sink"] += o.softcap != 0 && o.has_sink ? 1 : 0;
    seen["Dv"] += o.head_dim_v != 0 && o.head_dim_v != o.head_dim ? 1 : 0;
    seen["lse alone"] += !o.has_out ? 1 : 0;
  }
  for (const auto& [corner, count] : seen) EXPECT_GE(count, 5) << corner;
  for (const char* const corner :
       {"mask 0", "mask 1", "mask 2", "mask 3", "mask 4", "mask 5", "mask 6", "GQA 1", "GQA 16", "layout 0", "layout 1", "layout 2"}) {
    EXPECT_GE(seen[corner], 20) << corner;
  }
}

}  // namespace
}  // namespace tilewise::attend::testing
