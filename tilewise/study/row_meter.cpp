// SPDX-License-Identifier: Apache-2.0
#include "tilewise/study/row_meter.h"

#include <algorithm>
#include <vector>

#include "tilewise/infer/layer.h"
#include "tilewise/machine/device.h"
#include "tilewise/study/clock.h"

namespace tilewise::study {
namespace {

// A layer whose turn takes less is timed three times: one interruption would outweigh it, and three cost little.
constexpr double kShortTurnMs = 20;

}  // namespace

Plan RowMeter::run(const StudiedLayer& layer, const Planner& planner, Context& own, int repeats, HeadMaps* maps) {
  const Stopwatch whole;
  const Problem& problem = layer.problem;
  const TensorView& out = layer.out;
  const Tensor dense_out = machine::make_tensor(outer_, out.dtype(), out.shape());
  const Shape rows{problem.q.dim(0), problem.q.dim(1), problem.q.dim(2)};
  const Tensor dense_lse = machine::make_tensor(outer_, Dtype::f32, rows), lse = machine::make_tensor(outer_, Dtype::f32, rows);
  const Plan dense_plan = dense_plans_.of(problem, outer_);
  std::vector<double> dense_ms, plan_ms, attend_ms;
  RecipePlan planned;
  const auto run_dense = [&] {
    const Stopwatch watch(outer_);
    attend(problem, dense_plan, dense_out.view, dense_lse.view, outer_, layer.sink_logit);
    dense_ms.push_back(watch.ms());
  };
  const auto run_sparse = [&] {
    const Stopwatch planning(own);
    planned = planner(problem, own);
    plan_ms.push_back(planning.ms());
    const Stopwatch attending(own);
    backend_ = backend_name(attend(problem, planned.plan, out, lse.view, own, layer.sink_logit));
    attend_ms.push_back(attending.ms());
  };
  for (int i = 0; i < repeats; ++i) {
    // Who runs second finds k and v in the cache; taking turns shares that out.
    const bool is_dense_first = (problem.layer + i) % 2 == 0;
    if (is_dense_first) run_dense();
    run_sparse();
    if (!is_dense_first) run_dense();
    if (i == 0 && dense_ms[0] + plan_ms[0] + attend_ms[0] < kShortTurnMs) repeats = std::max(repeats, 3);
  }
  plan_ms_ += median(plan_ms);
  attend_ms_ += median(attend_ms);
  dense_ms_ += median(dense_ms);
  // Figures are taken on the host; what a GPU computed is copied there.
  const Plan plan = infer::plan_on_host(planned.plan, outer_);
  if (planned.head_plans.empty()) {
    sums_.add_plan(problem.layer, plan, dense_plans_.on_host(outer_));
  } else {
    sums_.add_plans(problem.layer, planned.head_plans, dense_plans_.on_host(outer_));
  }
  {
    const machine::OnHost ours(out, outer_), our_lse(lse.view, outer_), theirs(dense_out.view, outer_), their_lse(dense_lse.view, outer_);
    Context host = machine::on_cpu(outer_);
    sums_.add_outputs(problem.layer, ours.view, our_lse.view, theirs.view, their_lse.view, host);
  }
  if (maps != nullptr) maps->add(problem, dense_plan, planned.plan, dense_lse.view, outer_);
  apart_ms_ += whole.ms() - median(plan_ms) - median(attend_ms);
  return plan;
}

void RowMeter::write(MethodFigures& row, double texts) const {
  row.plan_ms = plan_ms_ / texts;
  row.attend_ms = attend_ms_ / texts;
  row.total_ms = row.plan_ms + row.attend_ms;
  row.dense_attend_ms = dense_ms_ / texts;
  row.speedup = row.dense_attend_ms / row.total_ms;
  row.backend = backend_;
  sums_.write(row);
}

}  // namespace tilewise::study
