// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <span>

#include "tilewise/methods/options.h"

namespace tilewise::method {

struct FlexPrefillOptions {
  float gamma = 0.9f, tau = 0.1f;
  int min_budget = 1, max_budget = 0;
  int tile = 128;

  static void each_field(auto& self, auto&& field) {
    field("gamma", self.gamma, range(0.0f, 1.0f), grid(.9f, .95f, .99f), "share of the estimated probability that the kept lines, or tiles, cover");
    field("tau", self.tau, range(0.0f, 1.0f), grid(0.0f, .1f),
          "a head whose last queries agree with their mean to this distance chooses tiles by means; 0: none does");
    field("min_budget", self.min_budget, range(1, 1 << 30), no_grid(), "fewest columns of tiles, and fewest diagonals of tiles, of a head");
    field("max_budget", self.max_budget, range(0, 1 << 30), no_grid(), "most of either; 0: no limit");
    field("tile", self.tile, range(16, 256), no_grid(), "tokens per tile, both axes, and last queries that the lines are estimated from");
  }
};

/// Each head chooses its pattern for the input at hand. From the last `tile` queries: how much probability lies on each key and on each distance; per head as
/// many columns and diagonals of tiles as cover `gamma` of it. A head whose mean query, against mean keys, tells the same distribution over tiles (square
/// root of the Jensen-Shannon divergence below `tau`) keeps `min_budget` lines and adds the best tiles of the map of mean queries and mean keys.
/// The first column and the diagonal are always among the lines. A sequence of at most two tiles (or `min_budget` tiles) is read in full, as is a head whose
/// estimate is not finite. Shapes, dtypes and errors of every method: Problem.
/// Errors  value (max_budget below min_budget), unsupported (a mask that is not plainly causal, what attend refuses).
/// Source  FlexPrefill, arXiv 2502.20766, from the copy in MInference's released code. See docs/systems/flexprefill.md.
TILEWISE_API Planned flexprefill(const Problem& problem, const FlexPrefillOptions& options, Context& context);

/// How many of the values, largest first, it takes until their sum is above `share`: one more than there are prefix sums up to it, at most all.
TILEWISE_API int64_t count_cover(std::span<const float> values, double share);

/// Square root of the Jensen-Shannon divergence (natural logarithm) of two distributions.
TILEWISE_API double jensen_shannon_distance(std::span<const double> p, std::span<const double> q);

}  // namespace tilewise::method
