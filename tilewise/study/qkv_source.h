// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "tilewise/study/attend_cost.h"
#include "tilewise/study/qkv.h"
#include "tilewise/study/source.h"

namespace tilewise::study {

/// One attention call whose tensors were saved: no model, so no bits, no needles and no model time.
class QkvSource : public Source {
 public:
  QkvSource(const QkvTensors& tensors, const CompareRequest& request, ProgressMeter& progress, const Context& outer)
      : tensors_(tensors), request_(request), progress_(progress), outer_(outer) {}

  void check(const CompareRequest& request) const override;
  InputFigures input() const override;
  std::string tune_text() const override { return tensors_.name; }
  double work(Step step, const std::string& name) const override;
  void run_dense(DenseFigures& dense) override;
  bool is_on_gpu() const override { return outer_.device.type == Device::Type::cuda; }
  double dense_cost_ms() const override { return dense_cost_ms_; }
  void fill_row(MethodFigures& row, size_t number, const Planner& planner) override;
  NeedleFigures ask_needles(const Planner& planner) override;
  Attempt attempt(const Planner& planner, double most_ms) override;

 private:
  Problem problem() const;
  Tensor make_out() const;

  const QkvTensors& tensors_;
  const CompareRequest& request_;
  ProgressMeter& progress_;
  Context outer_;
  DensePlans dense_plans_;
  Tensor dense_out_, dense_lse_;
  AttendRates rates_;  // where the request tunes
  double dense_cost_ms_ = 0;
};

}  // namespace tilewise::study
