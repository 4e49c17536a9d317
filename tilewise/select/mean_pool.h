// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "tilewise/select/scores.h"

namespace tilewise::select {

/// P[m, j] = softmax over the tiles that row m sees of softcap(softmax_scale * mean(q of row m) . mean(k of tile j)).
/// Rows are cut at multiples of `tile` in tokens where the mask is causal. The diagonal tile is one of those seen, with all its keys in the mean.
/// Dtypes  f32, bf16, f16 in; f32 arithmetic.
/// Errors  value (tile), memory.
TILEWISE_API Scores mean_pool_scores(const Inputs& inputs, int tile, Context& context);

/// The products alone, mean(q of row m) . mean(k of tile j), unscaled, for every pair of tiles: they rank as mean_pool_scores does, without its underflow.
/// Errors: as there.
TILEWISE_API Scores mean_pool_products(const Inputs& inputs, int tile, Context& context);

/// The rows that scores of this mask are made on: on the key tiles where it is causal, else from slot 0.
TILEWISE_API RowGrid score_rows(const Inputs& inputs, int tile);

}  // namespace tilewise::select
