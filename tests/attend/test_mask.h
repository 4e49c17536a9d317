// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <algorithm>
#include <cstdint>

#include "tilewise/plan/plan.h"

// The mask of a plan, written anew for tests from its definition (docs/systems/gna.md for neighbourhoods): it calls nothing of the library.
namespace tilewise::attend::testing {

/// Whether one axis of a neighbourhood lets cell i see cell j.
inline bool test_axis_sees(const Mask::Axis& a, int64_t i, int64_t j) {
  if (i % a.dilation != j % a.dilation) return false;
  const int64_t group = i % a.dilation;
  const int64_t length = a.length / a.dilation + (group < a.length % a.dilation ? 1 : 0);
  i /= a.dilation;
  j /= a.dilation;
  const int64_t w = a.window, s = a.stride, left = w / 2, right = w / 2 + w % 2 - 1;
  if (a.is_causal) {
    const int64_t leader = std::min(i / s * s + s - 1, length - 1);
    return j >= std::max<int64_t>(leader - left - right, 0) && j < std::min(i + 1, length);
  }
  const int64_t leader = std::min(i / s * s + s / 2, length - 1);
  int64_t start = std::max<int64_t>(leader - left, 0);
  if (leader + right >= length) start = length - w;
  return j >= start && j < start + w;
}

/// Whether head `head` of batch entry `b` lets query token `query` see key token `key`.
inline bool test_mask_sees(const PlanData& plan, int64_t b, int head, int64_t query, int64_t key) {
  const Mask& mask = plan.mask;
  const size_t cls = mask.head_class.empty() ? 0 : mask.head_class[static_cast<size_t>(head)];
  const int64_t q = query + plan.seqlen_k - plan.seqlen_q;  // bottom-right
  if (mask.spans.has_value()) {
    const int64_t sb = mask.spans.dim(1) == 1 ? 0 : b;
    const auto span = [&](int64_t i) { return static_cast<int64_t>(mask.spans.at<int32_t>(static_cast<int64_t>(cls), sb, query, i)); };
    return (key >= span(0) && key < span(1)) || (key >= span(2) && key < span(3));
  }
  if (!mask.grids.empty()) {
    const std::vector<Mask::Axis>& axes = mask.grids[cls];
    int64_t cells = 1;
    for (const Mask::Axis& axis : axes) cells *= axis.length;
    int64_t i = q - mask.first, j = key - mask.first;
    if (i < 0 || i >= cells || j < 0 || j >= cells) return true;
    for (size_t a = axes.size(); a-- > 0;) {
      if (!test_axis_sees(axes[a], i % axes[a].length, j % axes[a].length)) return false;
      i /= axes[a].length;
      j /= axes[a].length;
    }
    return true;
  }
  const Mask::Band& band = mask.bands[cls];
  if (band.right < Mask::kAll && key > q + band.right) return false;
  return key < band.sink || band.left == Mask::kAll || key >= q - band.left;
}

}  // namespace tilewise::attend::testing
