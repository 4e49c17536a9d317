// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <vector>

#include "tilewise/methods/options.h"
#include "tilewise/select/lines.h"

namespace tilewise::method {

struct MInferenceOptions {
  enum class Pattern : uint8_t { vertical_slash, a_shape, block_sparse };
  /// One head's pattern and its two sizes: vertical and slash lines; first and last keys; tiles a row (the second is not read).
  struct Head {
    Pattern pattern = Pattern::vertical_slash;
    int sizes[2] = {1000, 6096};
    bool operator==(const Head&) const = default;
  };

  Pattern pattern = Pattern::vertical_slash;
  int vertical = 1000, slash = 6096;
  int init = 1024, local = 4096;
  int blocks = 100;
  int tile = 64;
  bool aligned = false;
  int last = 64, first = 30, nearest = 100;
  float ratio = 1;
  std::vector<Head> heads = {};  // [Hq]: a pattern for each head, in place of the options above; by name this is what a recipe says
  std::vector<select::Lines> lines =
      {};  // [Hq] or [B, Hq]: lines of an earlier call (minference_lines), in place of an estimate; those from Sk on are left out

  static void each_field(auto& self, auto&& field) {
    field("pattern", self.pattern, one_of("vertical_slash", "a_shape", "block_sparse"), no_grid(), "what every head reads");
    field("vertical", self.vertical, range(0, 1 << 30), grid(100, 500), "vertical_slash: keys that every later query reads; at least 30");
    field("slash", self.slash, range(0, 1 << 30), grid(700, 1500), "vertical_slash: distances at which every query reads; at least 50");
    field("init", self.init, range(0, 1 << 30), no_grid(), "a_shape: first tokens that every query reads");
    field("local", self.local, range(1, 1 << 30), no_grid(), "a_shape: last tokens that a query reads, itself among them");
    field("blocks", self.blocks, range(0, 1 << 30), no_grid(), "block_sparse: tiles of keys that a row reads");
    field("tile", self.tile, range(16, 256), no_grid(), "query tokens per row of the plan, and keys that a slash line is widened to");
    field("aligned", self.aligned, yes_no(), no_grid(), "vertical_slash: read whole tiles of keys where a line crosses them");
    field("last", self.last, range(1, 4096), no_grid(), "vertical_slash: last queries that the lines are estimated from");
    field("first", self.first, range(0, 1 << 30), no_grid(), "vertical_slash: first keys that are lines before all others");
    field("nearest", self.nearest, range(1, 1 << 30), no_grid(), "vertical_slash: smallest distances that are lines before all others");
    field("ratio", self.ratio, range(0.001f, 1000.0f), no_grid(), "multiplies the sizes of every pattern");
  }
};

/// Three kinds of heads. vertical_slash  keys and distances with the largest probability among the last queries, for all rows alike; runs of keys that
/// follow each distance exactly, unaligned, and single keys where no run holds them (or the whole tiles that lines cross). a_shape  first and last keys,
/// exact to the token. block_sparse  per row the tiles of the largest products of mean queries and mean keys, and the diagonal tile.
/// q [B, Hq, Sq, D], k [B, Hkv, Sk, D], both f32, bf16 or f16; estimates are f32. Lists are per batch entry and head.
/// Edges   fewer queries than `last`: all of them; fewer keys or distances than a size: all. Sq other than Sk counts from the bottom right: a chunk's own last
///         queries are the estimate, or `lines` of an earlier chunk. A head whose estimate is not finite reads everything.
/// Errors  value (an option outside its range, `heads` or `lines` not one per head, `lines` not ascending, more than 15 sizes of a_shape); unsupported (a mask
///         that is not plainly causal, what attend refuses); shape, dtype, device (q and k that do not fit); memory, cancelled.
/// Source  MInference, arXiv 2407.02490, and its released code. See docs/systems/minference.md.
TILEWISE_API Planned minference(const Problem& problem, const MInferenceOptions& options, Context& context);

/// The lines that minference() would choose for each head, [B, Hq], empty for heads of the other patterns: give them as `lines` to later calls, which then
/// cost no estimate (static_pattern of the released code: the first prompt's lines for all; or one chunk's for the next). Errors: as there.
TILEWISE_API std::vector<select::Lines> minference_lines(const Problem& problem, const MInferenceOptions& options, Context& context);

}  // namespace tilewise::method
