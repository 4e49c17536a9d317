// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "tilewise/plan/cuda/lists_space.h"
#include "tilewise/select/cuda/mask_plan_kernel.h"
#include "tilewise/select/cuda/plan_args.h"

// What plan_of_mask() on a GPU is launched with: no CUDA in it, so that the CPU's tests launch the same.
namespace tilewise::select::cuda {

/// Why the GPU does not write the plan of a mask.
inline std::optional<std::string> refusal_of(const Mask& mask, const RowGrid& grid, int heads) {
  if (grid.has_orders()) return "an order is not built; plan on the host, or for tensors that are reordered";
  if (mask.bands.empty()) return "spans and neighbourhoods are not built; plan on the host";
  if (mask.bands.size() > 16) return "the mask has more than 16 classes of heads";
  if (heads > 256) return "more than 256 heads are not built";
  if (!lead_of(grid)) return "rows of any edges are not built; take rows of one tile, or on the key tiles";
  return std::nullopt;
}

inline plan::cuda::ListsSpace mask_plan_space(const Mask& read, const RowGrid& grid, int heads) {
  plan::cuda::ListsSpace space;
  space.tile = grid.tile;
  space.groups = plan::differs_by_head(read) ? heads : 1;
  space.rows = grid.rows();
  space.whole = space.groups * space.rows * kMostWhole;
  space.masked = space.groups * space.rows * kMostMasked;
  space.has_edge = !grid.edge.empty();
  return space;
}

/// `lists` are by_query of a plan with that space.
inline MaskPlanArgs mask_plan_args(const Mask& read, const RowGrid& grid, const Lists& lists) {
  MaskPlanArgs args{};
  std::copy(read.bands.begin(), read.bands.end(), args.bands);
  std::copy(read.head_class.begin(), read.head_class.end(), args.head_class);
  args.groups = static_cast<int>(lists.whole.begin.dim(1));
  args.tile = grid.tile;
  args.rows = grid.rows();
  args.items = args.groups * args.rows;
  args.seqlen_q = grid.seqlen_q;
  args.seqlen_k = grid.seqlen_k;
  args.lead = *lead_of(grid);
  for (const auto& [list, i] : {std::pair{&lists.whole, 0}, std::pair{&lists.masked, 1}}) {
    args.begin[i] = static_cast<int64_t*>(list->begin.raw());
    args.count[i] = static_cast<int32_t*>(list->count.raw());
    args.start[i] = static_cast<int32_t*>(list->start.raw());
    args.stop[i] = static_cast<int32_t*>(list->stop.raw());
  }
  if (lists.edge.has_value()) args.edge = static_cast<int32_t*>(lists.edge.raw());
  args.status = static_cast<int32_t*>(lists.status.raw());
  return args;
}

}  // namespace tilewise::select::cuda
