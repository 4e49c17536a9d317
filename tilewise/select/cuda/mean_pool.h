// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstddef>
#include <optional>
#include <string>

#include "tilewise/select/mean_pool.h"

// mean_pool_scores() on a GPU: with cuda/plan.h the method mean_pool from q and k to a plan without a wait, in a CUDA graph where that is wanted.
namespace tilewise::select::cuda {

/// Why the GPU does not take these; nothing: it does. It takes bands and token order.
TILEWISE_API std::optional<std::string> mean_pool_refusal(const Inputs& inputs);

/// Bytes of the scores of these inputs, exactly. Only shapes and the mask are read. Errors: value (tile), unsupported (mean_pool_refusal()).
TILEWISE_API size_t mean_pool_bytes(const Inputs& inputs, int tile);

/// Scores with their values in `memory`, mean_pool_bytes() long, aligned to 4, on the device of inputs.q; the caller keeps it alive. Errors: as mean_pool_bytes.
TILEWISE_API Scores mean_pool_in(const Inputs& inputs, int tile, void* memory);

/// Bytes that mean_pool_into() needs beside the scores, exactly.
TILEWISE_API size_t mean_pool_workspace_bytes(const Inputs& inputs, int tile);

/// As mean_pool_scores() into `scores`, from mean_pool_in(), on context.stream. `workspace`: mean_pool_workspace_bytes(), aligned to 4.
/// Dtypes  f32, bf16, f16 in; f32 arithmetic, in an order of its own: equal to the host's up to rounding, the same bits each time.
/// Errors  value (tile, scale, softcap, scores that are not from mean_pool_in()); unsupported; shape, dtype, device; cuda.
TILEWISE_API void mean_pool_into(const Inputs& inputs, const Scores& scores, void* workspace, const Context& context);

}  // namespace tilewise::select::cuda
