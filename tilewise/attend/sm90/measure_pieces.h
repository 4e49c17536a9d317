// SPDX-License-Identifier: Apache-2.0
// How the maxima of tiles are cut: what host, kernels and tests compute alike.
#pragma once

#include <cstdint>

#include "tilewise/attend/cuda/mask.h"
#include "tilewise/attend/sm90/decode_parts.h"

namespace tilewise::attend::sm90 {

/// Neighbouring keys of a run that lie in one cell of tile_k and in one stage of a kernel.
struct MeasurePiece {
  int key, fill, cell;
};

/// The piece of [key, stop) that begins at `key` < stop; stages hold up to `stage` keys.
TILEWISE_HOST_DEVICE inline MeasurePiece first_piece(int key, int stop, const Divisor& tile_k, int stage) {
  const int cell = tile_k.quotient(key);
  const int64_t past = (int64_t{cell} + 1) * tile_k.divisor;  // of the cell
  int end = stop < past ? stop : static_cast<int>(past);
  if (end - key > stage) end = key + stage;
  return {key, end - key, cell};
}

/// What a band makes of a piece for queries that count as tokens [first, last].
enum class PieceSeen : int { none, all, some };
TILEWISE_HOST_DEVICE constexpr PieceSeen seen_of(const MeasurePiece& piece, const cuda::Band& band, int64_t first, int64_t last) {
  const int64_t newest = int64_t{piece.key} + piece.fill - 1;
  if (piece.key > last + band.right) return PieceSeen::none;
  if (newest > first + band.right) return PieceSeen::some;
  return piece.key >= last - band.left || newest < band.sink ? PieceSeen::all : PieceSeen::some;
}

/// Floats as integers of the same order, and back: NaN (the canonical one) is above all.
TILEWISE_HOST_DEVICE constexpr int32_t ordered_bits(int32_t bits) { return bits ^ ((bits >> 31) & 0x7FFFFFFF); }

}  // namespace tilewise::attend::sm90
