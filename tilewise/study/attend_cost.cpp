// SPDX-License-Identifier: Apache-2.0
#include "tilewise/study/attend_cost.h"

#include <algorithm>
#include <limits>

#include "tilewise/plan/axis.h"
#include "tilewise/plan/builder.h"
#include "tilewise/plan/count.h"
#include "tilewise/plan/make.h"
#include "tilewise/plan/rows.h"
#include "tilewise/study/planner.h"
#include "tilewise/study/work_clock.h"

namespace tilewise::study {
namespace {

constexpr int kTile = 64;
constexpr int64_t kMostTokens = 4096;  // a quarter second for all on two cores; longer ones tell nothing else
constexpr int kRepeats = 5;
constexpr int64_t kShortRun = 16, kPickedStep = 16;

/// A causal plan whose rows read what `runs_of` gives for their first query.
template <class RunsOf>
Plan drawn_plan(int64_t tokens, int heads, const RunsOf& runs_of, const std::shared_ptr<Memory>& memory) {
  PlanData data;
  data.seqlen_q = data.seqlen_k = tokens;
  data.heads_q = heads;
  data.mask = Mask::causal();
  const int64_t rows = (tokens + kTile - 1) / kTile;
  ListsBuilder builder(kTile, 1, 1, rows);
  for (int64_t row = 0; row < rows; ++row) builder.set(0, 0, row, runs_of(static_cast<int32_t>(row * kTile)));
  data.by_query = builder.build(memory, data);
  return make_plan(std::move(data));
}

/// Every other 16 keys.
RowRuns short_runs(int32_t first) {
  RowRuns runs;
  for (int32_t key = 0; key + kShortRun <= first + 1; key += 2 * kShortRun) runs.whole.push_back({key, key + static_cast<int32_t>(kShortRun), {}});
  return runs;
}

RowRuns picked_keys(int32_t first) {
  RowRuns runs;
  for (int32_t key = 0; key <= first; key += kPickedStep) runs.picked.push_back({key, key + 1, {}});
  return runs;
}

double ratio(double part, double whole) { return whole > 0 ? std::max(0.0, part / whole) : 0; }

}  // namespace

AttendWork attend_work(const Plan& plan) {
  const PlanData& data = *plan;
  AttendWork work;
  if (!data.by_query.has_runs()) {
    work.pairs = static_cast<double>(reads(plan));
    work.segments = static_cast<double>(plan::num_rows(data.by_key, plan::slots_k(data)) * data.batch * data.heads_q);
    return work;
  }
  const Lists& lists = data.by_query;
  const int64_t slots = plan::slots_q(data), rows = plan::num_rows(lists, slots);
  for (const plan::Reader& reader : plan::distinct_readers(data, lists)) {
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t size = plan::row_last(lists, row, slots) - plan::row_first(lists, row), blocks = (size + kTile - 1) / kTile;
      int64_t keys = 0, picked = 0, segments = 0;
      for (const RunList* list : {&lists.whole, &lists.masked, &lists.picked}) {
        const plan::Runs runs = plan::runs_of(*list, reader.b, reader.head, data.heads_q, row);
        for (int i = 0; i < runs.count; ++i) {
          const int64_t start = runs.start[i];
          (list == &lists.picked ? picked : keys) += plan::run_stop(runs, i, list->grain, plan::part_end(data, start)) - start;
        }
        if (list != &lists.picked) segments += runs.count;
      }
      const auto times = static_cast<double>(reader.times);
      work.pairs += times * static_cast<double>(size * keys);
      work.picked += times * static_cast<double>(size * picked);
      work.segments += times * static_cast<double>(segments * blocks);
    }
  }
  return work;
}

AttendRates measure_rates(const Problem& problem, const Context& context) {
  const int64_t seqlen_q = problem.q.dim(2), seqlen_k = problem.k.dim(2), tokens = std::min({kMostTokens, seqlen_q, seqlen_k});
  const int heads = static_cast<int>(problem.q.dim(1));
  Problem part = problem;
  part.q = problem.q.slice(0, 0, 1).slice(2, seqlen_q - tokens, tokens);
  part.k = problem.k.slice(0, 0, 1).slice(2, 0, tokens);
  part.v = problem.v.slice(0, 0, 1).slice(2, 0, tokens);
  const Tensor out(context.memory, problem.q.dtype(), {1, problem.q.dim(1), tokens, problem.v.dim(3)});
  const auto least_ns = [&](const Plan& plan) {
    double least = std::numeric_limits<double>::infinity();
    for (int i = 0; i < kRepeats; ++i) {
      WorkClock clock(context);
      attend(part, plan, out.view, {}, clock.context());
      least = std::min(least, clock.ms());
    }
    return least * 1e6;
  };
  const Plan dense =
      dense_plan({.seqlen_q = tokens, .seqlen_k = tokens, .tile = kTile, .mask = Mask::causal(), .batch = 1, .heads_q = heads}, context.memory);
  const Plan runs = drawn_plan(tokens, heads, short_runs, context.memory), picked = drawn_plan(tokens, heads, picked_keys, context.memory);
  AttendRates rates;
  rates.pair_ns = ratio(least_ns(dense), attend_work(dense).pairs);
  const AttendWork of_runs = attend_work(runs);
  rates.segment_ns = ratio(least_ns(runs) - rates.pair_ns * of_runs.pairs, of_runs.segments);
  rates.picked_ns = ratio(least_ns(picked), attend_work(picked).picked);
  return rates;
}

}  // namespace tilewise::study
