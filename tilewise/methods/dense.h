// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "tilewise/methods/options.h"

namespace tilewise::method {

struct DenseOptions {
  int tile = 64;
  static void each_field(auto& self, auto&& field) { field("tile", self.tile, range(16, 256), no_grid(), "query tokens per row of the plan"); }
};

/// All that the model's mask allows; neighbourhood masks read every key of the sequence under test. Shapes, dtypes and errors of every method: Problem.
/// Source  FlashAttention-2, arXiv 2307.08691: exact attention is the plan with one or two runs a row.
TILEWISE_API Planned dense(const Problem& problem, const DenseOptions& options, Context& context);

}  // namespace tilewise::method
