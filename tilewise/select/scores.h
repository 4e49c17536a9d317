// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "tilewise/base/context.h"
#include "tilewise/select/inputs.h"

namespace tilewise::select {

/// How much each tile of keys matters to each row of queries. Tk = ceil(slots of k / tile_k); key tile j is the slots [j * tile_k, (j + 1) * tile_k).
struct Scores {
  Tensor values;  // [B, Hq, Tq, Tk] f32, >= 0, on the host; tiles that a row does not see are not read
  RowGrid grid;  // the rows
  int tile_k = 0;
  Mask mask;  // decides which tiles a row sees
  int64_t batch = 0;
  int heads = 0;

  int64_t key_tiles() const { return (grid.slots_k() + tile_k - 1) / tile_k; }
  float* row(int64_t b, int64_t head, int64_t row_index) const {
    return static_cast<float*>(values.view.raw()) + values.view.offset(b, head, row_index, 0);
  }
};

/// Room for scores of these inputs. Values are not set. Errors: memory.
TILEWISE_API Scores make_scores(const Inputs& inputs, const RowGrid& grid, int tile_k, Context& context);

}  // namespace tilewise::select
