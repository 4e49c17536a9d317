// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "tilewise/methods/options.h"

namespace tilewise::method {

struct RandomOptions {
  float density = 0.2f;
  int tile = 64;
  int64_t seed = 0;
  static void each_field(auto& self, auto&& field) {
    field("density", self.density, range(0.0f, 1.0f), grid(.1f, .2f, .4f), "probability of each tile");
    field("tile", self.tile, range(16, 256), no_grid(), "tokens per tile, both axes");
    field("seed", self.seed, range(int64_t{0}, INT64_MAX), no_grid(), "another seed, another plan");
  }
};

/// Each tile that a row sees with probability `density`, independently per batch entry, head and row, and the first and the diagonal tile: the floor that
/// any selector must beat. Draws depend on seed, layer, batch entry, head, row and tile alone. Shapes, dtypes and errors of every method: Problem.
/// Errors  unsupported (a neighbourhood mask).
/// Source  none: a baseline.
TILEWISE_API Planned random(const Problem& problem, const RandomOptions& options, Context& context);

}  // namespace tilewise::method
