// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <span>

#include "tilewise/select/scores.h"

namespace tilewise::select {

/// Means of the tokens of each tile, [B, H, T, D] f32: of slots where there is an order, padding left out, H then the fewest heads that those of `tokens` and the
/// groups of the order divide; `edge` is for token order. Errors: as prepare::mean_pool.
Tensor tile_means(const TensorView& tokens, const Order& order, int tile, std::span<const int32_t> edge, Context& context);

/// P[m, j] = softmax over the tiles that row m sees of softcap(softmax_scale * mean(q of row m) . mean(k of tile j)).
/// Rows are cut at multiples of `tile` in tokens where the mask is causal. The diagonal tile is one of those seen, with all its keys in the mean.
/// Under orders rows and tiles are slots; padding is left out of the means.
/// Dtypes  f32, bf16, f16 in; f32 arithmetic.
/// Errors  value (tile), memory.
TILEWISE_API Scores mean_pool_scores(const Inputs& inputs, int tile, Context& context);

/// The products alone, mean(q of row m) . mean(k of tile j), unscaled, for every pair of tiles: they rank as mean_pool_scores does, without its underflow.
/// Errors: as there.
TILEWISE_API Scores mean_pool_products(const Inputs& inputs, int tile, Context& context);

}  // namespace tilewise::select
