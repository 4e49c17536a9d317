// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <vector>

#include "tilewise/study/attend_cost.h"
#include "tilewise/study/source.h"
#include "tilewise/study/studied_model.h"

namespace tilewise::study {

/// A model that reads texts, and answers needles.
class ModelSource : public Source {
 public:
  ModelSource(StudiedModel& model, const CompareRequest& request, ProgressMeter& progress, const Context& outer)
      : model_(model), request_(request), progress_(progress), outer_(outer), num_layers_(model.input().num_layers) {}

  void check(const CompareRequest&) const override {}  // the model has checked what it reads
  InputFigures input() const override;
  std::string tune_text() const override { return model_.text_name(0); }
  double work(Step step, const std::string& name) const override;
  void run_dense(DenseFigures& dense) override;
  bool is_on_gpu() const override { return outer_.device.type == Device::Type::cuda; }
  double dense_cost_ms() const override { return dense_cost_ms_; }
  void fill_row(MethodFigures& row, size_t number, const Planner& planner) override;
  NeedleFigures ask_needles(const Planner& planner) override;
  Attempt attempt(const Planner& planner, double most_ms) override;

 private:
  /// The layer as the row runs it: with the request's seed.
  StudiedLayer seeded(const StudiedLayer& layer) const;
  /// What the bound holds of a reading: its bits, by the unit of the input.
  double bits_of(double bits_per_byte, double bits_per_token) const;
  void tell_text(size_t text, size_t of, int layer);

  StudiedModel& model_;
  const CompareRequest& request_;
  ProgressMeter& progress_;
  Context outer_;
  int num_layers_;
  std::vector<StudiedPass> dense_;  // of each text
  AttendRates rates_;  // where the request tunes
  double dense_cost_ms_ = 0;
};

}  // namespace tilewise::study
