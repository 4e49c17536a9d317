// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <utility>

#include "tilewise/select/cuda/lines_kernel.h"
#include "tilewise/select/cuda/plan_args.h"

// What lines on a GPU are launched with: no CUDA in it, so that the CPU's tests launch the same.
namespace tilewise::select::cuda {

/// Keys that the lines of a row have room for in shared memory.
constexpr int64_t kMostLineKeys = 786432;

inline int64_t line_words(int64_t seqlen_k) { return (seqlen_k + 31) / 32; }

/// Rows of `lists`, which have picked runs, for the heads with is_mine.
inline LineRowsArgs line_rows_args(const RowGrid& grid, int heads, const uint32_t* vertical, const uint32_t* slash, const Lists& lists,
                                   const int64_t* cut) {
  LineRowsArgs args{};
  args.bits[0] = vertical;
  args.bits[1] = slash;
  args.words = line_words(grid.seqlen_k);
  args.seqlen_q = grid.seqlen_q;
  args.seqlen_k = grid.seqlen_k;
  args.rows = grid.rows();
  args.lead = *lead_of(grid);
  args.heads = heads;
  args.tile = grid.tile;
  for (const auto& [list, i] : {std::pair{&lists.whole, 0}, std::pair{&lists.masked, 1}, std::pair{&lists.picked, 2}}) {
    args.count[i] = static_cast<int32_t*>(list->count.raw());
    args.begin[i] = static_cast<const int64_t*>(list->begin.raw());
    args.start[i] = static_cast<int32_t*>(list->start.raw());
    if (i < 2) args.stop[i] = static_cast<int32_t*>(list->stop.raw());
  }
  args.cut = cut;
  return args;
}

}  // namespace tilewise::select::cuda
