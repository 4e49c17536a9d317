// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>

#include "tilewise/attend/cuda/forward_args.h"

namespace tilewise::attend::cuda {

/// sum, max and count of cells, f32; null ones are not written. Cell (batch, head, row, column) lies at offset + the strides' sum, in elements.
struct CellsView {
  float* of[3] = {};  // sum, max, count
  int64_t offset[3] = {};
  int64_t stride[3][4] = {};

  TILEWISE_HOST_DEVICE float* at(int what, int64_t batch, int64_t head, int64_t row, int64_t column) const {
    if (of[what] == nullptr) return nullptr;
    const int64_t(&s)[4] = stride[what];
    return of[what] + offset[what] + batch * s[0] + head * s[1] + row * s[2] + column * s[3];
  }
};

/// f32 beside the problem: lse [B, Hq, Sq] or key_bias [B, Hq, Sk].
struct VectorArg {
  const float* data = nullptr;
  int64_t stride_batch = 0, stride_head = 0, stride = 0;
  TILEWISE_HOST_DEVICE float at(int64_t batch, int64_t head, int64_t i) const { return data[batch * stride_batch + head * stride_head + i * stride]; }
};

/// Rows of cells: of the caller's tensors; of the queries' axis; of parts of the plan's rows, whose cells are keys, or offsets.
enum class CellRow : int { place, slot, part_keys, part_offsets };

/// Kernel parameter of the first pass: every query's, or part's, cells.
struct MeasureArgs : PlanArgs {
  TensorArg q, k, pooled_k;
  VectorArg lse, key_bias;
  float softmax_scale = 1, softcap = 0;
  CellRow row = CellRow::place;
  int64_t tile_k = 1;         // slots of k a cell
  int64_t first_block = 0;    // heads come in groups that share a workspace
  CellsView cells;
};

/// Of the second: rows of cells of a workspace [heads, rows, width] are added up, `group` neighbours each.
struct ReduceArgs {
  const float* sum = nullptr;  // [heads, rows, width], as are max and count
  const float* max = nullptr;
  const float* count = nullptr;
  int64_t first_head = 0, heads = 0, rows = 0, width = 0, group = 1;
  int heads_q = 1;
  bool has_one_row = false;    // of what is written: cells are keys or offsets
  bool is_by_token = false;    // a cell is a slot of k, and is written to its token
  AxisView axis_k;
  CellsView out;
};

/// Cells without a pair: sum 0, max -inf, count 0.
struct ClearArgs {
  CellsView cells;
  int64_t sizes[4] = {};
};

/// What one call launches, over groups of heads.
struct MeasureWork {
  MeasureArgs args;
  ReduceArgs reduce;
  ClearArgs clear;                     // of what the caller gets
  PoolArgs pool;
  int64_t pool_blocks = 0;
  int64_t heads = 0, blocks_of_head = 0, heads_at_once = 0;  // heads of all batches
  float* workspace = nullptr;          // null: one pass
  int64_t cells_of_head = 0;           // of the workspace, one quantity
};

constexpr int kCellThreads = 256;

}  // namespace tilewise::attend::cuda
