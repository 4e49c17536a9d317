// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <vector>

#include "tilewise/select/inputs.h"

namespace tilewise::select {

/// Key tiles that a row reads before any score is asked, by the tokens in them, whatever slots they lie in. is_forced [Tk] is written.
/// sink      the tiles that hold the tokens 0, tile_k, 2 tile_k, ...: so many of them.
/// diagonal  the tiles that hold a token of the row's own, or one less than (diagonal - 1) * tile_k before such a one, in whole tiles where slots are tokens.
void mark_forced_tiles(const RowGrid& grid, int64_t b, int head, int64_t row, int tile_k, int64_t sink, int64_t diagonal,
                       std::vector<uint8_t>& is_forced);

}  // namespace tilewise::select
