// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "tilewise/methods/options.h"

namespace tilewise::method {

struct MeanPoolOptions {
  int tile = 128;
  float threshold = 0.9f, density = 0;
  static void each_field(auto& self, auto&& field) {
    field("tile", self.tile, range(16, 256), grid(64, 128), "tokens per tile, both axes");
    field("threshold", self.threshold, range(0.0f, 1.0f), grid(.8f, .9f, .95f, .97f, .99f), "share of the pooled softmax that the kept tiles cover");
    field("density", self.density, range(0.0f, 1.0f), no_grid(), "share of its visible tiles that a row keeps; above 0 it replaces threshold");
  }
};

/// Tiles by the softmax of products of mean queries and mean keys, until `threshold` of each row is covered; then the first and the diagonal tile are added.
/// Under `density` those two count. Shapes, dtypes and errors of every method: Problem. Edges  a ragged tile's mean is over its tokens; a row whose scores are
/// not finite reads all it sees.
/// Errors  unsupported (a neighbourhood mask).
/// Source  the plain baseline that block-sparse papers share, e.g. MInference, arXiv 2407.02490, block-sparse heads, with a threshold for its count.
TILEWISE_API Planned mean_pool(const Problem& problem, const MeanPoolOptions& options, Context& context);

}  // namespace tilewise::method
