// SPDX-License-Identifier: Apache-2.0
#include "tilewise/select/forced.h"

#include <algorithm>

namespace tilewise::select {

void mark_forced_tiles(const RowGrid& grid, int64_t b, int head, int64_t row, int tile_k, int64_t sink, int64_t diagonal,
                       std::vector<uint8_t>& is_forced) {
  const int64_t tile = tile_k, tiles = (grid.slots_k() + tile - 1) / tile;
  is_forced.assign(static_cast<size_t>(tiles), 0);
  if (!grid.has_orders()) {
    const auto force = [&](int64_t first, int64_t last) {
      for (int64_t j = std::max<int64_t>(first, 0); j <= std::min(last, tiles - 1); ++j) is_forced[static_cast<size_t>(j)] = 1;
    };
    force(0, sink - 1);
    const int64_t first = std::max<int64_t>(0, grid.first(row) + grid.offset()), last = grid.last(row) - 1 + grid.offset();
    if (diagonal > 0 && last >= 0) force(first / tile - (diagonal - 1), last / tile);
    return;
  }
  if (sink == 0 && diagonal == 0) return;
  const std::vector<int64_t> own = tokens_of_row(grid, b, head, row);
  const plan::SlotTokens keys = grid.keys(b, head);
  for (int64_t slot = 0; slot < keys.count; ++slot) {
    const int64_t k = keys[slot];
    if (k < 0) continue;
    const auto next = std::lower_bound(own.begin(), own.end(), k);  // the nearest of the row's tokens that is not before the key
    const bool is_near = diagonal > 0 && next != own.end() && *next - k <= (diagonal - 1) * tile;
    if (is_near || (k % tile == 0 && k / tile < sink)) is_forced[static_cast<size_t>(slot / tile)] = 1;
  }
}

}  // namespace tilewise::select
