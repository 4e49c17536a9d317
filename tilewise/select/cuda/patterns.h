// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "tilewise/base/context.h"
#include "tilewise/select/inputs.h"

// The patterns of MInference on a GPU, a pattern a head, from q and k to a plan: the same composition as methods/minference.h makes on the host.
namespace tilewise::select::cuda {

struct PatternHead {
  enum class Kind : uint8_t {
    lines,  // vertical and slash lines with the largest sums over the last queries
    band,   // all that the head's band sees
    tiles,  // the tiles with the largest products of mean queries and mean keys, and those of the row's own tokens
  };
  Kind kind = Kind::lines;
  int vertical = 0, slash = 0;  // lines kept, forced ones among them
  int64_t tiles = 0;            // tiles kept
};

struct PatternParams {
  std::vector<PatternHead> heads = {};  // [Hq]
  Mask read = {};                       // bands: causal where a head looks for its keys
  int tile = 64;
  bool aligned = false;                 // lines: whole tiles of keys where a line crosses them
  int last = 64, first = 30, nearest = 100;  // queries that lines are estimated from; keys and distances that are lines before all others
};

/// Why the GPU does not take these; nothing: it does. It takes token order, up to 786,432 keys with lines, 8,192 tiles of keys in a row and 64 heads with numbers of their own.
TILEWISE_API std::optional<std::string> pattern_refusal(const Inputs& inputs, const PatternParams& params);

/// Bytes of the plan's lists, with room that no inputs outgrow, exactly. Only shapes and params are read. Errors: value (heads not one per head), unsupported (pattern_refusal()).
TILEWISE_API size_t pattern_plan_bytes(const Inputs& inputs, const PatternParams& params);

/// The plan with its lists in `memory`, pattern_plan_bytes() long, aligned to 8, on the device of inputs.q; the caller keeps it alive. Nothing is written until pattern_plan_into().
/// Errors: as pattern_plan_bytes.
TILEWISE_API Plan pattern_plan_in(const Inputs& inputs, const PatternParams& params, void* memory);

/// Bytes that pattern_plan_into() needs beside the plan, exactly.
TILEWISE_API size_t pattern_workspace_bytes(const Inputs& inputs, const PatternParams& params);

/// Writes `plan`, from pattern_plan_in() with the same inputs and params, on context.stream. It allocates nothing and waits for nothing. `workspace`: pattern_workspace_bytes(),
/// aligned to 8. Sums and products are f32 in an order of their own, the same bits each time; from equal sums and products the runs are the host's.
/// Errors  value; unsupported; shape, dtype, device; cuda.
TILEWISE_API void pattern_plan_into(const Inputs& inputs, const PatternParams& params, const Plan& plan, void* workspace, const Context& context);

/// All of it, in memory of context.memory. Nothing waits. Errors: as these; memory.
TILEWISE_API Plan pattern_plan(const Inputs& inputs, const PatternParams& params, const Context& context);

}  // namespace tilewise::select::cuda
