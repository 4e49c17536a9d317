// SPDX-License-Identifier: Apache-2.0
#include "tilewise/study/attend_cost.h"

#include <gtest/gtest.h>

#include "tests/study/tiny_model.h"
#include "tilewise/machine/cpu/context.h"
#include "tilewise/methods/registry.h"
#include "tilewise/plan/builder.h"
#include "tilewise/plan/count.h"
#include "tilewise/plan/make.h"
#include "tilewise/plan/rows.h"

namespace tilewise::study {
namespace {

constexpr int kHeadsQ = 4, kHeadsKv = 2, kHeadDim = 16;

Tensor drawn(const Shape& shape, uint64_t seed) {
  Tensor tensor(host_memory(), Dtype::f32, shape);
  for (int64_t i = 0; i < shape.numel(); ++i) {
    tensor.view.data<float>()[i] = static_cast<float>(splitmix64(seed + static_cast<uint64_t>(i)) % 2001) / 1000.0f - 1;
  }
  return tensor;
}

struct Drawn {
  Tensor q, k, v;
  Problem problem;

  explicit Drawn(int64_t seqlen_q, int64_t seqlen_k, int64_t batch = 1)
      : q(drawn({batch, kHeadsQ, seqlen_q, kHeadDim}, 1)),
        k(drawn({batch, kHeadsKv, seqlen_k, kHeadDim}, 2)),
        v(drawn({batch, kHeadsKv, seqlen_k, 24}, 3)) {
    problem.q = q.view;
    problem.k = k.view;
    problem.v = v.view;
  }
};

/// Slot by slot and key by key.
AttendWork counted(const Plan& plan) {
  AttendWork work;
  const Lists& lists = plan->by_query;
  const int64_t slots = plan::slots_q(*plan);
  for (int64_t b = 0; b < plan->batch; ++b) {
    for (int head = 0; head < plan->heads_q; ++head) {
      for (int64_t row = 0; row < plan::num_rows(lists, slots); ++row) {
        for (int64_t slot = plan::row_first(lists, row); slot < plan::row_last(lists, row, slots); ++slot) {
          for (const RunList* list : {&lists.whole, &lists.masked, &lists.picked}) {
            const plan::Runs runs = plan::runs_of(*list, b, head, plan->heads_q, row);
            for (int i = 0; i < runs.count; ++i) {
              const int64_t stop = plan::run_stop(runs, i, list->grain, plan->seqlen_k);
              for (int64_t key = runs.start[i]; key < stop; ++key) (list == &lists.picked ? work.picked : work.pairs) += 1;
              if (list != &lists.picked && (slot - plan::row_first(lists, row)) % 64 == 0) work.segments += 1;
            }
          }
        }
      }
    }
  }
  return work;
}

TEST(AttendCost, WorkIsWhatPlainLoopsCount) {
  Context context = cpu_context(2);
  for (const int64_t batch : {1, 2}) {
    const Drawn drawn(301, 401, batch);
    for (const MethodInfo& info : methods()) {
      SCOPED_TRACE(info.name);
      const Plan plan = plan_with(info.name, drawn.problem, {}, context).plan;
      const AttendWork work = attend_work(plan), expected = counted(plan);
      EXPECT_EQ(work.pairs, expected.pairs);
      EXPECT_EQ(work.picked, expected.picked);
      EXPECT_EQ(work.segments, expected.segments);
      EXPECT_GE(work.pairs + work.picked, static_cast<double>(reads(plan)));
      EXPECT_GT(work.pairs, 0);
    }
  }
}

TEST(AttendCost, APlanByKeyAloneCountsAllThatItReads) {
  PlanData data;
  data.seqlen_q = data.seqlen_k = 100;
  data.heads_q = kHeadsQ;
  data.mask = Mask::causal();
  data.is_by_key = true;
  ListsBuilder builder(50, 1, 1, 2);
  builder.set(0, 0, 0, {.whole = {{60, 100, {}}}, .masked = {}, .picked = {}});
  builder.set(0, 0, 1, {.whole = {}, .masked = {{50, 100, {}}}, .picked = {}});
  data.by_key = builder.build_by_key(host_memory(), data);
  const Plan plan = make_plan(std::move(data));
  EXPECT_EQ(attend_work(plan).pairs, kHeadsQ * (50 * 40 + 50 * 50));
  EXPECT_GT(attend_work(plan).segments, 0);
}

TEST(AttendCost, RatesAreThereForEveryShape) {
  const Context context = cpu_context(2);
  for (const auto& [seqlen_q, seqlen_k] : {std::pair<int64_t, int64_t>{1, 1}, {1, 300}, {300, 7}, {63, 65}, {500, 700}}) {
    SCOPED_TRACE(testing::Message() << seqlen_q << " " << seqlen_k);
    const Drawn drawn(seqlen_q, seqlen_k, 2);
    const AttendRates rates = measure_rates(drawn.problem, context);
    EXPECT_GT(rates.pair_ns, 0);
    EXPECT_GT(rates.picked_ns, 0);
    EXPECT_GE(rates.segment_ns, 0);
    EXPECT_LT(rates.pair_ns, 1e6);
  }
  const AttendRates rates{.5, 2, 100};
  EXPECT_DOUBLE_EQ(rates.ms({.pairs = 4e6, .picked = 1e6, .segments = 1000}), 2 + 2 + .1);
}

}  // namespace
}  // namespace tilewise::study
