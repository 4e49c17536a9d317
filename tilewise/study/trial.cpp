// SPDX-License-Identifier: Apache-2.0
#include "tilewise/study/trial.h"

#include "tilewise/plan/count.h"
#include "tilewise/study/clock.h"
#include "tilewise/study/work_clock.h"

namespace tilewise::study {

bool Trial::run(const Planner& planner, const StudiedLayer& layer, const TensorView& lse, Context& context) {
  {
    WorkClock work(context);
    const Stopwatch watch;
    plan_ = planner(layer.problem, work.context()).plan;
    plan_ms_ += watch.ms();
    plan_costs_ms_.push_back(work.ms());
  }
  attend_cost_ms_ += rates_.ms(attend_work(plan_));
  reads_ += static_cast<double>(reads(plan_));
  dense_reads_ += static_cast<double>(plan_->dense_reads);
  is_stopped_ = cost_ms() > most_ms_;
  if (is_stopped_) return false;
  const Stopwatch watch;
  attend(layer.problem, plan_, layer.out, lse, context, layer.sink_logit);
  attend_ms_ += watch.ms();
  return true;
}

double Trial::cost_ms() const {
  return plan_costs_ms_.empty() ? 0 : median(plan_costs_ms_) * static_cast<double>(plan_costs_ms_.size()) + attend_cost_ms_;
}

void Trial::write(Attempt& attempt) const {
  attempt.density = dense_reads_ > 0 ? reads_ / dense_reads_ : kNoFigure;
  attempt.cost_ms = cost_ms();
  attempt.plan_ms = plan_ms_;
  attempt.attend_ms = attend_ms_;
  attempt.is_stopped = is_stopped_;
}

}  // namespace tilewise::study
