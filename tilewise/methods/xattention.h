// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "tilewise/methods/options.h"
#include "tilewise/select/antidiagonal.h"

namespace tilewise::method {

struct XAttentionOptions {
  int tile = 128, stride = 16;
  float threshold = 0.9f, density = 0;
  int top_k = 0;
  select::Selector selector = select::Selector::inverse;
  float norm = 1;
  int kdb = 1;
  bool keep_sink = false, keep_recent = false, compat = false;
  int64_t seed = 0, chunk_size = 0;

  static void each_field(auto& self, auto&& field) {
    field("tile", self.tile, range(16, 256), grid(64, 128), "tokens per tile, both axes; a multiple of stride times kdb");
    field("stride", self.stride, range(1, 64), grid(8, 16), "antidiagonal step, tokens");
    field("threshold", self.threshold, range(0.0f, 1.0f), grid(.8f, .9f, .95f, .97f, .99f), "share of softmax mass that the kept tiles cover");
    field("density", self.density, range(0.0f, 1.0f), no_grid(),
          "share of its visible tiles that a row keeps (top-ratio); above 0 it replaces threshold");
    field("top_k", self.top_k, range(0, 1 << 30), no_grid(), "tiles that a row keeps; above 0 it replaces threshold");
    field("selector", self.selector, one_of("inverse", "slash", "random", "double", "triple"), no_grid(), "which products of two groups are taken");
    field("norm", self.norm, range(0.001f, 1000.0f), no_grid(), "one more divisor of the estimated logits");
    field("kdb", self.kdb, range(1, 256), no_grid(), "score only every kdb-th group of queries");
    field("keep_sink", self.keep_sink, yes_no(), no_grid(), "keep the first key tile (always kept when causal)");
    field("keep_recent", self.keep_recent, yes_no(), no_grid(), "keep the diagonal tile (always kept when causal)");
    field("compat", self.compat, yes_no(), no_grid(), "as released: not causal, keep key tile 0 wherever a tile is left out");
    field("seed", self.seed, range(int64_t{0}, INT64_MAX), no_grid(), "of the random selector");
    field("chunk_size", self.chunk_size, range(int64_t{0}, INT64_MAX), no_grid(), "accepted and without effect: scores are made in one pass");
  }
};

/// Tiles by the softmax mass of logits summed along the antidiagonals of stride x stride blocks, until `threshold` of each row's mass is covered.
/// Causal  the first and the diagonal tile are kept first and counted. Full  nothing is forced but what keep_sink, keep_recent and compat ask for.
/// Shapes, dtypes and errors of every method: Problem. Edges  tokens missing from a ragged group count as zeros; a row whose scores are not finite reads all it sees.
/// Errors  value (tile not a multiple of stride * kdb; both density and top_k); unsupported (a mask neither causal nor full in every head).
/// Source  XAttention, arXiv 2503.16428, Algorithm 1; options from the released code. See docs/systems/xattention.md.
TILEWISE_API Planned xattention(const Problem& problem, const XAttentionOptions& options, Context& context);

}  // namespace tilewise::method
