// SPDX-License-Identifier: Apache-2.0
#include "tilewise/select/scores.h"

namespace tilewise::select {

Scores make_scores(const Inputs& inputs, const RowGrid& grid, int tile_k, Context& context) {
  Scores scores{{}, grid, tile_k, inputs.mask, inputs.batch(), inputs.heads_q()};
  scores.values = Tensor(context.memory, Dtype::f32, {inputs.batch(), inputs.heads_q(), grid.rows(), scores.key_tiles()});
  return scores;
}

}  // namespace tilewise::select
