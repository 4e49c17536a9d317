// SPDX-License-Identifier: Apache-2.0
#include "tilewise/attend/cpu/backward_cut.h"

#include <algorithm>
#include <array>
#include <bit>
#include <limits>

#include "tilewise/plan/mask.h"
#include "tilewise/plan/rows.h"

namespace tilewise::attend::cpu {
namespace {

using plan::Axis;
using plan::Runs;

// Bits [first, last) of a word, each end clamped to it.
uint64_t word_range(int64_t first, int64_t last) {
  first = std::clamp<int64_t>(first, 0, 64);
  last = std::clamp<int64_t>(last, first, 64);
  if (first == 64) return 0;
  const uint64_t below_last = last == 64 ? ~uint64_t{0} : (uint64_t{1} << last) - 1;
  return below_last & (~uint64_t{0} << first);
}

LaneBits range(int64_t first, int64_t last) { return {{word_range(first, last), word_range(first - 64, last - 64)}}; }
LaneBits operator&(const LaneBits& a, const LaneBits& b) { return {{a.word[0] & b.word[0], a.word[1] & b.word[1]}}; }
LaneBits operator|(const LaneBits& a, const LaneBits& b) { return {{a.word[0] | b.word[0], a.word[1] | b.word[1]}}; }
int count(const LaneBits& bits) { return std::popcount(bits.word[0]) + std::popcount(bits.word[1]); }
void set_bit(LaneBits& bits, int lane, bool is_set) { bits.word[lane / 64] |= static_cast<uint64_t>(is_set) << (lane % 64); }

// Lanes whose slots hold a token.
LaneBits real_lanes(const Axis& axis, const LaneBlock& block) {
  if (axis.is_plain()) return range(0, block.lanes);
  LaneBits bits{};
  for (int lane = 0; lane < block.lanes; ++lane) set_bit(bits, lane, axis.token(block.first + lane) >= 0);
  return bits;
}

// The mask's answers for one query and all keys of a block.
class KeyMask {
 public:
  KeyMask(const PlanData& plan, int head, const LaneBlock& block, const Axis& keys)
      : plan_(plan), head_(head), b_(block.b), first_(block.first), lanes_(block.lanes), is_plain_(keys.is_plain()) {
    const int of_head = plan::head_class(plan.mask, head);
    if (!plan.mask.bands.empty()) band_ = plan.mask.bands[static_cast<size_t>(of_head)];
    for (int lane = 0; lane < lanes_ && !is_plain_; ++lane) tokens_[static_cast<size_t>(lane)] = keys.token(first_ + lane);
  }

  LaneBits seen(int64_t query) const {
    const Mask& mask = plan_.mask;
    if (!mask.grids.empty()) return seen_by_pair(query);
    if (mask.bands.empty()) {
      const plan::VisibleKeys keys = plan::visible_keys(mask, head_, b_, query, plan_.seqlen_k - plan_.seqlen_q, plan_.seqlen_k);
      return within(keys.start[0], keys.stop[0]) | within(keys.start[1], keys.stop[1]);
    }
    const int64_t token = query + plan_.seqlen_k - plan_.seqlen_q;
    const int64_t stop = band_.right == Mask::kAll ? kFar : token + band_.right + 1;
    const int64_t start = band_.left == Mask::kAll ? -kFar : token - band_.left;
    const LaneBits seen = within(start, stop);
    return band_.sink > 0 ? seen | within(-kFar, std::min(band_.sink, stop)) : seen;
  }

 private:
  static constexpr int64_t kFar = std::numeric_limits<int64_t>::max() / 4;

  // Lanes whose token lies in [start, stop).
  LaneBits within(int64_t start, int64_t stop) const {
    if (is_plain_) return range(start - first_, stop - first_);
    LaneBits bits{};
    for (int lane = 0; lane < lanes_; ++lane) {
      const int64_t token = tokens_[static_cast<size_t>(lane)];
      set_bit(bits, lane, token >= start && token < stop);
    }
    return bits;
  }

  LaneBits seen_by_pair(int64_t query) const {
    LaneBits bits{};
    for (int lane = 0; lane < lanes_; ++lane) {
      const int64_t key = is_plain_ ? first_ + lane : tokens_[static_cast<size_t>(lane)];
      set_bit(bits, lane, key >= 0 && plan::allows(plan_.mask, head_, b_, query, key, plan_.seqlen_k - plan_.seqlen_q));
    }
    return bits;
  }

  const PlanData& plan_;
  Mask::Band band_ = {};
  int head_;
  int64_t b_, first_;
  int lanes_;
  bool is_plain_;
  std::array<int64_t, kHeldLanes> tokens_{};
};

LaneBits bits_of(const Runs& runs, int i, const LaneBlock& block) {
  if (runs.rows == nullptr) return range(0, kHeldLanes);
  const uint64_t* const words = runs.rows + static_cast<int64_t>(i) * runs.words;
  const int at = block.offset / 64;
  return {{words[at], at + 1 < runs.words ? words[at + 1] : 0}};
}

// Appends rows [start, stop) with the lanes that `lanes_of(row)` gives each, as few segments as their values need.
template <class LanesOf>
void add_rows(int64_t start, int64_t stop, const LanesOf& lanes_of, CutRows& cut) {
  int64_t first = start;  // of the segment in the making
  const auto base = static_cast<int64_t>(cut.row_bits.size());
  int64_t kept = base;
  bool is_uniform = true;
  const auto end_segment = [&](int64_t last) {
    const auto begin = static_cast<size_t>(kept);
    if (first < last) {
      cut.segments.push_back({static_cast<int32_t>(first), static_cast<int32_t>(last), cut.row_bits[begin], is_uniform ? -1 : kept});
      if (is_uniform) cut.row_bits.resize(begin);
    }
    kept = static_cast<int64_t>(cut.row_bits.size());
    is_uniform = true;
  };
  for (int64_t row = start; row < stop; ++row) {
    const LaneBits bits = lanes_of(row);
    if (!bits.any()) {
      end_segment(row);
      first = row + 1;
      continue;
    }
    is_uniform = is_uniform && (row == first || bits == cut.row_bits.back());
    cut.row_bits.push_back(bits);
  }
  end_segment(stop);
}

}  // namespace

int64_t cut_queries(const PlanData& plan, int head, const LaneBlock& block, const Axis& queries, const Axis& keys, CutRows& cut) {
  cut.segments.clear();
  cut.row_bits.clear();
  const Lists& lists = plan.by_key;
  const LaneBits all = real_lanes(keys, block);
  const KeyMask mask(plan, head, block, keys);
  const std::array<const RunList*, 3> sources{&lists.whole, &lists.masked, &lists.picked};
  std::array<Runs, 3> runs;
  for (size_t i = 0; i < 3; ++i) runs[i] = plan::runs_of(*sources[i], block.b, head, plan.heads_q, block.row);
  int64_t pairs = 0;
  std::array<int, 3> at{};
  while (true) {
    constexpr int64_t kNone = std::numeric_limits<int64_t>::max();
    size_t list = 0;
    int64_t start = kNone;
    for (size_t i = 0; i < 3; ++i) {
      if (at[i] < runs[i].count && runs[i].start[at[i]] < start) {
        start = runs[i].start[at[i]];
        list = i;
      }
    }
    if (start == kNone) break;
    const int i = at[list]++;
    const int64_t stop = plan::run_stop(runs[list], i, sources[list]->grain, queries.slots());
    const LaneBits bits = bits_of(runs[list], i, block) & all;
    if (!bits.any()) continue;
    pairs += count(bits) * queries.real(start, stop);
    if (sources[list] == &lists.masked) {
      add_rows(start, stop, [&](int64_t row) { return queries.token(row) < 0 ? LaneBits{} : bits & mask.seen(queries.token(row)); }, cut);
    } else if (queries.is_plain()) {
      cut.segments.push_back({static_cast<int32_t>(start), static_cast<int32_t>(stop), bits, -1});
    } else {
      add_rows(start, stop, [&](int64_t row) { return queries.token(row) < 0 ? LaneBits{} : bits; }, cut);
    }
  }
  return pairs;
}

int64_t cut_picked(const PlanData& plan, const LaneBlock& block, const Axis& queries, const Axis& keys, CutRows& cut) {
  cut.segments.clear();
  cut.row_bits.clear();
  const Runs runs = plan::runs_of(plan.by_query.picked, block.b, block.head, plan.heads_q, block.row);
  const LaneBits all = real_lanes(queries, block);
  int64_t pairs = 0;
  for (int i = 0; i < runs.count; ++i) {
    const LaneBits bits = bits_of(runs, i, block) & all;
    const int32_t key = runs.start[i];
    if (!bits.any() || keys.token(key) < 0) continue;
    pairs += count(bits);
    cut.segments.push_back({key, key + 1, bits, -1});
  }
  return pairs;
}

}  // namespace tilewise::attend::cpu
