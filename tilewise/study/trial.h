// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <vector>

#include "tilewise/study/attend_cost.h"
#include "tilewise/study/source.h"
#include "tilewise/study/studied_model.h"

namespace tilewise::study {

/// One setting that is tried alone, layer by layer: what it reads, what it costs, and whether that is too much. Costs are counted, not timed, so that
/// whoever else uses the machine does not choose the setting: the plan by its CPU time, attention by the work that the plan names. Every layer's plan is
/// taken to cost the median of the layers', so that a first touch of memory or a disturbed layer does not matter.
class Trial {
 public:
  /// `rates` must outlive it.
  Trial(const AttendRates& rates, double most_ms) : rates_(rates), most_ms_(most_ms) {}

  /// Plans a layer and attends over the plan; false, and nothing is written, where the plan shows that the setting costs more than it may.
  bool run(const Planner& planner, const StudiedLayer& layer, const TensorView& lse, Context& context);
  /// The plan of the last layer.
  const Plan& plan() const { return plan_; }

  double cost_ms() const;
  /// Fills all but the excess.
  void write(Attempt& attempt) const;

 private:
  const AttendRates& rates_;
  double most_ms_;
  Plan plan_;
  std::vector<double> plan_costs_ms_;  // of each layer
  double attend_cost_ms_ = 0, plan_ms_ = 0, attend_ms_ = 0, reads_ = 0, dense_reads_ = 0;
  bool is_stopped_ = false;
};

}  // namespace tilewise::study
