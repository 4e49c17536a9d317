// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>

#include "tilewise/machine/cuda/block.h"
#include "tilewise/plan/intervals.h"

// The plan that reads all that a mask of bands lets its rows see, written on a GPU: a thread for each row. A row has two whole and four masked runs at most, so each has its
// place beforehand.
namespace tilewise::select::cuda {

struct MaskPlanArgs {
  Mask::Band bands[16];
  uint8_t head_class[256];
  int groups, tile;
  int64_t rows, items, seqlen_q, seqlen_k, lead;
  // Written: [items], [items, 2] and [items, 4].
  int64_t* begin[2];
  int32_t *count[2], *start[2], *stop[2];
  int32_t *edge, *status;  // [rows + 1] or null, [2]
};

constexpr int kMaskPlanThreads = 128, kMostWhole = 2, kMostMasked = 4;

inline long mask_plan_blocks(int64_t items) { return static_cast<long>((items + kMaskPlanThreads - 1) / kMaskPlanThreads); }

/// First slot of a row, where the first row may be short.
TILEWISE_HOST_DEVICE inline int64_t first_slot(int64_t row, int tile, int64_t lead) {
  return lead == 0 || row == 0 ? row * tile : lead + (row - 1) * tile;
}

template <class Block>
TILEWISE_DEVICE void mask_plan_kernel(Block& block, const MaskPlanArgs& args) {
  block.each([&](int thread) {
    if (block.index() == 0) {
      if (thread < 2) args.status[thread] = 0;
      for (int64_t row = thread; args.edge != nullptr && row <= args.rows; row += kMaskPlanThreads) {
        const int64_t first = first_slot(row, args.tile, args.lead);
        args.edge[row] = static_cast<int32_t>(first < args.seqlen_q ? first : args.seqlen_q);
      }
    }
    const int64_t item = block.index() * kMaskPlanThreads + thread;
    if (item >= args.items) return;
    const int64_t row = item % args.rows, offset = args.seqlen_k - args.seqlen_q, next = first_slot(row + 1, args.tile, args.lead);
    const plan::BandSight sight =
        plan::band_sight(args.bands[args.head_class[item / args.rows % args.groups]], first_slot(row, args.tile, args.lead) + offset,
                         (next < args.seqlen_q ? next : args.seqlen_q) - 1 + offset, args.seqlen_k, args.tile);
    args.begin[0][item] = item * kMostWhole;
    args.begin[1][item] = item * kMostMasked;
    args.count[0][item] = sight.whole.size();
    args.count[1][item] = sight.masked.size();
    int64_t run = item * kMostWhole;
    for (const plan::Interval& part : sight.whole) {
      args.start[0][run] = static_cast<int32_t>(part.first);
      args.stop[0][run++] = static_cast<int32_t>(part.last);
    }
    run = item * kMostMasked;
    for (const plan::Interval& part : sight.masked) {
      args.start[1][run] = static_cast<int32_t>(part.first);
      args.stop[1][run++] = static_cast<int32_t>(part.last);
    }
  });
}

}  // namespace tilewise::select::cuda
