// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "tilewise/methods/options.h"

namespace tilewise::method {

struct AShapeOptions {
  int init = 64, local = 2048, tile = 64;
  static void each_field(auto& self, auto&& field) {
    field("init", self.init, range(0, 1 << 30), grid(64, 128, 1024), "first tokens that every query reads");
    field("local", self.local, range(1, 1 << 30), grid(1024, 2048, 4096), "last tokens that a query reads, itself among them");
    field("tile", self.tile, range(16, 256), no_grid(), "query tokens per row of the plan");
  }
};

/// Key k is read by query token t iff 0 <= t - k < local, or k < init and k <= t. The same in every head, from lengths alone.
/// Source  MInference, arXiv 2407.02490, A-shape heads (StreamingLLM's sink and window).
TILEWISE_API Planned a_shape(const Problem& problem, const AShapeOptions& options, Context& context);

}  // namespace tilewise::method
