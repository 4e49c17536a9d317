// SPDX-License-Identifier: Apache-2.0
#pragma once
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
    while (start < stop) {
      const uint64_t bits = at_cell(start);
      int64_t last = start + 1;
      while (last < stop && at_cell(last) == bits) ++last;
      body(start, last, bits);
      start = last;
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

  std::vector<Range> ranges_, events_;
  size_t last_range_ = 0;

  size_t axes_ = 0;  // 0: ranges
  std::array<AxisBits, 4> axis_;
  std::array<int64_t, 4> coordinate_{};
  int64_t first_ = 0, cells_ = 0, last_token_ = -2;
  uint64_t all_ = 0, outside_ = 0;  // lanes with a query; those whose query lies beside the grid
};

}  // namespace tilewise::attend::cpu
