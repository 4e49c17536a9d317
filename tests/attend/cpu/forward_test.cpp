// SPDX-License-Identifier: Apache-2.0
#include "tilewise/attend/cpu/forward.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>

#include "tests/attend/attend_testing.h"
#include "tests/attend/cpu/cpu_testing.h"
#include "tilewise/machine/cpu/context.h"
#include "tilewise/plan/rows.h"

namespace tilewise::attend::testing {
namespace {

using machine::cpu::available_targets;
using machine::cpu::Target;

const auto kForward = [](const AttendParams& params, Context& context) { return cpu::forward(params, context); };

std::vector<std::byte> bytes_of(const HostTensor& tensor) {
  std::vector<std::byte> bytes;
  for_each_offset(tensor.view, [&](int64_t offset) {
    const size_t size = size_of(tensor.view.dtype());
    const auto* const from = static_cast<const std::byte*>(tensor.view.raw()) + offset * static_cast<int64_t>(size);
    bytes.insert(bytes.end(), from, from + size);
  });
  return bytes;
}

// Random options, two of seven f16.
ProblemOptions options_of(Rng& rng, uint64_t seed, bool has_everything) {
  ProblemOptions o = random_options(rng, has_everything);
  if (seed % 7 < 2) o.dtype = Dtype::f16;
  return o;
}

class EveryTarget : public ::testing::TestWithParam<Target> {};
std::string target_name(const ::testing::TestParamInfo<Target>& info) { return std::string(machine::cpu::name(info.param)); }
INSTANTIATE_TEST_SUITE_P(Cpu, EveryTarget, ::testing::ValuesIn(available_targets().begin(), available_targets().end()), target_name);

TEST_P(EveryTarget, EqualsReferenceOnRandomProblems) {
  const ForcedTarget forced(GetParam());
  Context context = cpu_context(2);
  for (uint64_t seed = 1; seed <= 150; ++seed) {
    Rng rng(seed);
    const ForwardProblem problem = make_problem(rng, options_of(rng, seed, seed % 3 != 0));
    expect_forward(problem, kForward, context, "seed " + std::to_string(seed));
    if (HasFailure()) return;
  }
}

TEST_P(EveryTarget, LengthsAroundATile) {
  const ForcedTarget forced(GetParam());
  Context context = cpu_context(1);
  for (const int64_t seqlen_q : {0, 1, 15, 16, 17, 31, 33, 63, 64, 65, 127, 128, 129}) {
    for (const int64_t seqlen_k : {0, 1, 2, 3, 63, 64, 65, 127, 128, 129, 257}) {
      Rng rng(static_cast<uint64_t>(seqlen_q * 1000 + seqlen_k));
      ProblemOptions o;
      o.plan.tile = 128;
      o.plan.seqlen_q = seqlen_q;
      o.plan.seqlen_k = seqlen_k;
      o.plan.mask = (seqlen_q + seqlen_k) % 2 == 0 ? MaskKind::causal : MaskKind::full;
      o.dtype = std::array{Dtype::bf16, Dtype::f16, Dtype::f32}[static_cast<size_t>(seqlen_q + seqlen_k) % 3];
      o.head_dim = 32;
      o.head_dim_v = 40;
      const ForwardProblem problem = make_problem(rng, o);
      expect_forward(problem, kForward, context, "lengths");
      if (HasFailure()) return;
    }
  }
}

TEST_P(EveryTarget, EveryHeadDim) {
  const ForcedTarget forced(GetParam());
  Context context = cpu_context(1);
  for (int64_t head_dim = 8; head_dim <= 256; head_dim += 8) {
    Rng rng(static_cast<uint64_t>(head_dim));
    ProblemOptions o;
    o.plan.tile = 64;
    o.plan.seqlen_q = 70;
    o.plan.seqlen_k = 150;
    o.head_dim = head_dim;
    o.head_dim_v = 264 - head_dim;
    for (const Dtype dtype : {head_dim % 16 == 0 ? Dtype::f32 : Dtype::bf16, Dtype::f16}) {
      o.dtype = dtype;
      expect_forward(make_problem(rng, o), kForward, context, "head_dim");
      if (HasFailure()) return;
    }
  }
}

TEST_P(EveryTarget, BitsDoNotDependOnThreads) {
  const ForcedTarget forced(GetParam());
  for (uint64_t seed = 500; seed < 515; ++seed) {
    Rng rng(seed);
    ProblemOptions o = options_of(rng, seed, seed % 3 != 0);
    o.has_out = o.has_lse = true;
    const ForwardProblem problem = make_problem(rng, o);
    std::vector<std::byte> out, lse;
    for (const int threads : {1, 2, 3, 5}) {
      Context context = cpu_context(threads);
      cpu::forward(problem.params(), context);
      if (threads == 1) {
        out = bytes_of(problem.out);
        lse = bytes_of(problem.lse);
      } else {
        EXPECT_EQ(bytes_of(problem.out), out) << threads << " threads, seed " << seed << ", " << describe(problem.options);
        EXPECT_EQ(bytes_of(problem.lse), lse) << threads << " threads, seed " << seed;
      }
    }
  }
}

// Enough blocks for one thread to run those of a row two at a time, too few for five threads: the bits are the same.
TEST_P(EveryTarget, BlocksThatShareStripsGiveTheSameBits) {
  const ForcedTarget forced(GetParam());
  for (uint64_t seed = 1; seed <= 8; ++seed) {
    Rng rng(seed);
    ProblemOptions o;
    o.plan.tile = seed % 4 == 0 ? 256 : 128;
    o.plan.seqlen_q = 64 * 66 + 40;
    o.plan.seqlen_k = 301;
    o.plan.density = 0.3;
    o.plan.longest_run = 90;
    o.plan.has_rows = seed % 3 == 1;
    o.has_sink = seed % 5 == 0;
    o.plan.has_picked = seed % 2 == 0;
    o.plan.mask = seed % 3 == 0 ? MaskKind::causal : MaskKind::full;
    o.dtype = std::array{Dtype::f32, Dtype::bf16, Dtype::f16}[seed % 3];
    o.head_dim = 32;
    const ForwardProblem problem = make_problem(rng, o);
    Context one = cpu_context(1), five = cpu_context(5);
    expect_forward(problem, kForward, one, "seed " + std::to_string(seed));
    if (HasFailure()) return;
    cpu::forward(problem.params(), one);
    const std::vector<std::byte> out = bytes_of(problem.out), lse = bytes_of(problem.lse);
    cpu::forward(problem.params(), five);
    EXPECT_EQ(bytes_of(problem.out), out) << "seed " << seed;
    EXPECT_EQ(bytes_of(problem.lse), lse) << "seed " << seed;
  }
}

// Keys that no run of any row names are NaN: nothing changes, bit for bit.
TEST_P(EveryTarget, SkippedKeysAreNotComputedWith) {
  const ForcedTarget forced(GetParam());
  Context context = cpu_context(2);
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (const Dtype dtype : {Dtype::f32, Dtype::bf16, Dtype::f16}) {
    for (uint64_t seed = 1; seed <= 20; ++seed) {
      Rng rng(seed);
      ProblemOptions o;
      o.plan.tile = 64;
      o.plan.seqlen_q = 100;
      o.plan.seqlen_k = 333;
      o.plan.groups = 1;
      o.plan.density = 0.2;
      o.plan.longest_run = static_cast<int>(seed);
      o.plan.has_picked = seed % 2 == 0;
      o.plan.mask = seed % 3 == 0 ? MaskKind::causal : MaskKind::full;
      o.dtype = dtype;
      const ForwardProblem problem = make_problem(rng, o);
      cpu::forward(problem.params(), context);
      const std::vector<std::byte> out = bytes_of(problem.out), lse = bytes_of(problem.lse);
      // Only one row of queries is held against its own keys: poison what it skips and look at its outputs.
      for (const int64_t row : {0, 1}) {
        std::vector<bool> is_read(static_cast<size_t>(o.plan.seqlen_k), false);
        const Lists& lists = problem.plan.plan->by_query;
        for (const RunList* list : {&lists.whole, &lists.masked, &lists.picked}) {
          const plan::Runs runs = plan::runs_of(*list, 0, 0, o.plan.heads_q, row);
          for (int i = 0; i < runs.count; ++i) {
            const int64_t stop = list == &lists.picked ? runs.start[i] + 1 : plan::run_stop(runs, i, list->grain, o.plan.seqlen_k);
            for (int64_t key = runs.start[i]; key < stop; ++key) is_read[static_cast<size_t>(key)] = true;
          }
        }
        ForwardProblem poisoned = problem;
        poisoned.k = converted(problem.k.view, dtype);
        poisoned.v = converted(problem.v.view, dtype);
        for (const HostTensor* tensor : {&poisoned.k, &poisoned.v}) {
          for (int64_t h = 0; h < tensor->view.dim(1); ++h) {
            for (int64_t key = 0; key < o.plan.seqlen_k; ++key) {
              if (is_read[static_cast<size_t>(key)]) continue;
              for (int64_t d = 0; d < tensor->view.dim(3); ++d) from_double(tensor->view, tensor->view.offset(0, h, key, d), nan);
            }
          }
        }
        poisoned.out = HostTensor(dtype, problem.out.view.shape());
        poisoned.lse = HostTensor(Dtype::f32, problem.lse.view.shape());
        cpu::forward(poisoned.params(), context);
        const int64_t first = row * o.plan.tile, last = std::min<int64_t>(o.plan.seqlen_q, first + o.plan.tile);
        for (int64_t h = 0; h < o.plan.heads_q; ++h) {
          for (int64_t s = first; s < last; ++s) {
            ASSERT_EQ(to_double(poisoned.lse.view, poisoned.lse.view.offset(0, h, s)), to_double(problem.lse.view, problem.lse.view.offset(0, h, s)))
                << "seed " << seed << " row " << row;
            for (int64_t d = 0; d < problem.out.view.dim(3); ++d) {
              ASSERT_EQ(to_double(poisoned.out.view, poisoned.out.view.offset(0, h, s, d)),
                        to_double(problem.out.view, problem.out.view.offset(0, h, s, d)))
                  << "seed " << seed << " row " << row;
            }
          }
        }
      }
    }
  }
}

TEST_P(EveryTarget, NanInAReadKeyReachesItsReaders) {
  const ForcedTarget forced(GetParam());
  Context context = cpu_context(1);
  Rng rng(5);
  ProblemOptions o;
  o.plan.seqlen_q = o.plan.seqlen_k = 100;
  o.plan.density = 1;
  o.plan.mask = MaskKind::full;
  const ForwardProblem problem = make_problem(rng, o);
  for (int64_t d = 0; d < o.head_dim; ++d) from_double(problem.k.view, problem.k.view.offset(0, 0, 50, d), std::nan(""));
  cpu::forward(problem.params(), context);
  if (problem.plan.reads == 100 * 100 * o.plan.heads_q) {
    EXPECT_TRUE(std::isnan(to_double(problem.out.view, 0)));
    EXPECT_TRUE(std::isnan(to_double(problem.lse.view, 0)));
  }
}

// Logits that rise or fall far within a row, by strips of keys and within one: what a shift guessed beforehand does not hold for.
TEST_P(EveryTarget, ScoresFarApart) {
  const ForcedTarget forced(GetParam());
  Context context = cpu_context(2);
  const auto rising = [](int64_t key) { return 1.0 + static_cast<double>(key) / 8; };
  const auto falling = [&](int64_t key) { return rising(699 - key); };
  const auto one_far = [](int64_t key) { return key == 401 ? 300.0 : 0.1; };
  const auto tiny = [](int64_t key) { return key % 5 == 0 ? 400.0 : 1e-3; };
  for (const auto& factor : std::vector<std::function<double(int64_t)>>{rising, falling, one_far, tiny}) {
    for (const Dtype dtype : {Dtype::f32, Dtype::bf16, Dtype::f16}) {
      Rng rng(3);
      ProblemOptions o;
      o.plan.seqlen_q = 70;
      o.plan.seqlen_k = 700;
      o.plan.density = 1;
      o.plan.longest_run = 700;
      o.plan.mask = MaskKind::full;
      o.dtype = dtype;
      o.softmax_scale = 1.0f;
      const ForwardProblem problem = make_problem(rng, o);
      for (int64_t h = 0; h < problem.k.view.dim(1); ++h) {
        for (int64_t key = 0; key < 700; ++key) {
          for (int64_t d = 0; d < problem.k.view.dim(3); ++d) {
            const int64_t offset = problem.k.view.offset(0, h, key, d);
            from_double(problem.k.view, offset, to_double(problem.k.view, offset) * factor(key));
          }
        }
      }
      expect_forward(problem, kForward, context, "far apart");
      if (HasFailure()) return;
    }
  }
}

std::string refused(const ForwardProblem& problem) { return cpu::refusal(problem.params()).value_or(""); }

TEST(CpuForwardRefusal, NamesWhatIsNotBuilt) {
  Rng rng(1);
  const auto with = [&](const auto& change) {
    ProblemOptions o;
    change(o);
    return refused(make_problem(rng, o));
  };
  EXPECT_EQ(with([](ProblemOptions&) {}), "");
  EXPECT_EQ(with([](ProblemOptions& o) { o.dtype = Dtype::f16; }), "");
  EXPECT_NE(with([](ProblemOptions& o) { o.dtype = Dtype::f64; }).find("q is f64"), std::string::npos);
  EXPECT_NE(with([](ProblemOptions& o) { o.head_dim = 264; }).find("q has 264 channels, above 256"), std::string::npos);
  EXPECT_NE(with([](ProblemOptions& o) { o.head_dim = 20; }).find("q has 20 channels, not a multiple of 8"), std::string::npos);
  EXPECT_NE(with([](ProblemOptions& o) { o.head_dim_v = 12; }).find("v has 12 channels"), std::string::npos);
}

TEST(CpuForwardRefusal, ARefusedCallWritesNothing) {
  Rng rng(1);
  ProblemOptions o;
  o.head_dim = 20;
  const ForwardProblem problem = make_problem(rng, o);
  problem.out.wipe();
  const std::vector<std::byte> before = bytes_of(problem.out);
  Context context = cpu_context(1);
  EXPECT_THROW(cpu::forward(problem.params(), context), Error);
  EXPECT_EQ(bytes_of(problem.out), before);
}

TEST(CpuForward, CancelStopsIt) {
  Rng rng(1);
  const ForwardProblem problem = make_problem(rng, {});
  Context context = cpu_context(2);
  std::stop_source source;
  context.cancel = source.get_token();
  source.request_stop();
  try {
    cpu::forward(problem.params(), context);
    FAIL() << "not cancelled";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), Error::Kind::cancelled);
  }
}

// flashattention.md, oracle 5: the dense plan with its runs cut anywhere gives the same bits, since strips run over the cuts.
TEST_P(EveryTarget, CutRunsGiveTheSameBits) {
  const ForcedTarget forced(GetParam());
  Context context = cpu_context(2);
  for (const Dtype dtype : {Dtype::f32, Dtype::bf16, Dtype::f16}) {
    Rng rng(9);
    ProblemOptions o;
    o.plan.seqlen_q = 130;
    o.plan.seqlen_k = 700;
    o.dtype = dtype;
    ForwardProblem problem = make_problem(rng, o);
    std::vector<std::byte> out;
    for (const int cut : {700, 128, 64, 7, 1}) {
      auto data = std::make_shared<PlanData>();
      data->seqlen_q = 130;
      data->seqlen_k = 700;
      data->batch = o.plan.batch;
      data->heads_q = o.plan.heads_q;
      data->mask = Mask::full();
      std::vector<int32_t> start, stop;
      for (int k = 0; k < 700; k += cut) {
        start.push_back(k);
        stop.push_back(std::min(700, k + cut));
      }
      std::vector<int64_t> begin{0, 0};
      std::vector<int32_t> count(2, static_cast<int32_t>(start.size()));
      RunList& whole = data->by_query.whole;
      whole.begin = TensorView::of(begin.data(), {1, 1, 2});
      whole.count = TensorView::of(count.data(), {1, 1, 2});
      whole.start = TensorView::of(start.data(), {static_cast<int64_t>(start.size())});
      whole.stop = TensorView::of(stop.data(), {static_cast<int64_t>(stop.size())});
      AttendParams params = problem.params();
      params.plan = data;
      cpu::forward(params, context);
      if (cut == 700) {
        out = bytes_of(problem.out);
      } else {
        EXPECT_EQ(bytes_of(problem.out), out) << "cut at " << cut;
      }
    }
  }
}

}  // namespace
}  // namespace tilewise::attend::testing
