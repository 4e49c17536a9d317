// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>

#include "tilewise/attend/check.h"
#include "tilewise/attend/cuda/measure_args.h"

// From a caller's measurement to what the kernels read. Nothing here needs a GPU.
namespace tilewise::attend::cuda {

/// Cells of a second pass that a call keeps at once; one head's at the least.
constexpr size_t kMeasureBytes = size_t{256} << 20;

/// Why no kernel of this folder takes a measurement, whatever the device is.
std::optional<std::string> refusal_of_measure(const MeasureParams& params);

/// Bytes of device memory that a call needs beside its tensors, exactly. `most`: of cells, where a head's are not more.
size_t measure_workspace(const MeasureParams& params, const Sizes& sizes, size_t most = kMeasureBytes);
MeasureWork measure_work(const MeasureParams& params, const Sizes& sizes, void* workspace, size_t most = kMeasureBytes);

/// The work's kernels in order: clear(args, blocks), pool(args, blocks), measure(args, blocks), reduce(args, blocks).
template <class Clear, class Pool, class Measure, class Reduce>
void for_each_launch(const MeasureWork& work, const Clear& clear, const Pool& pool, const Measure& measure, const Reduce& reduce) {
  const auto blocks = [](int64_t cells) { return (cells + kCellThreads - 1) / kCellThreads; };
  if (work.pool_blocks > 0) pool(work.pool, work.pool_blocks);
  const auto& sizes = work.clear.sizes;
  clear(work.clear, blocks(sizes[0] * sizes[1] * sizes[2] * sizes[3]));
  if (work.workspace == nullptr) {
    measure(work.args, work.heads * work.blocks_of_head);
    return;
  }
  for (int64_t first = 0; first < work.heads; first += work.heads_at_once) {
    const int64_t heads = work.heads - first < work.heads_at_once ? work.heads - first : work.heads_at_once;
    MeasureArgs args = work.args;
    ReduceArgs reduced = work.reduce;
    args.first_block = first * work.blocks_of_head;
    for (int64_t& offset : args.cells.offset) offset = -first * work.cells_of_head;
    reduced.first_head = first;
    reduced.heads = heads;
    ClearArgs own;
    own.cells = args.cells;
    own.cells.offset[0] = own.cells.offset[1] = own.cells.offset[2] = 0;
    own.sizes[0] = 1, own.sizes[1] = heads, own.sizes[2] = reduced.rows, own.sizes[3] = reduced.width;
    clear(own, blocks(heads * work.cells_of_head));
    measure(args, heads * work.blocks_of_head);
    reduce(reduced, blocks(heads * ((reduced.rows + reduced.group - 1) / reduced.group) * reduced.width));
  }
}

}  // namespace tilewise::attend::cuda
