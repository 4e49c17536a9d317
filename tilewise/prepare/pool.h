// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <span>

#include "tilewise/base/context.h"
#include "tilewise/base/tensor.h"
#include "tilewise/plan/plan.h"

namespace tilewise::prepare {

/// out[b, h, t] = mean of the tokens [edge[t], edge[t + 1]) of `tokens` [B, H, S, D]; an empty `edge` cuts at multiples of `tile`, the last may be ragged.
/// Dtypes  f32, bf16 or f16 in, f32 out [B, H, T, D]. Sums are f32 in ascending order, so the bits do not depend on threads.
/// Edges   a tile without a token is 0.
/// Errors  shape (rank, a last axis that is not contiguous), dtype; value (tile below 1, edges that do not rise from 0 to S); memory.
TILEWISE_API Tensor mean_pool(const TensorView& tokens, int tile, std::span<const int32_t> edge, Context& context);

/// The keys of one pool of a plan: pooled[b, j, t] = mean of the slots [t * group, (t + 1) * group) of `slots` [B, J, slots, D] that are not padding in the
/// order of group j * G / J (an absent order has none). Padding is not read; a group of padding alone gives 0.
/// Dtypes  f32, bf16 or f16, pooled [B, J, ceil(slots / group), D] alike. Sums are f32 in ascending order, rounded once.
/// Errors  shape, dtype; value (group below 1).
TILEWISE_API void pool_slots(const TensorView& slots, int group, const Order& order, const TensorView& pooled, Context& context);

}  // namespace tilewise::prepare
