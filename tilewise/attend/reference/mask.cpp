// SPDX-License-Identifier: Apache-2.0
#include "tilewise/attend/reference/mask.h"

#include <algorithm>
#include <vector>

namespace tilewise::attend::reference {
namespace {

struct Interval {
  int64_t start, stop;
  bool holds(int64_t x) const { return start <= x && x < stop; }
};

// The keys that cell `cell` of a plain axis (no dilation) of `length` cells sees. GNA, arXiv 2504.16922: a stride group shares the window of its
// leader.
Interval window_of(const Mask::Axis& axis, int64_t length, int64_t cell) {
  const int64_t group_first = cell - cell % axis.stride;
  if (axis.is_causal) {
    const int64_t leader = std::min<int64_t>(group_first + axis.stride - 1, length - 1);
    return {std::max<int64_t>(0, leader - axis.window + 1), cell + 1};
  }
  const int64_t leader = std::min<int64_t>(group_first + axis.stride / 2, length - 1);
  // Even windows lean left; at the far border the window is moved back whole.
  const int64_t start = std::clamp<int64_t>(leader - axis.window / 2, 0, length - axis.window);
  return {start, start + axis.window};
}

bool axis_sees(const Mask::Axis& axis, int64_t query, int64_t key) {
  const int64_t group = query % axis.dilation;
  if (key % axis.dilation != group) return false;
  const int64_t length = (axis.length - group + axis.dilation - 1) / axis.dilation;  // cells of this dilation group
  return window_of(axis, length, query / axis.dilation).holds(key / axis.dilation);
}

bool grid_sees(const std::vector<Mask::Axis>& axes, int64_t query, int64_t key) {
  int64_t cells = 1;
  for (const Mask::Axis& axis : axes) cells *= axis.length;
  // What stands before and after the grid (text) sees all and is seen by all.
  if (!Interval{0, cells}.holds(query) || !Interval{0, cells}.holds(key)) return true;
  for (const Mask::Axis& axis : axes) {
    cells /= axis.length;
    if (!axis_sees(axis, query / cells, key / cells)) return false;
    query %= cells;
    key %= cells;
  }
  return true;
}

bool band_sees(const Mask::Band& band, int64_t query, int64_t key) {
  const bool is_too_far_right = band.right != Mask::kAll && key - query > band.right;
  const bool is_too_far_left = band.left != Mask::kAll && query - key > band.left;
  return !is_too_far_right && (key < band.sink || !is_too_far_left);
}

}  // namespace

bool mask_sees(const PlanData& plan, int64_t b, int head, int64_t query, int64_t key) {
  const Mask& mask = plan.mask;
  const size_t of_head = mask.head_class.empty() ? 0 : mask.head_class[static_cast<size_t>(head)];
  const int64_t counted = query + plan.seqlen_k - plan.seqlen_q;  // the last query counts as the last key's token
  if (!mask.bands.empty()) return band_sees(mask.bands[of_head], counted, key);
  if (!mask.grids.empty()) return grid_sees(mask.grids[of_head], counted - mask.first, key - mask.first);
  const int64_t entry = mask.spans.dim(1) == 1 ? 0 : b;
  const auto span = [&](int64_t i) { return static_cast<int64_t>(mask.spans.at<int32_t>(static_cast<int64_t>(of_head), entry, query, i)); };
  return Interval{span(0), span(1)}.holds(key) || Interval{span(2), span(3)}.holds(key);
}

}  // namespace tilewise::attend::reference
