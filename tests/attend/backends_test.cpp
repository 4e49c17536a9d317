// SPDX-License-Identifier: Apache-2.0
// Every backend but the reference, on every target that this machine has, against the reference over random plans and problems.
#include <gtest/gtest.h>

#include <array>
#include <cstdlib>
#include <string>

#include "tests/attend/attend_testing.h"
#include "tests/attend/backward_testing.h"
#include "tilewise/attend/backend.h"
#include "tilewise/attend/check.h"
#include "tilewise/machine/cpu/target.h"
#include "tilewise/machine/cpu/thread_pool.h"

namespace tilewise::attend::testing {
namespace {

// Seeds of one run; TILEWISE_TEST_SEEDS asks for more, TILEWISE_TEST_SEED for one.
std::vector<uint64_t> seeds(uint64_t first, uint64_t count) {
  if (const char* const one = std::getenv("TILEWISE_TEST_SEED")) return {std::strtoull(one, nullptr, 10)};
  if (const char* const more = std::getenv("TILEWISE_TEST_SEEDS")) count = std::strtoull(more, nullptr, 10);
  std::vector<uint64_t> all;
  for (uint64_t seed = first; seed < first + count; ++seed) all.push_back(seed);
  return all;
}

// Runs body with each target in turn; the environment is as before afterwards.
template <class Body>
void on_every_target(const Body& body) {
  const char* const before = std::getenv("TILEWISE_TARGET");
  const std::string old = before == nullptr ? "" : before;
  for (const machine::cpu::Target target : machine::cpu::available_targets()) {
    const std::string name(machine::cpu::name(target));
    setenv("TILEWISE_TARGET", name.c_str(), 1);
    body(name);
  }
  before == nullptr ? unsetenv("TILEWISE_TARGET") : setenv("TILEWISE_TARGET", old.c_str(), 1);
}

TEST(AttendBackends, ForwardAgreesWithReference) {
  const auto pool = make_thread_pool(2);
  int run = 0, refused = 0;
  for (const uint64_t seed : seeds(5000, 80)) {
    Rng rng(seed);
    const ForwardProblem problem = make_problem(rng, random_options(rng, false));
    for (const Backend& backend : backends()) {
      if (backend.is_forced_only || backend.forward == nullptr) continue;
      if (const auto reason = backend.forward_refusal(problem.params())) {
        ++refused;
        ADD_FAILURE() << backend.name << " refuses seed " << seed << ": " << *reason << "; " << describe(problem.options);
        continue;
      }
      on_every_target([&](const std::string& target) {
        Context context;
        if (seed % 2 == 0) context.executor = pool;
        expect_forward(problem, backend.forward, context, std::string(backend.name) + " " + target + " seed " + std::to_string(seed));
        ++run;
      });
    }
    if (HasFailure()) return;
  }
  RecordProperty("calls", run);
  RecordProperty("refused", refused);
}

// The bits do not depend on the number of threads.
TEST(AttendBackends, BitsDoNotDependOnThreads) {
  for (const uint64_t seed : seeds(6000, 24)) {
    Rng rng(seed);
    ProblemOptions options = random_options(rng, false);
    options.has_out = options.has_lse = true;
    const ForwardProblem problem = make_problem(rng, options);
    for (const Backend& backend : backends()) {
      if (backend.is_forced_only || backend.forward == nullptr || backend.forward_refusal(problem.params())) continue;
      Context serial;
      backend.forward(problem.params(), serial);
      const std::vector<unsigned char> out = problem.out.bytes(), lse = problem.lse.bytes();
      for (const int threads : {2, 3, 7}) {
        Context context;
        context.executor = make_thread_pool(threads);
        problem.out.wipe();
        problem.lse.wipe();
        backend.forward(problem.params(), context);
        EXPECT_EQ(problem.out.bytes(), out) << backend.name << " seed " << seed << " threads " << threads << " " << describe(options);
        EXPECT_EQ(problem.lse.bytes(), lse) << backend.name << " seed " << seed << " threads " << threads << " " << describe(options);
      }
    }
  }
}

// A key outside of every run of a row never enters its arithmetic: NaN there changes no bit of the row's result.
TEST(AttendBackends, PoisonOutsideOfARowChangesNothing) {
  for (const uint64_t seed : seeds(7000, 24)) {
    Rng rng(seed);
    ProblemOptions options = random_options(rng, false);
    options.plan.mask = MaskKind::full;  // then the pairs of a query are the runs of its row
    options.plan.has_rows = false;
    options.has_out = options.has_lse = true;
    const ForwardProblem problem = make_problem(rng, options);
    std::array<int64_t, 6> poisoned{};
    for (int64_t& key : poisoned) key = uniform(rng, 0, options.plan.seqlen_k - 1);
    on_every_target([&](const std::string& target) {
      for (const Backend& backend : backends()) {
        if (backend.is_forced_only || backend.forward == nullptr || backend.forward_refusal(problem.params())) continue;
        SCOPED_TRACE(std::string(backend.name) + " " + target + " seed " + std::to_string(seed) + " " + describe(options));
        Context context;
        backend.forward(problem.params(), context);
        const HostTensor out = converted(problem.out.view, Dtype::f64), lse = converted(problem.lse.view, Dtype::f64);
        ForwardProblem spoiled = problem;
        spoiled.k = converted(problem.k.view, options.dtype, options.layout);
        spoiled.v = converted(problem.v.view, options.dtype, options.layout);
        for (int64_t b = 0; b < options.plan.batch; ++b) {
          for (const int64_t key : poisoned) {
            for (int64_t h = 0; h < spoiled.k.view.dim(1); ++h) {
              for (int64_t d = 0; d < options.head_dim; ++d) spoiled.k.set(std::nan(""), b, h, key, d);
            }
            for (int64_t h = 0; h < spoiled.v.view.dim(1); ++h) {
              for (int64_t d = 0; d < spoiled.v.view.dim(3); ++d) spoiled.v.set(std::nan(""), b, h, key, d);
            }
          }
        }
        backend.forward(spoiled.params(), context);
        for (int64_t b = 0; b < options.plan.batch; ++b) {
          for (int64_t h = 0; h < options.plan.heads_q; ++h) {
            for (int64_t i = 0; i < options.plan.seqlen_q; ++i) {
              bool is_read = false;
              for (const int64_t key : poisoned) is_read = is_read || problem.plan.has(b, h, i, key);
              if (is_read) {
                ASSERT_TRUE(std::isnan(problem.lse.get(b, h, i))) << "query " << i << " reads a NaN and hides it";
                continue;
              }
              ASSERT_EQ(problem.lse.get(b, h, i), lse.get(b, h, i)) << "query " << i;
              for (int64_t d = 0; d < out.view.dim(3); ++d) ASSERT_EQ(problem.out.get(b, h, i, d), out.get(b, h, i, d)) << "query " << i;
            }
          }
        }
      }
    });
    if (HasFailure()) return;
  }
}

TEST(AttendBackends, BackwardAgreesWithReference) {
  const auto pool = make_thread_pool(2);
  for (const uint64_t seed : seeds(9000, 40)) {
    Rng rng(seed);
    const BackwardProblem problem = make_backward(rng, random_options(rng, true));
    const Gradients exact = exact_backward(problem), in_dtype = backward_in_dtype(problem);
    for (const Backend& backend : backends()) {
      if (backend.is_forced_only || backend.backward == nullptr) continue;
      if (const auto reason = backend.backward_refusal(problem.params())) {
        ADD_FAILURE() << backend.name << " refuses seed " << seed << ": " << *reason << "; " << describe(problem.forward.options);
        continue;
      }
      on_every_target([&](const std::string& target) {
        SCOPED_TRACE(std::string(backend.name) + " " + target + " seed " + std::to_string(seed) + ": " + describe(problem.forward.options));
        Context context;
        if (seed % 2 == 0) context.executor = pool;
        problem.wipe();
        EXPECT_EQ(backend.backward(problem.params(), context).pairs_read, problem.forward.plan.reads);
        expect_gradients(problem, exact, in_dtype);
      });
    }
    if (HasFailure()) return;
  }
}

TEST(AttendBackends, MeasureAgreesWithReference) {
  const auto pool = make_thread_pool(2);
  for (const uint64_t seed : seeds(8000, 96)) {
    Rng rng(seed);
    ProblemOptions options = random_options(rng, false);
    const auto over = static_cast<MeasureOver>(seed % 6);
    ForwardProblem forward = make_problem(rng, options);
    const int tile = options.plan.tile;
    const int tile_q = tile % 2 == 0 && chance(rng, 0.5) ? tile / 2 : 0;
    const int tile_k = chance(rng, 0.3) ? 0 : static_cast<int>(chance(rng, 0.5) ? 16 * uniform(rng, 1, 10) : uniform(rng, 1, 100));
    const MeasureParams shape_of{
        .q = forward.q.view, .k = forward.k.view, .plan = forward.plan.plan, .over = over, .tile_q = tile_q, .tile_k = tile_k};
    const Shape shape = measure_shape(shape_of);
    const MeasureProblem problem = make_measure(rng, std::move(forward), over, shape, tile_q, tile_k);
    for (const Backend& backend : backends()) {
      if (backend.is_forced_only || backend.measure == nullptr) continue;
      if (const auto reason = backend.measure_refusal(problem.params)) {
        ADD_FAILURE() << backend.name << " refuses seed " << seed << ": " << *reason << "; " << describe(options);
        continue;
      }
      on_every_target([&](const std::string& target) {
        Context context;
        if (seed % 2 == 0) context.executor = pool;
        expect_measure(problem, backend.measure, context, std::string(backend.name) + " " + target + " seed " + std::to_string(seed));
      });
    }
    if (HasFailure()) return;
  }
}

}  // namespace
}  // namespace tilewise::attend::testing
