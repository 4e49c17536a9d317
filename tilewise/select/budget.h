// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <vector>

namespace tilewise::select {

/// How many of the scored tiles a plan keeps. Tiles are added by descending score, ties to the smaller index (row, then key tile), while every limit
/// that is given allows one more; none given: all. A tile whose score is 0 is never added. Each number is empty (no limit), or one for all heads,
/// or one per head.
struct Budget {
  enum class Scope : uint8_t { row, head, layer };     // what a limit counts over; layer: all heads of a batch entry
  enum class Forced : uint8_t { counted, beside };     // forced tiles come first and count to the limits, or are added when the rest is chosen

  std::vector<float> mass = {};      // stop when the kept tiles hold this share of the total score (>= 1: never)
  std::vector<int64_t> count = {};   // stop at this many tiles
  std::vector<float> share = {};     // stop at this share of the visible tiles, rounded to the nearest
  std::vector<float> at_least = {};  // only tiles with at least this score are candidates
  int64_t floor = 0;                 // tiles of a row, forced ones included, that are kept before any limit is asked; per scope group
  int64_t sink = 0;                  // forced: the first key tiles (under an order those that hold the tokens 0, tile, 2 tile, ...)
  int64_t diagonal = 0;              // forced: key tiles that hold the row's own tokens, and diagonal - 1 before them
  Forced forced = Forced::counted;
  Scope scope = Scope::row;
};

}  // namespace tilewise::select
