// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstddef>
#include <optional>
#include <string>

#include "tilewise/select/antidiagonal.h"

// antidiagonal_scores() on a GPU: with cuda/plan.h the method xattention from q and k to a plan without a wait, in a CUDA graph where that is wanted.
namespace tilewise::select::cuda {

/// Why the GPU does not take these; nothing: it does. It takes causal and full masks in token order, every selector, and up to 128 scored groups in a row of the plan.
TILEWISE_API std::optional<std::string> antidiagonal_refusal(const Inputs& inputs, const AntidiagonalParams& params);

/// Bytes of the scores of these inputs, exactly. Only shapes, the mask and params are read. Errors: value (params, as antidiagonal_scores()), unsupported (antidiagonal_refusal()).
TILEWISE_API size_t antidiagonal_bytes(const Inputs& inputs, const AntidiagonalParams& params);

/// Scores with their values in `memory`, antidiagonal_bytes() long, aligned to 4, on the device of inputs.q; the caller keeps it alive. Errors: as antidiagonal_bytes.
TILEWISE_API Scores antidiagonal_in(const Inputs& inputs, const AntidiagonalParams& params, void* memory);

/// Bytes that antidiagonal_into() needs beside the scores, exactly.
TILEWISE_API size_t antidiagonal_workspace_bytes(const Inputs& inputs, const AntidiagonalParams& params);

/// As antidiagonal_scores() into `scores`, from antidiagonal_in() with the same params, on context.stream. `workspace`: antidiagonal_workspace_bytes(), aligned to 4.
/// takes_largest: a row's score of a tile is that of its largest scored group, not the sum over them. With stride 1 groups are queries and the scores exact: what oracle asks for.
/// Dtypes  bf16 and f16 on tensor cores, f32 on the f32 units (about ten times slower); products are exact, sums f32 in an order of their own: equal to the host's up to
///         rounding, the same bits each time.
/// Errors  value (params, scale, softcap, scores that are not from antidiagonal_in()); unsupported; shape, dtype, device; cuda.
TILEWISE_API void antidiagonal_into(const Inputs& inputs, const AntidiagonalParams& params, const Scores& scores, void* workspace,
                                    const Context& context, bool takes_largest = false);

}  // namespace tilewise::select::cuda
