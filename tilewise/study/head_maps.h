// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <vector>

#include "tilewise/methods/method.h"
#include "tilewise/study/comparison.h"

namespace tilewise::study {

/// Cells of a map so that the maps of `num_maps` heads (over all rows) stay within a few megabytes; none where they cannot.
std::optional<MapShape> choose_map_shape(const InputFigures& input, int64_t num_maps);

/// Where the attention of one row's heads lies and what its plans leave out, from attend's measure.
class HeadMaps {
 public:
  HeadMaps(const MapShape& shape, const InputFigures& input);

  /// One layer, once. `dense_lse` [B, Hq, Sq] is that of `dense`, the dense plan of the problem. A plan whose slots are not tokens is left out, and
  /// so is a call of other sizes than the input's (a part of a batch); write() says so. Memory: 4 * B * Hq * Sq * 256 bytes over the tile of the plan.
  void add(const Problem& problem, const Plan& dense, const Plan& plan, const TensorView& dense_lse, Context& context);

  /// Fills the heads' maps and the worst tiles. row.heads has been filled.
  void write(MethodFigures& row) const;

 private:
  /// Sums over tiles of tokens, [Hq, tiles_q, tiles_k], over the batch.
  struct Sums {
    std::vector<float> mass, count;
  };
  Sums measure_tiles(const Problem& problem, const Plan& plan, const TensorView& lse, Context& context) const;
  HeadMap map_of(const Sums& dense, const Sums& sparse, int64_t head) const;
  void find_worst(int layer, const Sums& dense, const Sums& sparse);

  MapShape shape_;
  int64_t seqlen_q_, seqlen_k_, batch_, heads_;
  int64_t tile_q_, tile_k_, tiles_q_, tiles_k_;  // finer than the cells: worst tiles are found among these
  std::vector<HeadMap> maps_;  // [layer, head]
  std::vector<WorstTile> worst_;  // falling
  bool has_left_out_ = false;
};

}  // namespace tilewise::study
