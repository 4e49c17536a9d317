// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstddef>

#include "tilewise/select/plan.h"

// plan_of_mask() on a GPU, in three steps like cuda/plan.h. It depends on lengths alone.
namespace tilewise::select::cuda {

/// Bytes of the lists of the plan that reads all of `read`, exactly. Errors: unsupported (spans, neighbourhoods, orders, rows of any edges).
TILEWISE_API size_t mask_plan_bytes(const Mask& read, const RowGrid& grid, int heads);

/// The plan with its lists in `memory`, mask_plan_bytes() long, aligned to 8, on `device`; the caller keeps it alive. Nothing is written until mask_plan_into().
/// Density is held against `model`. Errors: as mask_plan_bytes.
TILEWISE_API Plan mask_plan_in(const Mask& read, const Mask& model, const RowGrid& grid, int64_t batch, int heads, void* memory, Device device);

/// Writes the lists of `plan`, from mask_plan_in() with the same mask and rows, on context.stream: the runs of plan_of_mask(). No workspace.
/// Errors: value (a plan that is not from mask_plan_in()), unsupported, device, cuda.
TILEWISE_API void mask_plan_into(const Mask& read, const RowGrid& grid, const Plan& plan, const Context& context);

/// All three, in memory of context.memory. Nothing waits. Errors: as these; memory.
TILEWISE_API Plan mask_plan(const Mask& read, const Mask& model, const RowGrid& grid, int64_t batch, int heads, const Context& context);

}  // namespace tilewise::select::cuda
