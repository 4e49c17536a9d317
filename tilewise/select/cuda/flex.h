// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>

#include "tilewise/base/context.h"
#include "tilewise/select/inputs.h"

// flexprefill's choice on a GPU, from q and k to a plan: the same composition as methods/flexprefill.h makes on the host.
namespace tilewise::select::cuda {

struct FlexParams {
  float gamma = 0.9f, tau = 0.1f;
  int64_t min_budget = 1, max_budget = 0;
  int tile = 128;
};

/// Why the GPU does not take these; nothing: it does. It takes token order, up to 8,192 tiles of keys and 256 heads.
TILEWISE_API std::optional<std::string> flex_refusal(const Inputs& inputs, const FlexParams& params);

/// Bytes of the plan's lists, with room that no inputs outgrow, exactly. Only shapes and params are read. Errors: shape, unsupported (flex_refusal()).
TILEWISE_API size_t flex_plan_bytes(const Inputs& inputs, const FlexParams& params);

/// The plan with its lists in `memory`, flex_plan_bytes() long, aligned to 8, on the device of inputs.q; the caller keeps it alive. Nothing is written until flex_plan_into().
/// Errors: as flex_plan_bytes.
TILEWISE_API Plan flex_plan_in(const Inputs& inputs, const FlexParams& params, void* memory);

/// Bytes that flex_plan_into() needs beside the plan, exactly.
TILEWISE_API size_t flex_workspace_bytes(const Inputs& inputs, const FlexParams& params);

/// Writes `plan`, from flex_plan_in() with the same inputs and params, on context.stream. It allocates nothing and waits for nothing. `workspace`: flex_workspace_bytes(),
/// aligned to 8. Shares are summed in whole numbers of 2^-50, so that no order of threads shows: the host's plan but where a sum lies within rounding of a cut.
/// Errors  value; unsupported; shape, dtype, device; cuda.
TILEWISE_API void flex_plan_into(const Inputs& inputs, const FlexParams& params, const Plan& plan, void* workspace, const Context& context);

/// All of it, in memory of context.memory. Nothing waits. Errors: as these; memory.
TILEWISE_API Plan flex_plan(const Inputs& inputs, const FlexParams& params, const Context& context);

}  // namespace tilewise::select::cuda
