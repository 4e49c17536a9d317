// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "tilewise/methods/options.h"

namespace tilewise::method {

struct OracleOptions {
  enum class Rule : uint8_t { sum, max };
  Rule rule = Rule::sum;
  float threshold = 0.9f, density = 0;
  int tile = 64;
  bool force = false;
  static void each_field(auto& self, auto&& field) {
    field("rule", self.rule, one_of("sum", "max"), no_grid(),
          "sum: a tile counts by its mass over all its queries; max: by the query that needs it most");
    field("threshold", self.threshold, range(0.0f, 1.0f), grid(.05f, .9f, .95f),
          "sum: mass that the kept tiles cover; max: mass for one query that keeps a tile");
    field("density", self.density, range(0.0f, 1.0f), no_grid(), "share of its visible tiles that a row keeps; above 0 it replaces threshold");
    field("tile", self.tile, range(16, 256), grid(64, 128), "tokens per tile, both axes");
    field("force", self.force, yes_no(), no_grid(), "sum: the first and the diagonal tile come first and count (max always adds them)");
  }
};

/// Tiles by the mass of the true attention on them, which it computes in full: what a selector with perfect knowledge would choose by the same rule.
/// sum  the smallest number of tiles that cover `threshold` of each row's mass (under an order and a mask those of the row's own tokens are added).
/// max  every tile that holds at least `threshold` of some query's mass, and the first and the diagonal tile. Shapes, dtypes and errors of every method: Problem.
/// Errors  unsupported (a neighbourhood mask, what no backend of attend takes); memory (it holds Sq * Tk floats of one head at a time).
/// Source  none: a yardstick.
TILEWISE_API Planned oracle(const Problem& problem, const OracleOptions& options, Context& context);

}  // namespace tilewise::method
