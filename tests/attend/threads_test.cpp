// SPDX-License-Identifier: Apache-2.0
// Many callers at once, on shared plans and one shared pool of threads; also run under ThreadSanitizer. Every result has the bits of a serial run.
#include <gtest/gtest.h>

#include <atomic>
#include <thread>
#include <vector>

#include "tests/attend/attend_testing.h"
#include "tilewise/attend/backend.h"
#include "tilewise/machine/cpu/thread_pool.h"

namespace tilewise::attend::testing {
namespace {

// What one caller computes and compares: forward, backward and a measurement, each into memory of its own.
struct Work {
  explicit Work(const ForwardProblem& shared) : problem(shared) {
    const PlanOptions& p = shared.options.plan;
    problem.out = HostTensor(shared.options.dtype, shared.out.view.shape());
    problem.lse = HostTensor(Dtype::f32, shared.lse.view.shape());
    dq = HostTensor(shared.options.dtype, shared.q.view.shape());
    dk = HostTensor(shared.options.dtype, shared.k.view.shape());
    dv = HostTensor(shared.options.dtype, shared.v.view.shape());
    sum = HostTensor(Dtype::f32, {p.batch, p.heads_q, p.seqlen_q});
  }
  void run(const Backend& backend, Context& context) {
    const AttendParams forward = problem.params();
    if (backend.forward != nullptr && !backend.forward_refusal(forward)) backend.forward(forward, context);
    const AttendBackwardParams backward{.forward = forward, .dout = forward.out, .dq = dq.view, .dk = dk.view, .dv = dv.view};
    if (backend.backward != nullptr && !backend.backward_refusal(backward)) backend.backward(backward, context);
    const MeasureParams m{.q = forward.q, .k = forward.k, .plan = forward.plan, .lse = forward.lse, .over = MeasureOver::query, .sum = sum.view};
    if (backend.measure != nullptr && !backend.measure_refusal(m)) backend.measure(m, context);
  }
  std::vector<std::vector<double>> results() const {
    std::vector<std::vector<double>> all;
    for (const HostTensor* tensor : {&problem.out, &problem.lse, &dq, &dk, &dv, &sum}) all.push_back(values_of(tensor->view));
    return all;
  }
  ForwardProblem problem;
  HostTensor dq, dk, dv, sum;
};

TEST(AttendThreads, SixteenCallersShareOnePlanAndOnePool) {
  Rng rng(41);
  std::vector<ForwardProblem> problems;
  for (const bool is_plain : {true, false}) {  // the second has orders and pools
    ProblemOptions options;
    options.plan = {
        .batch = 2, .seqlen_q = 65, .seqlen_k = 80, .heads_q = 4, .heads_kv = 2, .tile = 16, .groups = 2, .has_picked = true, .has_rows = true};
    options.plan.has_shared = true;
    if (!is_plain) {
      options.plan.has_order_q = options.plan.has_order_k = true;
      options.plan.pools = {4};
    }
    options.head_dim = 16;
    problems.push_back(make_problem(rng, options));
  }
  for (const Backend& backend : backends()) {
    SCOPED_TRACE(std::string(backend.name));
    std::vector<std::vector<std::vector<double>>> expected;
    for (const ForwardProblem& problem : problems) {
      Context serial;
      Work work(problem);
      work.run(backend, serial);
      expected.push_back(work.results());
    }
    const auto pool = make_thread_pool(4);
    std::atomic<int> wrong{0};
    std::vector<std::thread> callers;
    callers.reserve(16);
    for (int caller = 0; caller < 16; ++caller) {
      callers.emplace_back([&, caller] {
        Context context;
        if (caller % 4 != 3) context.executor = pool;  // one caller in four stays serial
        for (int call = 0; call < 8; ++call) {
          const size_t which = static_cast<size_t>(caller + call) % problems.size();
          Work work(problems[which]);
          work.run(backend, context);
          if (work.results() != expected[which]) ++wrong;
        }
      });
    }
    for (std::thread& caller : callers) caller.join();
    EXPECT_EQ(wrong, 0) << "calls whose bits differ from the serial run";
  }
}

}  // namespace
}  // namespace tilewise::attend::testing
