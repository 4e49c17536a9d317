// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <array>
#include <cstdint>
#include <optional>
#include <string>

#include "tilewise/plan/plan.h"

namespace tilewise::plan {

/// The coordinates that one query coordinate sees on one axis: start, start + step, ... below stop.
struct AxisWindow {
  int64_t start = 0, stop = 0, step = 1;
  bool contains(int64_t coordinate) const { return coordinate >= start && coordinate < stop && (coordinate - start) % step == 0; }
};

/// Source  GNA, arXiv 2504.16922, section 3: the leader of a stride group places the window, dilation groups are axes of their own.
TILEWISE_API AxisWindow axis_window(const Mask::Axis& axis, int64_t coordinate);

/// Whether the mask lets a query of token `q` see key token `k`. `shift` is Sk - Sq: under bands and grids the query counts as token q + shift,
/// a row of spans is asked by q itself. `b` is the batch entry (spans alone have one). Tokens are real: 0 <= q < Sq, 0 <= k < Sk.
TILEWISE_API bool allows(const Mask& mask, int head, int64_t b, int64_t q, int64_t k, int64_t shift);

/// The key tokens in [0, seqlen_k) that a query sees, as two ranges, ascending and apart; either may be empty (start == stop).
struct VisibleKeys {
  std::array<int64_t, 2> start{}, stop{};
  bool contains(int64_t first, int64_t last) const {  // all of [first, last)
    for (size_t i = 0; i < 2; ++i) {
      if (first >= start[i] && last <= stop[i]) return true;
    }
    return first >= last;
  }
  int64_t overlap(int64_t first, int64_t last) const {  // how many of [first, last)
    int64_t total = 0;
    for (size_t i = 0; i < 2; ++i) {
      const int64_t low = first > start[i] ? first : start[i], high = last < stop[i] ? last : stop[i];
      total += high > low ? high - low : 0;
    }
    return total;
  }
};
/// Under bands or spans; a mask of grids has no such answer.
TILEWISE_API VisibleKeys visible_keys(const Mask& mask, int head, int64_t b, int64_t q, int64_t shift, int64_t seqlen_k);

/// The band of this head is open on both sides.
TILEWISE_API bool is_full(const Mask& mask, int head);
/// How many classes of heads the mask has.
TILEWISE_API int num_classes(const Mask& mask);
/// What is wrong with the mask of a plan of these sizes, as text: more than one form, a limit out of range, a class that is not there.
TILEWISE_API std::optional<std::string> mask_fault(const Mask& mask, int64_t batch, int heads_q, int64_t seqlen_q, int64_t seqlen_k);

}  // namespace tilewise::plan
