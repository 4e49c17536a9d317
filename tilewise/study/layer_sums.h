// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <vector>

#include "tilewise/base/context.h"
#include "tilewise/plan/plan.h"
#include "tilewise/study/comparison.h"

namespace tilewise::study {

/// Sums over the rows of one head, from which its figures are made; several calls (texts, chunks) add up.
struct HeadSums {
  double reads = 0, dense_reads = 0, allowed = 0, dense_allowed = 0;
  double recall = 0, rows = 0;
  double error_square = 0, dense_square = 0;

  HeadSums& operator+=(const HeadSums& other);
};

/// Figures of the heads of all layers.
class LayerSums {
 public:
  LayerSums(int num_layers, int heads)
      : heads_(heads), sums_(static_cast<size_t>(num_layers) * static_cast<size_t>(heads)), has_run_(static_cast<size_t>(num_layers)) {}

  /// Adds the pairs that `plan` reads. `dense` is the dense plan of the same mask and lengths (at any tile).
  void add_plan(int layer, const Plan& plan, const Plan& dense);
  /// As add_plan for a layer whose heads have plans of their own; `head_plans[h]` is read at head h.
  void add_plans(int layer, const std::vector<Plan>& head_plans, const Plan& dense);
  /// Adds what a layer computed: out and dense_out [B, Hq, Sq, Dv] in any of f32, bf16, f16, lse and dense_lse [B, Hq, Sq] f32.
  void add_outputs(int layer, const TensorView& out, const TensorView& lse, const TensorView& dense_out, const TensorView& dense_lse,
                   Context& context);

  /// Fills density, allowed_density, recall, output_error and heads.
  void write(MethodFigures& row) const;

 private:
  const HeadSums& at(int layer, int head) const {
    return sums_[static_cast<size_t>(layer) * static_cast<size_t>(heads_) + static_cast<size_t>(head)];
  }
  HeadSums& at(int layer, int head) { return sums_[static_cast<size_t>(layer) * static_cast<size_t>(heads_) + static_cast<size_t>(head)]; }

  int heads_;
  std::vector<HeadSums> sums_;
  std::vector<bool> has_run_;  // of each layer
};

}  // namespace tilewise::study
