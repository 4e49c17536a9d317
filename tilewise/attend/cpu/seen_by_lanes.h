// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <algorithm>
#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "tilewise/plan/plan.h"

// The mask of one block, as a function from a key token to the lanes that see it.
namespace tilewise::attend::cpu {

/// Bit i of at(token): lane i may see the key. Bands and spans are ranges of tokens with equal bits; of a neighbourhood the bits of each axis meet. Made once
/// a block, then asked key by key: neighbouring tokens cost a few instructions.
class SeenByLanes {
 public:
  /// `tokens`: of each lane's query, -1 where it has none (its bit stays 0).
  void set(const PlanData& plan, int64_t b, int head, std::span<const int32_t> tokens);

  /// Bits of a key token in [0, seqlen_k).
  uint64_t at(int64_t token) {
    if (axes_ == 0) return ranges_[range_of(token)].bits;
    return at_cell(token);
  }
  /// Calls body(first, last, bits) for the tokens [start, stop) in stretches of equal bits.
  template <class Body>
  void for_each_stretch(int64_t start, int64_t stop, const Body& body) {
    if (axes_ == 0) {
      for (size_t i = range_of(start); start < stop; ++i) {
        const int64_t last = i + 1 < ranges_.size() && ranges_[i + 1].start < stop ? ranges_[i + 1].start : stop;
        body(start, last, ranges_[i].bits);
        start = last;
      }
      return;
    }
    while (start < stop) {  // line by line of the grid's last axis
      const uint64_t first_bits = at_cell(start);
      const int64_t end = last_token_ == start ? std::min(stop, start + line_left()) : start < first_ ? std::min(stop, first_) : stop;
      if (last_token_ != start || outer_ == 0) {
        body(start, end, first_bits);
        start = end;
        continue;
      }
      const AxisBits& line = axis_[axes_ - 1];
      const int64_t coordinate = coordinate_[axes_ - 1] - start;
      int64_t from = start;
      uint64_t bits = first_bits;
      for (int64_t at = start + 1; at < end; ++at) {
        const uint64_t next = (outer_ & line.of(coordinate + at)) | outside_;
        if (next == bits) continue;
        body(from, at, bits);
        from = at;
        bits = next;
      }
      body(from, end, bits);
      start = end;
    }
  }

 private:
  struct Range {
    int64_t start;  // up to the start of the next one
    uint64_t bits;
  };
  // One axis of a grid: bits of the lanes whose window holds a coordinate of [low, low + bits.size()); none sees another one.
  struct AxisBits {
    int64_t length = 1, low = 0;
    std::vector<uint64_t> bits;
    uint64_t of(int64_t coordinate) const {
      const int64_t i = coordinate - low;
      return i >= 0 && i < static_cast<int64_t>(bits.size()) ? bits[static_cast<size_t>(i)] : 0;
    }
  };

  void set_ranges(const PlanData& plan, int64_t b, int head, std::span<const int32_t> tokens);
  void set_grid(const PlanData& plan, int head, std::span<const int32_t> tokens);
  size_t range_of(int64_t token);
  uint64_t at_cell(int64_t token);
  // Cells from the last one that at_cell found to the end of its line.
  int64_t line_left() const { return axis_[axes_ - 1].length - coordinate_[axes_ - 1]; }

  std::vector<Range> ranges_, events_;
  size_t last_range_ = 0;

  size_t axes_ = 0;  // 0: ranges
  std::array<AxisBits, 4> axis_;
  std::array<int64_t, 4> coordinate_{};  // of last_token_
  uint64_t outer_ = 0;  // the bits of its axes but the last
  int64_t first_ = 0, cells_ = 0, last_token_ = -2;
  uint64_t all_ = 0, outside_ = 0;  // lanes with a query; those whose query lies beside the grid
};

}  // namespace tilewise::attend::cpu
