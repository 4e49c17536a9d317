// SPDX-License-Identifier: Apache-2.0
// Many callers at once, on shared plans and one shared pool of threads; also run under ThreadSanitizer. Every result has the bits of a serial run.
#include <gtest/gtest.h>

#include <atomic>
#include <stop_token>
#include <thread>
#include <vector>

#include "tests/attend/attend_testing.h"
#include "tilewise/attend/backend.h"
#include "tilewise/attend/decode.h"
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

// One plan of every part, 16 threads, 1,000 calls each; half of the callers share a pool of threads, the others run in their own.
TEST(AttendThreads, SixteenThreadsCallAThousandTimesOnOnePlan) {
  Rng rng(43);
  ProblemOptions options;
  options.plan = {.batch = 1, .seqlen_q = 17, .seqlen_k = 20, .heads_q = 2, .heads_kv = 1, .tile = 16, .mask = MaskKind::spans, .has_picked = true};
  options.plan.has_rows = options.plan.has_order_q = options.plan.has_order_k = true;
  options.plan.pools = {4};
  options.head_dim = 8;
  const ForwardProblem problem = make_problem(rng, options);
  Context serial;
  attend_forward(problem.params(), serial);
  const std::vector<double> out = values_of(problem.out.view), lse = values_of(problem.lse.view);
  const HostTensor sum(Dtype::f32, problem.lse.view.shape());
  const auto measurement = [&](const HostTensor& lse_of, const HostTensor& sum_of) {
    return MeasureParams{
        .q = problem.q.view, .k = problem.k.view, .plan = problem.plan.plan, .lse = lse_of.view, .over = MeasureOver::query, .sum = sum_of.view};
  };
  measure(measurement(problem.lse, sum), serial);
  const std::vector<double> sums = values_of(sum.view);

  const auto pool = make_thread_pool(3);
  std::atomic<int> wrong{0};
  std::vector<std::thread> callers;
  callers.reserve(16);
  for (int caller = 0; caller < 16; ++caller) {
    callers.emplace_back([&, caller] {
      Context context;
      if (caller % 2 == 0) context.executor = pool;
      ForwardProblem own = problem;  // the same q, k, v and plan; outputs of its own
      own.out = HostTensor(options.dtype, problem.out.view.shape());
      own.lse = HostTensor(Dtype::f32, problem.lse.view.shape());
      const HostTensor own_sum(Dtype::f32, problem.lse.view.shape());
      for (int call = 0; call < 1000; ++call) {
        if (call % 4 == 3) {
          measure(measurement(problem.lse, own_sum), context);
          if (values_of(own_sum.view) != sums) ++wrong;
        } else {
          own.out.wipe();
          attend_forward(own.params(), context);
          if (values_of(own.out.view) != out || values_of(own.lse.view) != lse) ++wrong;
        }
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(wrong, 0) << "calls whose bits differ from the first run";
}

// Runs items in the caller's thread and asks for a stop in the middle of one; counts the items that start afterwards.
class StoppingExecutor final : public Executor {
 public:
  explicit StoppingExecutor(int64_t stop_at) : stop_at_(stop_at) {}
  int concurrency() const override { return 1; }
  void run(int64_t count, FunctionRef<void(int64_t item, int worker)> body) override {
    for (int64_t item = 0; item < count; ++item) {
      if (started_ == stop_at_) source.request_stop();
      ++started_;
      body(item, 0);  // the look at the stop token that comes with it throws
      if (source.stop_requested()) ++finished_after_stop;
    }
  }
  std::stop_source source;
  int finished_after_stop = 0;
  int64_t started() const { return started_; }

 private:
  int64_t started_ = 0, stop_at_;
};

// A stop is seen before the next item, whichever of a call's phases it falls in; where it comes too late, the call ends as if there were none.
TEST(AttendThreads, CancelledCallsStartNoFurtherItem) {
  Rng rng(7);
  ProblemOptions options;
  options.plan = {.batch = 2, .seqlen_q = 300, .seqlen_k = 300, .heads_q = 4, .heads_kv = 2, .tile = 64, .has_order_q = true, .has_order_k = true};
  options.plan.pools = {4};
  options.head_dim = 16;
  const ForwardProblem problem = make_problem(rng, options);
  const HostTensor sum(Dtype::f32, problem.lse.view.shape());
  const auto cancelled_at = [](int64_t stop_at, const auto& call) {
    const auto executor = std::make_shared<StoppingExecutor>(stop_at);
    Context context;
    context.executor = executor;
    context.cancel = executor->source.get_token();
    try {
      call(context);
      EXPECT_LE(executor->started(), stop_at) << "ran on after a stop";
      return false;
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), Error::Kind::cancelled) << error.what();
      if (error.kind() != Error::Kind::cancelled) return false;
      EXPECT_EQ(executor->finished_after_stop, 0);
      EXPECT_LE(executor->started(), stop_at + 1);
      return true;
    }
  };
  const auto expect_stops = [&](const auto& call) {
    int64_t stops = 0;
    while (cancelled_at(stops, call)) ++stops;
    return stops;
  };
  EXPECT_GT(expect_stops([&](Context& context) { attend_forward(problem.params(), context); }), 10);
  EXPECT_GT(expect_stops([&](Context& context) {
              measure({.q = problem.q.view, .k = problem.k.view, .plan = problem.plan.plan, .over = MeasureOver::query, .sum = sum.view}, context);
            }),
            10);
  const HostTensor dq(options.dtype, problem.q.view.shape()), dk(options.dtype, problem.k.view.shape()), dv(options.dtype, problem.v.view.shape());
  const AttendParams done = problem.params();
  EXPECT_GT(expect_stops([&](Context& context) {
              attend_backward({.forward = done, .dout = done.out, .dq = dq.view, .dk = dk.view, .dv = dv.view}, context);
            }),
            10);
  const HostTensor cache = zeros(Dtype::f32, {1, 1, 50'000, 16}), newest = zeros(Dtype::f32, {1, 1, 1, 16}),
                   decoded = zeros(Dtype::f32, {1, 1, 1, 16});
  EXPECT_GT(expect_stops([&](Context& context) {  // one sequence in many parts
              attend_decode({.q = newest.view, .k = cache.view, .v = cache.view, .out = decoded.view, .dense_band = Mask::Band{.right = 0}}, context);
            }),
            10);
}

}  // namespace
}  // namespace tilewise::attend::testing
