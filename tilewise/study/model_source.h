// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <vector>

#include "tilewise/study/attend_cost.h"
#include "tilewise/study/source.h"

namespace tilewise::study {

/// A model that reads texts, and answers needles.
class ModelSource : public Source {
 public:
  ModelSource(const Model& model, const CompareRequest& request, ProgressMeter& progress, const Context& outer)
      : model_(model), config_(model.config()), request_(request), progress_(progress), outer_(outer) {}

  void check(const CompareRequest& request) const override;
  InputFigures input() const override;
  double work(Step step, const std::string& name) const override;
  void run_dense(DenseFigures& dense) override;
  double dense_cost_ms() const override { return dense_cost_ms_; }
  void fill_row(MethodFigures& row, size_t number, const Planner& planner) override;
  NeedleFigures ask_needles(const Planner& planner) override;
  Attempt attempt(const Planner& planner, double most_ms) override;

 private:
  struct Pass {
    double total_ms = 0, bits_per_byte = 0;
  };
  Pass read_text(const CompareText& text, const AttentionFunction& attention, Context& context) const;
  bool answers(const NeedlePrompt& needle, const AttentionFunction& attention, Context& context) const;
  void tell_text(size_t text, size_t of, int layer);

  const Model& model_;
  const ModelConfig& config_;
  const CompareRequest& request_;
  ProgressMeter& progress_;
  Context outer_;
  std::vector<double> dense_bits_;  // of each text
  AttendRates rates_;  // where the request tunes
  double dense_cost_ms_ = 0;
};

}  // namespace tilewise::study
