// SPDX-License-Identifier: Apache-2.0
// The doors of attend/: which backend runs, what is said where none does, and attend_merge.
#include "tilewise/attend/attend.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <string>

#include "tests/attend/attend_testing.h"
#include "tilewise/attend/backend.h"
#include "tilewise/attend/merge.h"
#include "tilewise/attend/reference/backward.h"

namespace tilewise::attend::testing {
namespace {

// Sets TILEWISE_BACKEND for one scope. Tests here run one after another.
class ScopedBackend {
 public:
  explicit ScopedBackend(const char* name) {
    const char* const old = std::getenv("TILEWISE_BACKEND");
    had_ = old != nullptr;
    old_ = had_ ? old : "";
    name == nullptr ? unsetenv("TILEWISE_BACKEND") : setenv("TILEWISE_BACKEND", name, 1);
  }
  ~ScopedBackend() { had_ ? setenv("TILEWISE_BACKEND", old_.c_str(), 1) : unsetenv("TILEWISE_BACKEND"); }

 private:
  bool had_;
  std::string old_;
};

ForwardProblem small_problem(Dtype dtype) {
  Rng rng(31);
  ProblemOptions options;
  options.plan = {.batch = 2, .seqlen_q = 40, .seqlen_k = 50, .heads_q = 2, .tile = 16};
  options.dtype = dtype;
  options.head_dim = 16;
  return make_problem(rng, options);
}

TEST(AttendDispatch, ReferenceRunsOnlyWhenNamed) {
  const ForwardProblem problem = small_problem(Dtype::f64);  // which no fast backend takes
  Context context;
  {
    const ScopedBackend automatic(nullptr);
    const std::vector<unsigned char> before = problem.out.bytes();
    try {
      attend_forward(problem.params(), context);
      FAIL() << "f64 ran on a fast backend";
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), Error::Kind::unsupported);
      const std::string text = error.what();
      EXPECT_TRUE(text.starts_with("attend_forward: no backend takes this problem.\n")) << text;
      for (const Backend& backend : backends()) EXPECT_NE(text.find("\n  " + std::string(backend.name) + ": "), std::string::npos) << text;
      EXPECT_NE(text.find("TILEWISE_BACKEND=reference"), std::string::npos) << text;
    }
    EXPECT_EQ(problem.out.bytes(), before);
    EXPECT_NE(refusals(problem.params(), context).find("  cpu: "), std::string::npos);
  }
  const ScopedBackend forced("reference");
  EXPECT_EQ(attend_forward(problem.params(), context).backend, "reference");
  EXPECT_EQ(refusals(problem.params(), context), "");
  EXPECT_LE(largest_difference(values_of(problem.out.view), dense_forward(problem.plan, problem.params()).out), 1e-12);
}

TEST(AttendDispatch, ForcedBackendIsAloneAndUnknownNamesAreRefused) {
  const ForwardProblem problem = small_problem(Dtype::f64);
  Context context;
  {
    const ScopedBackend forced("cpu");
    try {
      attend_forward(problem.params(), context);
      FAIL() << "cpu took f64";
    } catch (const Error& error) {
      EXPECT_EQ(std::string(error.what()).find("reference"), std::string::npos) << error.what();
    }
  }
  const ScopedBackend forced("gpu");
  try {
    attend_forward(problem.params(), context);
    FAIL() << "an unknown backend ran";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), Error::Kind::value);
    EXPECT_STREQ(error.what(), "TILEWISE_BACKEND is \"gpu\", takes auto or one of: cpu, reference; unset it to let the library choose");
  }
}

TEST(AttendDispatch, BackwardRunsOnTheReferenceOnlyWhenAsked) {
  for (const Dtype dtype : {Dtype::f32, Dtype::f64}) {
    const ForwardProblem problem = small_problem(dtype);
    Context context;
    reference::forward(problem.params(), context);
    const HostTensor dq(dtype, problem.q.view.shape()), dk(dtype, problem.k.view.shape()), dv(dtype, problem.v.view.shape());
    const AttendBackwardParams params{.forward = problem.params(), .dout = problem.q.view, .dq = dq.view, .dk = dk.view, .dv = dv.view};
    {
      const ScopedBackend automatic("auto");
      if (dtype == Dtype::f32) {
        EXPECT_EQ(attend_backward(params, context).backend, "cpu");
      } else {
        EXPECT_THROW(attend_backward(params, context), Error);
      }
    }
    const ScopedBackend forced("reference");
    EXPECT_EQ(attend_backward(params, context).backend, "reference");
  }
}

// What a fast backend says that it takes runs there, unasked.
TEST(AttendDispatch, FirstThatTakesItRuns) {
  const ForwardProblem problem = small_problem(Dtype::f32);
  const ScopedBackend automatic(nullptr);
  const Backend& first = backends().front();
  Context context;
  if (first.forward == nullptr) {
    EXPECT_THROW(attend_forward(problem.params(), context), Error);
    return;
  }
  EXPECT_EQ(attend_forward(problem.params(), context).backend, first.name);
}

TEST(AttendMerge, PartsWithoutWeightAddNothing) {
  const double minus_infinity = -std::numeric_limits<double>::infinity();
  const HostTensor a(Dtype::f32, {1, 1, 2, 2}), b(Dtype::f32, {1, 1, 2, 2}), out(Dtype::f32, {1, 1, 2, 2});
  const HostTensor lse_a(Dtype::f32, {1, 1, 2}), lse_b(Dtype::f32, {1, 1, 2}), lse(Dtype::f32, {1, 1, 2}), sink = zeros(Dtype::f32, {1});
  for (int64_t query = 0; query < 2; ++query) {
    for (int64_t d = 0; d < 2; ++d) {
      a.set(std::nan(""), 0, 0, query, d);  // never computed by its backend, so never read
      b.set(3, 0, 0, query, d);
    }
    lse_a.set(minus_infinity, 0, 0, query);
    lse_b.set(query == 0 ? 1.5 : minus_infinity, 0, 0, query);
  }
  Context context;
  attend_merge({.outs = {a.view, b.view}, .lses = {lse_a.view, lse_b.view}, .out = out.view, .lse = lse.view}, context);
  EXPECT_EQ(values_of(out.view), (std::vector<double>{3, 3, 0, 0}));
  EXPECT_EQ(values_of(lse.view), (std::vector<double>{1.5, minus_infinity}));
  // The sink takes its share of the denominator, and is the lse of the row without keys. lse alone, written over a part.
  attend_merge({.outs = {a.view, b.view}, .lses = {lse_a.view, lse_b.view}, .out = out.view, .lse = lse.view, .sink_logit = sink.view}, context);
  const double share = std::exp(1.5) / (1 + std::exp(1.5));
  EXPECT_NEAR(out.get(0, 0, 0, 0), 3 * share, 1e-6);
  EXPECT_EQ(out.get(0, 0, 1, 0), 0);
  EXPECT_NEAR(lse.get(0, 0, 0), std::log(1 + std::exp(1.5)), 1e-6);
  EXPECT_EQ(lse.get(0, 0, 1), 0);
  attend_merge({.lses = {lse_b.view, lse_b.view}, .lse = lse_b.view}, context);
  EXPECT_NEAR(lse_b.get(0, 0, 0), 1.5 + std::log(2.0), 1e-6);
  EXPECT_EQ(lse_b.get(0, 0, 1), minus_infinity);
}

TEST(AttendForward, StopsWhenCancelled) {
  const ForwardProblem problem = small_problem(Dtype::f64);
  std::stop_source source;
  source.request_stop();
  Context context;
  context.cancel = source.get_token();
  try {
    reference::forward(problem.params(), context);
    FAIL() << "ran to the end";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), Error::Kind::cancelled);
  }
}

}  // namespace
}  // namespace tilewise::attend::testing
