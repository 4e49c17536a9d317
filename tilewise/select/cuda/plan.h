// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>

#include "tilewise/select/plan.h"

// select::plan() on a GPU, in three steps, so that a CUDA graph may hold the last: room for the lists, a plan that lies in that room, and the work, which
// allocates nothing and waits for nothing. The same handle then stands for the plan of each new set of scores.
namespace tilewise::select::cuda {

/// Runs that there is room for.
struct PlanRoom {
  int64_t whole = 0, masked = 0;
};

/// Why the GPU does not take these; nothing: it does. It takes bands (a class for each head), rows of `tile` slots or cut on key tiles, budgets for each row, up to
/// 8,192 tiles of keys and, where heads have numbers of their own, up to 64 heads.
TILEWISE_API std::optional<std::string> refusal(const Scores& scores, const Budget& budget);

/// Room that no scores outgrow.
/// Errors: unsupported (refusal()).
TILEWISE_API PlanRoom most_runs(const Scores& scores, const Budget& budget);

/// Bytes of the plan's lists, exactly. Errors: value (negative room; masked room for fewer runs than there are rows of heads), unsupported.
TILEWISE_API size_t plan_bytes(const Scores& scores, const PlanRoom& room);

/// The plan of the scores' mask and rows with its lists in `memory`, plan_bytes() long, aligned to 8, on `device`; the caller keeps it alive. Nothing is
/// read or written until plan_into(). scores.values may be absent. Errors: as plan_bytes.
TILEWISE_API Plan plan_in(const Scores& scores, const PlanRoom& room, void* memory, Device device);

/// Bytes that plan_into() needs beside the plan, exactly.
TILEWISE_API size_t plan_workspace_bytes(const Scores& scores);

/// Writes the plan of `scores` (values on the GPU, tiles that a row does not see are not read) and `budget` into `plan`, from plan_in(), on context.stream: the
/// runs of every row are those of select::plan() with the same scores. `workspace`: plan_workspace_bytes(), aligned to 8.
/// Where the room ends, a row becomes one masked run from its first key to its last: more is read, never less. status[0] counts these rows.
/// Errors  value (a number outside its range, a plan that is not from plan_in()); unsupported (refusal()); shape, device; cuda.
TILEWISE_API void plan_into(const Scores& scores, const Budget& budget, const Plan& plan, void* workspace, const Context& context);

}  // namespace tilewise::select::cuda
