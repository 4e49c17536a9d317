// SPDX-License-Identifier: Apache-2.0
#include "tilewise/attend/cpu/backward.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "tests/attend/backward_testing.h"
#include "tests/attend/cpu/cpu_testing.h"
#include "tilewise/attend/prepare.h"
#include "tilewise/machine/cpu/context.h"
#include "tilewise/plan/complete.h"
#include "tilewise/prepare/reorder.h"

namespace tilewise::attend::testing {
namespace {

using machine::cpu::available_targets;
using machine::cpu::Target;

template <class Body>
void on_every_target(const Body& body) {
  for (const Target target : available_targets()) {
    const ForcedTarget forced(target);
    SCOPED_TRACE(std::string(machine::cpu::name(target)));
    body();
  }
}

// Runs the gradient on every target against one exact answer.
void expect_backward(const BackwardProblem& problem, Context& context, const std::string& note) {
  SCOPED_TRACE(note + ": " + describe(problem.forward.options) + (problem.has_dlse ? " dlse" : ""));
  const Gradients exact = exact_backward(problem), in_dtype = backward_in_dtype(problem);
  on_every_target([&] {
    problem.wipe();
    const Ran ran = cpu::backward(problem.params(), context);
    EXPECT_EQ(ran.pairs_read, problem.forward.plan.reads);
    expect_gradients(problem, exact, in_dtype);
  });
}

// Every part of a plan, every dtype.
ProblemOptions backward_options(Rng& rng) {
  ProblemOptions o = random_options(rng, true);
  if (chance(rng, 0.2)) o.dtype = Dtype::f16;
  return o;
}

TEST(AttendCpuBackward, EqualsReferenceOnRandomProblems) {
  Context context = cpu_context(2);
  for (uint64_t seed = 1; seed <= 120; ++seed) {
    Rng rng(seed);
    const ProblemOptions options = backward_options(rng);
    expect_backward(make_backward(rng, options), context, "seed " + std::to_string(seed));
    if (HasFailure()) return;
  }
}

TEST(AttendCpuBackward, LengthsAroundATile) {
  Context context = cpu_context(1);
  for (const int64_t seqlen_q : {0, 1, 63, 64, 65, 127, 128, 129}) {
    for (const int64_t seqlen_k : {0, 1, 2, 63, 64, 65, 129}) {
      Rng rng(static_cast<uint64_t>(seqlen_q * 1000 + seqlen_k));
      ProblemOptions o;
      o.plan.tile = 128;
      o.plan.seqlen_q = seqlen_q;
      o.plan.seqlen_k = seqlen_k;
      o.plan.mask = (seqlen_q + seqlen_k) % 2 == 0 ? MaskKind::causal : MaskKind::full;
      o.dtype = (seqlen_q + seqlen_k) % 3 == 0 ? Dtype::bf16 : Dtype::f32;
      o.head_dim = 32;
      o.head_dim_v = 40;
      expect_backward(make_backward(rng, o), context, "lengths");
      if (HasFailure()) return;
    }
  }
}

TEST(AttendCpuBackward, EveryHeadDim) {
  Context context = cpu_context(1);
  for (int64_t head_dim = 8; head_dim <= 256; head_dim += 8) {
    Rng rng(static_cast<uint64_t>(head_dim));
    ProblemOptions o;
    o.plan.tile = 64;
    o.plan.seqlen_q = 70;
    o.plan.seqlen_k = 90;
    o.plan.has_picked = head_dim % 24 == 0;
    o.head_dim = head_dim;
    o.head_dim_v = 264 - head_dim;
    o.dtype = head_dim % 16 == 0 ? Dtype::f32 : Dtype::bf16;
    expect_backward(make_backward(rng, o), context, "head_dim");
    if (HasFailure()) return;
  }
}

// Both directions at hand, or a schedule made before: the bits are those of a call that makes its own.
TEST(AttendCpuBackward, ScheduleAndCompletedPlanGiveTheSameBits) {
  Context context = cpu_context(2);
  for (uint64_t seed = 300; seed < 312; ++seed) {
    Rng rng(seed);
    ProblemOptions o = backward_options(rng);
    o.plan.is_by_key = false;
    const BackwardProblem problem = make_backward(rng, o);
    AttendBackwardParams params = problem.params();
    cpu::backward(params, context);
    const std::vector<unsigned char> dq = problem.dq.bytes(), dk = problem.dk.bytes(), dv = problem.dv.bytes();
    const auto expect_same = [&](const char* note) {
      problem.wipe();
      cpu::backward(params, context);
      EXPECT_EQ(problem.dq.bytes(), dq) << note << " seed " << seed;
      EXPECT_EQ(problem.dk.bytes(), dk) << note << " seed " << seed;
      EXPECT_EQ(problem.dv.bytes(), dv) << note << " seed " << seed;
    };
    params.forward.schedule = attend_prepare(params.forward.plan, o.plan.heads_kv, context);
    expect_same("schedule");
    params.forward.schedule = nullptr;
    params.forward.plan = complete(params.forward.plan, context, 128);
    expect_same("completed plan");
  }
}

// A caller that has reordered gets its gradients in slots: those of a call in token order, 0 in padding.
TEST(AttendCpuBackward, InSlotsIsTheSameInTheOrderOfSlots) {
  Context context = cpu_context(2);
  for (uint64_t seed = 900; seed < 912; ++seed) {
    Rng rng(seed);
    ProblemOptions o;
    o.plan = {.batch = 2, .seqlen_q = 90, .seqlen_k = 150, .heads_q = 4, .heads_kv = 2, .tile = 64, .groups = 2};
    o.plan.has_order_q = seed % 3 != 0;
    o.plan.has_order_k = seed % 3 != 1 || seed % 2 == 0;
    o.plan.has_picked = seed % 2 == 0;
    if (seed % 4 == 0) o.plan.pools = {4};
    o.dtype = seed % 2 == 0 ? Dtype::f32 : Dtype::bf16;
    o.head_dim = 16;
    const BackwardProblem problem = make_backward(rng, o);
    const PlanData& plan = *problem.forward.plan.plan;
    if (plan.order_k.token.has_value() && plan.order_k.token.dim(1) > o.plan.heads_kv) continue;  // slots then need more heads of k
    const auto in_slots = [&](const HostTensor& tokens, const Order& order, double padding) {
      const Tensor slots = prepare::to_slots(tokens.view, order, context);
      const HostTensor copy = converted(slots.view, tokens.view.dtype());
      for (int64_t b = 0; b < slots.view.dim(0) && order.token.has_value(); ++b) {
        for (int64_t h = 0; h < slots.view.dim(1); ++h) {
          for (int64_t s = 0; s < slots.view.dim(2); ++s) {
            const int64_t group = h * order.token.dim(1) / slots.view.dim(1);
            if (order.token.at<int32_t>(order.token.dim(0) == 1 ? 0 : b, group, s) >= 0) continue;
            if (slots.view.rank() == 3) copy.set(padding, b, h, s);
            for (int64_t d = 0; slots.view.rank() == 4 && d < slots.view.dim(3); ++d) copy.set(padding, b, h, s, d);
          }
        }
      }
      return copy;
    };
    const double nan = std::numeric_limits<double>::quiet_NaN();
    BackwardProblem own = problem;
    for (const auto& [to, from] : {std::pair{&own.forward.q, &problem.forward.q},
                                   {&own.forward.out, &problem.forward.out},
                                   {&own.dout, &problem.dout},
                                   {&own.dq, &problem.dq}}) {
      *to = in_slots(*from, plan.order_q, nan);
    }
    own.forward.lse = in_slots(problem.forward.lse, plan.order_q, nan);
    own.dlse = in_slots(problem.dlse, plan.order_q, nan);
    for (const auto& [to, from] :
         {std::pair{&own.forward.k, &problem.forward.k}, {&own.forward.v, &problem.forward.v}, {&own.dk, &problem.dk}, {&own.dv, &problem.dv}}) {
      *to = in_slots(*from, plan.order_k, nan);
    }
    AttendBackwardParams params = own.params();
    params.forward.in_slots = true;
    on_every_target([&] {
      cpu::backward(problem.params(), context);
      own.wipe();
      cpu::backward(params, context);
      EXPECT_EQ(values_of(own.dq.view), values_of(in_slots(problem.dq, plan.order_q, 0).view)) << "dq, seed " << seed;
      EXPECT_EQ(values_of(own.dk.view), values_of(in_slots(problem.dk, plan.order_k, 0).view)) << "dk, seed " << seed;
      EXPECT_EQ(values_of(own.dv.view), values_of(in_slots(problem.dv, plan.order_k, 0).view)) << "dv, seed " << seed;
    });
    if (HasFailure()) return;
  }
}

TEST(AttendCpuBackward, BitsDoNotDependOnThreads) {
  on_every_target([&] {
    for (uint64_t seed = 500; seed < 515; ++seed) {
      Rng rng(seed);
      ProblemOptions o = backward_options(rng);
      o.plan.seqlen_k = o.plan.mask == MaskKind::grid ? o.plan.seqlen_k : 700;  // several blocks of keys take turns at each query
      o.plan.heads_q = o.plan.groups = o.plan.heads_kv;
      const BackwardProblem problem = make_backward(rng, o);
      std::vector<std::vector<unsigned char>> serial;
      for (const int threads : {1, 2, 3, 8}) {
        Context context = cpu_context(threads);
        problem.wipe();
        cpu::backward(problem.params(), context);
        const std::vector<std::vector<unsigned char>> bytes{problem.dq.bytes(), problem.dk.bytes(), problem.dv.bytes(), problem.dsink_logit.bytes()};
        if (threads == 1) serial = bytes;
        EXPECT_EQ(bytes, serial) << threads << " threads, seed " << seed << ", " << describe(problem.forward.options);
      }
    }
  });
}

// Along a random direction of q, k and v the loss changes by what the gradients say: no formula of a gradient on the other side.
TEST(AttendCpuBackward, AgreesWithFiniteDifferences) {
  Context context = cpu_context(2);
  for (uint64_t seed = 700; seed < 706; ++seed) {
    Rng rng(seed);
    ProblemOptions o;
    o.plan = {.seqlen_q = 150, .seqlen_k = 170, .heads_q = 4, .heads_kv = 2, .tile = 64, .groups = 2, .has_picked = true, .has_rows = true};
    o.head_dim = 32;
    o.softcap = seed % 2 == 0 ? 3.0f : 0.0f;
    o.has_sink = seed % 3 == 0;
    BackwardProblem problem = make_backward(rng, o);
    problem.has_dlse = true;
    cpu::backward(problem.params(), context);
    const std::vector<double> dout = values_of(problem.dout.view), dlse = values_of(problem.dlse.view);
    ForwardProblem moved = problem.forward;
    for (HostTensor* tensor : {&moved.q, &moved.k, &moved.v, &moved.out}) *tensor = converted(tensor->view, Dtype::f64);
    const std::vector<double> base[] = {values_of(moved.q.view), values_of(moved.k.view), values_of(moved.v.view)};
    const std::vector<double> gradient[] = {values_of(problem.dq.view), values_of(problem.dk.view), values_of(problem.dv.view)};
    const HostTensor* const inputs[] = {&moved.q, &moved.k, &moved.v};
    std::vector<double> direction[3];
    double expected = 0;
    std::normal_distribution<double> normal;
    for (size_t t = 0; t < 3; ++t) {
      for (size_t i = 0; i < base[t].size(); ++i) {
        direction[t].push_back(normal(rng));
        expected += direction[t][i] * gradient[t][i];
      }
    }
    const auto loss_at = [&](double step) {
      for (size_t t = 0; t < 3; ++t) {
        size_t i = 0;
        for_each_offset(inputs[t]->view, [&](int64_t offset) {
          from_double(inputs[t]->view, offset, base[t][i] + step * direction[t][i]);
          ++i;
        });
      }
      const DenseResult result = dense_forward(moved.plan, moved.params());
      double sum = 0;
      for (size_t i = 0; i < dout.size(); ++i) sum += dout[i] * result.out[i];
      for (size_t i = 0; i < dlse.size(); ++i) sum += std::isfinite(result.lse[i]) ? dlse[i] * result.lse[i] : 0;
      return sum;
    };
    const double slope = (loss_at(1e-4) - loss_at(-1e-4)) / 2e-4;
    EXPECT_NEAR(slope, expected, 1e-4 * (1 + std::fabs(slope))) << "seed " << seed;
  }
}

// FlashAttention's oracle 9, on every target: a row that sees nothing has zero gradients and no NaN, whatever its dout.
TEST(AttendCpuBackward, EmptyRowsHaveZeroGradients) {
  Context context = cpu_context(2);
  for (const Dtype dtype : {Dtype::f32, Dtype::bf16, Dtype::f16}) {
    for (const bool has_sink : {false, true}) {
      Rng rng(5);
      ProblemOptions o;
      o.plan = {.seqlen_q = 90, .seqlen_k = 30, .heads_q = 2};  // causal: queries 0 to 59 see nothing
      o.plan.longest_run = 30;
      o.plan.density = 0.999;
      o.dtype = dtype;
      o.head_dim = 8;
      o.has_sink = has_sink;
      const BackwardProblem problem = make_backward(rng, o);
      expect_backward(problem, context, "empty rows");
      on_every_target([&] {
        cpu::backward(problem.params(), context);
        for (int64_t head = 0; head < 2; ++head) {
          for (int64_t query = 0; query < 60; ++query) {
            for (int64_t d = 0; d < 8; ++d) ASSERT_EQ(problem.dq.get(0, head, query, d), 0.0) << "query " << query;
          }
        }
      });
    }
  }
}

// Keys that no query reads are NaN in K and V: no gradient changes a bit, and theirs are zero.
TEST(AttendCpuBackward, UnreadKeysAreNotComputedWith) {
  Context context = cpu_context(2);
  for (const Dtype dtype : {Dtype::f32, Dtype::bf16, Dtype::f16}) {
    for (uint64_t seed = 1; seed <= 10; ++seed) {
      Rng rng(seed);
      ProblemOptions o;
      o.plan = {.seqlen_q = 100, .seqlen_k = 333, .heads_q = 2, .heads_kv = 2, .tile = 64};
      o.plan.density = 0.1;
      o.plan.longest_run = static_cast<int>(seed);
      o.plan.has_picked = seed % 2 == 0;
      o.plan.has_rows = seed % 4 == 0;
      o.plan.mask = seed % 3 == 0 ? MaskKind::causal : MaskKind::full;
      o.dtype = dtype;
      o.head_dim = 40;
      const BackwardProblem problem = make_backward(rng, o);
      std::vector<bool> is_read(333, false);
      for (int64_t h = 0; h < 2; ++h) {
        for (int64_t q = 0; q < 100; ++q) {
          for (int64_t k = 0; k < 333; ++k) is_read[static_cast<size_t>(k)] = is_read[static_cast<size_t>(k)] || problem.forward.plan.has(0, h, q, k);
        }
      }
      BackwardProblem poisoned = problem;
      poisoned.forward.k = converted(problem.forward.k.view, dtype);
      poisoned.forward.v = converted(problem.forward.v.view, dtype);
      for (int64_t k = 0; k < 333; ++k) {
        for (int64_t h = 0; h < 2 && !is_read[static_cast<size_t>(k)]; ++h) {
          for (int64_t d = 0; d < 40; ++d) {
            poisoned.forward.k.set(std::nan(""), 0, h, k, d);
            poisoned.forward.v.set(std::nan(""), 0, h, k, d);
          }
        }
      }
      on_every_target([&] {
        cpu::backward(problem.params(), context);
        const std::vector<unsigned char> dq = problem.dq.bytes(), dk = problem.dk.bytes(), dv = problem.dv.bytes();
        problem.wipe();
        cpu::backward(poisoned.params(), context);  // writes to the same gradients
        EXPECT_EQ(problem.dq.bytes(), dq) << "seed " << seed << " " << describe(o);
        EXPECT_EQ(problem.dk.bytes(), dk) << "seed " << seed;
        EXPECT_EQ(problem.dv.bytes(), dv) << "seed " << seed;
      });
      if (HasFailure()) return;
    }
  }
}

TEST(AttendCpuBackward, NanInAReadKeyReachesItsReaders) {
  Context context = cpu_context(1);
  for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) {
    Rng rng(5);
    ProblemOptions o;
    o.plan = {.seqlen_q = 100, .seqlen_k = 100, .heads_q = 1, .tile = 64};
    o.plan.mask = MaskKind::full;
    o.dtype = dtype;
    const BackwardProblem problem = make_backward(rng, o);
    for (int64_t d = 0; d < o.head_dim; ++d) problem.forward.k.set(std::nan(""), 0, 0, 50, d);
    on_every_target([&] {
      cpu::backward(problem.params(), context);
      for (int64_t q = 0; q < 100; ++q) {
        EXPECT_EQ(std::isnan(problem.dq.get(0, 0, q, 3)), problem.forward.plan.has(0, 0, q, 50)) << "query " << q;
      }
    });
  }
}

// q, k and v one tensor, their gradients one tensor: it gets the sum of the three, rounded once.
TEST(AttendCpuBackward, OneTensorForAllGetsTheSum) {
  Context context = cpu_context(2);
  for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) {
    Rng rng(11);
    ProblemOptions o;
    o.plan = {.batch = 2, .seqlen_q = 130, .seqlen_k = 130, .heads_q = 2, .heads_kv = 2, .tile = 64};
    o.dtype = dtype;
    o.head_dim = 24;
    BackwardProblem problem = make_backward(rng, o);
    problem.forward.k = problem.forward.v = problem.forward.q;
    reference::forward(problem.forward.params(), context);
    const Gradients exact = exact_backward(problem);
    std::vector<double> sum = exact.dq, of_k_v = exact.dk;
    for (size_t i = 0; i < sum.size(); ++i) {
      sum[i] += exact.dk[i] + exact.dv[i];
      of_k_v[i] += exact.dv[i];
    }
    const double bound = (dtype == Dtype::f32 ? 0x1p-18 : 0x1p-6) * (1 + largest_magnitude(sum));
    on_every_target([&] {
      BackwardProblem together = problem;
      together.dq = together.dk = together.dv = HostTensor(dtype, problem.dq.view.shape());
      cpu::backward(together.params(), context);
      EXPECT_LE(largest_difference(values_of(together.dq.view), sum), bound);
      together.dq = HostTensor(dtype, problem.dq.view.shape());
      cpu::backward(together.params(), context);
      EXPECT_LE(largest_difference(values_of(together.dk.view), of_k_v), bound);
      EXPECT_LE(largest_difference(values_of(together.dq.view), exact.dq), bound);
    });
  }
}

TEST(AttendCpuBackward, TakesWhatItSaysAndRefusesTheRest) {
  Rng rng(1);
  const auto refused = [&](const auto& change) {
    ProblemOptions o;
    change(o);
    return cpu::refusal(make_backward(rng, o).params()).value_or("");
  };
  EXPECT_EQ(refused([](ProblemOptions&) {}), "");
  EXPECT_EQ(refused([](ProblemOptions& o) { o.dtype = Dtype::f16; }), "");
  EXPECT_EQ(refused([](ProblemOptions& o) { o.plan.is_by_key = true; }), "");
  EXPECT_EQ(refused([](ProblemOptions& o) { o.plan.mask = MaskKind::spans; }), "");
  EXPECT_EQ(refused([](ProblemOptions& o) { o.plan.pools = {4}; }), "");
  EXPECT_EQ(refused([](ProblemOptions& o) { o.plan.has_order_q = o.plan.has_order_k = true; }), "");
  EXPECT_NE(refused([](ProblemOptions& o) { o.dtype = Dtype::f64; }).find("q is f64"), std::string::npos);
  EXPECT_NE(refused([](ProblemOptions& o) { o.head_dim = 264; }).find("q has 264 channels, above 256"), std::string::npos);
  EXPECT_NE(refused([](ProblemOptions& o) { o.head_dim_v = 12; }).find("v has 12 channels, not a multiple of 8"), std::string::npos);
}

TEST(AttendCpuBackward, WrongScheduleIsRefusedAndWritesNothing) {
  Rng rng(1);
  ProblemOptions o;
  o.plan.heads_q = o.plan.heads_kv = 2;
  const BackwardProblem problem = make_backward(rng, o), other = make_backward(rng, o);
  Context context = cpu_context(1);
  problem.wipe();
  const std::vector<unsigned char> before = problem.dq.bytes();
  AttendBackwardParams params = problem.params();
  const auto message_of = [&](const Schedule& schedule) -> std::string {
    params.forward.schedule = schedule;
    try {
      attend_backward(params, context);
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  };
  EXPECT_NE(message_of(attend_prepare(other.forward.plan.plan, 2, context)).find("schedule was made for another plan"), std::string::npos);
  EXPECT_NE(message_of(attend_prepare(problem.forward.plan.plan, 1, context)).find("1 heads of k, got k with 2"), std::string::npos);
  EXPECT_EQ(problem.dq.bytes(), before);
  EXPECT_THROW(attend_prepare(nullptr, 1, context), Error);
  EXPECT_THROW(attend_prepare(problem.forward.plan.plan, 3, context), Error);
  EXPECT_THROW(attend_prepare(problem.forward.plan.plan, 0, context), Error);
}

TEST(AttendCpuBackward, CancelStopsIt) {
  Rng rng(1);
  const BackwardProblem problem = make_backward(rng, {});
  Context context = cpu_context(2);
  std::stop_source source;
  context.cancel = source.get_token();
  source.request_stop();
  try {
    cpu::backward(problem.params(), context);
    FAIL() << "not cancelled";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), Error::Kind::cancelled);
  }
}

}  // namespace
}  // namespace tilewise::attend::testing
