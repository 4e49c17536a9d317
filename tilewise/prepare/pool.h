// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <span>

#include "tilewise/base/context.h"
#include "tilewise/base/tensor.h"

namespace tilewise::prepare {

/// out[b, h, t] = mean of the tokens [edge[t], edge[t + 1]) of `tokens` [B, H, S, D]; an empty `edge` cuts at multiples of `tile`, the last may be ragged.
/// Dtypes  f32, bf16 or f16 in, f32 out [B, H, T, D]. Sums are f32 in ascending order, so the bits do not depend on threads.
/// Edges   a tile without a token is 0.
/// Errors  shape (rank, a last axis that is not contiguous), dtype; value (tile below 1, edges that do not rise from 0 to S); memory.
TILEWISE_API Tensor mean_pool(const TensorView& tokens, int tile, std::span<const int32_t> edge, Context& context);

}  // namespace tilewise::prepare
