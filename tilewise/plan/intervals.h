// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>

#include "tilewise/machine/cuda/block.h"
#include "tilewise/plan/plan.h"

// What a band lets a row of queries see, as intervals of key tokens: for the host's plans and for the kernels that make plans on a GPU.
namespace tilewise::plan {

/// Keys [first, last).
struct Interval {
  int64_t first = 0, last = 0;
  TILEWISE_HOST_DEVICE int64_t length() const { return last - first; }
  bool operator==(const Interval&) const = default;
};

/// A few intervals without an allocation.
template <int kMost>
struct IntervalList {
  Interval at[kMost];
  int count = 0;

  TILEWISE_HOST_DEVICE int size() const { return count; }
  TILEWISE_HOST_DEVICE bool empty() const { return count == 0; }
  TILEWISE_HOST_DEVICE Interval& back() { return at[count - 1]; }
  TILEWISE_HOST_DEVICE const Interval& operator[](int64_t i) const { return at[i]; }
  TILEWISE_HOST_DEVICE void push_back(const Interval& interval) { at[count++] = interval; }
  TILEWISE_HOST_DEVICE const Interval* begin() const { return at; }
  TILEWISE_HOST_DEVICE const Interval* end() const { return at + count; }
};

TILEWISE_HOST_DEVICE inline int64_t floor_to(int64_t value, int64_t step) {
  return (value >= 0 ? value / step : -((-value + step - 1) / step)) * step;
}
TILEWISE_HOST_DEVICE inline int64_t ceil_to(int64_t value, int64_t step) { return -floor_to(-value, step); }

/// Adds [first, last) cut to [0, end) to an ascending list, joined with what it touches or overlaps.
template <class List>
TILEWISE_HOST_DEVICE void append(List& list, int64_t first, int64_t last, int64_t end) {
  first = first > 0 ? first : 0;
  last = last < end ? last : end;
  if (first >= last) return;
  if (!list.empty() && first <= list.back().last) {
    list.back().first = list.back().first < first ? list.back().first : first;
    list.back().last = list.back().last > last ? list.back().last : last;
  } else {
    list.push_back({first, last});
  }
}

/// Appends `from` without `parts`; both ascending.
template <class List, class From, class Parts>
TILEWISE_HOST_DEVICE void append_without(List& rest, const From& from, const Parts& parts) {
  const auto num_parts = parts.size();
  decltype(parts.size()) next = 0;
  for (const Interval& interval : from) {
    int64_t at = interval.first;
    while (next < num_parts && parts[next].last <= interval.first) ++next;
    for (auto i = next; i < num_parts && parts[i].first < interval.last; ++i) {
      if (parts[i].first > at) rest.push_back({at, parts[i].first});
      at = at > parts[i].last ? at : parts[i].last;
    }
    if (at < interval.last) rest.push_back({at, interval.last});
  }
}

/// As Visible, of a band: disjoint, ascending.
struct BandSight {
  IntervalList<2> whole;
  IntervalList<4> masked;
};

/// Whether any of the keys [first, last) is seen.
TILEWISE_HOST_DEVICE inline bool meets(const BandSight& sight, int64_t first, int64_t last) {
  bool meets = false;
  for (const Interval& part : sight.whole) meets = meets || (first < part.last && last > part.first);
  for (const Interval& part : sight.masked) meets = meets || (first < part.last && last > part.first);
  return meets;
}

/// What queries that count as the tokens [first_token, last_token] see of [0, seqlen_k). Whole intervals begin and end at multiples of `align` or at the end.
TILEWISE_HOST_DEVICE inline BandSight band_sight(const Mask::Band& band, int64_t first_token, int64_t last_token, int64_t seqlen_k, int align) {
  // One past the largest key that each of the two outermost queries sees; an unlimited side is as good as Sk.
  const auto past = [&](int64_t token) { return band.right >= seqlen_k - token ? seqlen_k : token + band.right + 1; };
  const auto from = [&](int64_t token) { return band.left == INT64_MAX ? int64_t{0} : token - band.left; };
  const auto least = [](int64_t a, int64_t b) { return a < b ? a : b; };
  const bool has_window = band.left == INT64_MAX || band.right == INT64_MAX || band.left + band.right >= 0;
  IntervalList<2> all, some;  // seen by every query of the row, by at least one
  append(all, 0, least(band.sink, past(first_token)), seqlen_k);
  append(some, 0, least(band.sink, past(last_token)), seqlen_k);
  if (has_window) {
    append(all, from(last_token), past(first_token), seqlen_k);
    append(some, from(first_token), past(last_token), seqlen_k);
  }
  BandSight sight;
  for (const Interval& interval : all) {
    append(sight.whole, ceil_to(interval.first, align), interval.last == seqlen_k ? seqlen_k : floor_to(interval.last, align), seqlen_k);
  }
  append_without(sight.masked, some, sight.whole);
  return sight;
}

}  // namespace tilewise::plan
