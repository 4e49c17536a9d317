// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <memory>
#include <string>

#include "tilewise/study/head_maps.h"
#include "tilewise/study/layer_sums.h"
#include "tilewise/study/planner.h"
#include "tilewise/study/studied_model.h"

namespace tilewise::study {

/// Measures one row: in each layer dense and sparse attention of the same q, k, v, one after the other, and what they have apart.
class RowMeter {
 public:
  RowMeter(int num_layers, int heads, const Context& outer) : outer_(outer), sums_(num_layers, heads) {}

  /// Writes sparse attention to layer.out and returns its plan, which the host can read. `own` is the row's context, whose memory is counted; dense attention and the figures take
  /// theirs past it. Dense and sparse run `repeats` times in turns, three times at least where a turn takes under 20 ms,
  /// and their medians count. `maps`, if given, takes this layer, too.
  Plan run(const StudiedLayer& layer, const Planner& planner, Context& own, int repeats = 1, HeadMaps* maps = nullptr);

  /// Everything but what the source alone knows (bits, model time, memory); times are divided by `texts`.
  void write(MethodFigures& row, double texts) const;
  /// Time that is not the row's: dense attention and the taking of figures.
  double apart_ms() const { return apart_ms_; }
  /// Adds time that is spent on the row but not by the method (saving plans).
  void add_apart(double time_ms) { apart_ms_ += time_ms; }

 private:
  Context outer_;
  LayerSums sums_;
  DensePlans dense_plans_;
  std::string backend_;
  double plan_ms_ = 0, attend_ms_ = 0, dense_ms_ = 0, apart_ms_ = 0;
};

}  // namespace tilewise::study
