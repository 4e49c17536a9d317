// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstddef>
#include <cstdint>

#include "tilewise/base/context.h"
#include "tilewise/plan/plan.h"

// complete() on a GPU, in three steps, so that a CUDA graph may hold the last: room for the lists, a plan whose missing direction lies in that room,
// and the work, which allocates nothing and waits for nothing.
namespace tilewise::plan::cuda {

/// Room for the direction to be made. What the plan needs is known on the device alone: too little is reported there, and nothing is written past it.
struct CompleteRoom {
  int64_t whole = 0, masked = 0;  // runs
  bool has_rows = true;  // masked runs have `rows`: wherever only some slots of a row may read a run
  int tile = 0;  // 0: as the direction at hand
};

/// Room that no lists of the plan's shape outgrow: for each row to be made and each row at hand one masked run (one for every slot where the lists at hand have
/// `rows` or an order has padding), for every other one a whole run. Errors: as complete_bytes.
TILEWISE_API CompleteRoom most_complete_room(const Plan& plan, int tile = 0);

/// Bytes of the lists of the direction that `plan` lacks, exactly. The plan may lie on a device: only its shapes are read.
/// Errors: value (null plan, a plan with both directions, tile outside 16 to 256, negative room), unsupported (more than 7 pools).
TILEWISE_API size_t complete_bytes(const Plan& plan, const CompleteRoom& room);

/// The plan with the missing direction in `memory`, complete_bytes() long, aligned to 8, on the plan's device. It shares the arrays of `plan`; the caller
/// keeps `memory` alive. Nothing is read or written until complete_into(). Errors: as complete_bytes.
TILEWISE_API Plan complete_in(const Plan& plan, const CompleteRoom& room, void* memory);

/// Bytes that complete_into() needs beside the plan, exactly.
TILEWISE_API size_t complete_workspace_bytes();

/// Writes the direction of `plan` (from complete_in()) that was not planned, transposed from the other, on context.stream: the runs of every row are those of
/// tilewise::complete(), with `stop` always there and each row's list its own. `workspace`: complete_workspace_bytes(), aligned to 8.
/// status[0] of the lists made counts the rows that the room had no place for: these and all rows behind the first of them are empty, and status[1] is
/// kOverCapacity; kNeedsRows where a run that only some slots read was met without room for `rows`. The plan may be used where status[1] is 0.
/// The mask rule (every untested pair satisfies the plan's mask) is trusted here: validate a plan on the host where it comes from outside.
/// Errors  value (null plan, a plan that is not from complete_in()); device; shape (an array that is not contiguous); cuda.
TILEWISE_API void complete_into(const Plan& plan, void* workspace, const Context& context);

}  // namespace tilewise::plan::cuda
