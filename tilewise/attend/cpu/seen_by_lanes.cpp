// SPDX-License-Identifier: Apache-2.0
#include "tilewise/attend/cpu/seen_by_lanes.h"

#include <algorithm>

#include "tilewise/plan/mask.h"
#include "tilewise/plan/rows.h"

namespace tilewise::attend::cpu {

void SeenByLanes::set(const PlanData& plan, int64_t b, int head, std::span<const int32_t> tokens) {
  axes_ = 0;
  if (plan.mask.grids.empty()) {
    set_ranges(plan, b, head, tokens);
  } else {
    set_grid(plan, head, tokens);
  }
}

void SeenByLanes::set_ranges(const PlanData& plan, int64_t b, int head, std::span<const int32_t> tokens) {
  const int64_t shift = plan.seqlen_k - plan.seqlen_q;
  events_.clear();  // where a lane begins or ceases to see
  for (size_t lane = 0; lane < tokens.size(); ++lane) {
    if (tokens[lane] < 0) continue;
    const plan::VisibleKeys seen = plan::visible_keys(plan.mask, head, b, tokens[lane], shift, plan.seqlen_k);
    for (size_t part = 0; part < 2; ++part) {
      if (seen.start[part] >= seen.stop[part]) continue;
      events_.push_back({seen.start[part], uint64_t{1} << lane});
      events_.push_back({seen.stop[part], uint64_t{1} << lane});
    }
  }
  std::sort(events_.begin(), events_.end(), [](const Range& x, const Range& y) { return x.start < y.start; });
  ranges_.assign(1, {0, 0});
  uint64_t bits = 0;
  for (const Range& event : events_) {
    bits ^= event.bits;
    if (event.start > ranges_.back().start) {
      ranges_.push_back({event.start, bits});
    } else {
      ranges_.back().bits = bits;
    }
  }
  last_range_ = 0;
}

void SeenByLanes::set_grid(const PlanData& plan, int head, std::span<const int32_t> tokens) {
  const std::vector<Mask::Axis>& grid = plan.mask.grids[static_cast<size_t>(plan::head_class(plan.mask, head))];
  axes_ = grid.size();
  first_ = plan.mask.first;
  cells_ = 1;
  for (const Mask::Axis& axis : grid) cells_ *= axis.length;
  all_ = outside_ = 0;
  last_token_ = -2;
  const int64_t shift = plan.seqlen_k - plan.seqlen_q;
  std::array<std::array<plan::AxisWindow, 64>, 4> windows;
  uint64_t inside = 0;
  for (size_t lane = 0; lane < tokens.size(); ++lane) {
    if (tokens[lane] < 0) continue;
    all_ |= uint64_t{1} << lane;
    int64_t cell = tokens[lane] + shift - first_;
    if (cell < 0 || cell >= cells_) continue;
    inside |= uint64_t{1} << lane;
    for (size_t a = axes_; a-- > 0;) {
      windows[a][lane] = plan::axis_window(grid[a], cell % grid[a].length);
      cell /= grid[a].length;
    }
  }
  outside_ = all_ & ~inside;
  for (size_t a = 0; a < axes_; ++a) {
    AxisBits& axis = axis_[a];
    axis.length = grid[a].length;
    const int64_t step = grid[a].dilation;
    int64_t low = axis.length, high = 0;
    for (size_t lane = 0; lane < tokens.size(); ++lane) {
      if ((inside >> lane & 1) == 0 || windows[a][lane].start >= windows[a][lane].stop) continue;
      low = std::min(low, windows[a][lane].start);
      high = std::max(high, windows[a][lane].stop);
    }
    axis.low = std::min(low, high);
    // A bit is turned where its window begins and where the next step would leave it; summing up by steps then fills the window.
    axis.bits.assign(static_cast<size_t>(std::max<int64_t>(0, high - axis.low)), 0);
    for (size_t lane = 0; lane < tokens.size(); ++lane) {
      if ((inside >> lane & 1) == 0) continue;
      const plan::AxisWindow& window = windows[a][lane];
      if (window.start >= window.stop) continue;
      const int64_t end = window.start + (window.stop - window.start + step - 1) / step * step;
      axis.bits[static_cast<size_t>(window.start - axis.low)] ^= uint64_t{1} << lane;
      if (end - axis.low < static_cast<int64_t>(axis.bits.size())) axis.bits[static_cast<size_t>(end - axis.low)] ^= uint64_t{1} << lane;
    }
    for (auto i = static_cast<size_t>(step); i < axis.bits.size(); ++i) axis.bits[i] ^= axis.bits[i - static_cast<size_t>(step)];
  }
}

size_t SeenByLanes::range_of(int64_t token) {
  const bool is_last = ranges_[last_range_].start <= token && (last_range_ + 1 == ranges_.size() || token < ranges_[last_range_ + 1].start);
  if (!is_last) {
    const auto next = std::upper_bound(ranges_.begin(), ranges_.end(), token, [](int64_t t, const Range& range) { return t < range.start; });
    last_range_ = static_cast<size_t>(next - ranges_.begin()) - 1;
  }
  return last_range_;
}

uint64_t SeenByLanes::at_cell(int64_t token) {
  int64_t cell = token - first_;
  if (cell < 0 || cell >= cells_) {
    last_token_ = -2;
    return all_;
  }
  const size_t last = axes_ - 1;
  if (token == last_token_ + 1 && coordinate_[last] + 1 < axis_[last].length) {
    ++coordinate_[last];  // a neighbour in its line
  } else if (token != last_token_) {
    outer_ = ~uint64_t{0};
    for (size_t a = axes_; a-- > 0;) {
      coordinate_[a] = cell % axis_[a].length;
      cell /= axis_[a].length;
      if (a != last) outer_ &= axis_[a].of(coordinate_[a]);
    }
  }
  last_token_ = token;
  return (outer_ & axis_[last].of(coordinate_[last])) | outside_;
}

}  // namespace tilewise::attend::cpu
