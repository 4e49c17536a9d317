// SPDX-License-Identifier: Apache-2.0
#include "tilewise/attend/cpu/cut.h"

#include <algorithm>
#include <bit>
#include <limits>
#include <span>

#include "tilewise/plan/complete.h"
#include "tilewise/plan/mask.h"
#include "tilewise/plan/rows.h"

namespace tilewise::attend::cpu {
namespace {

constexpr int64_t kLowest = std::numeric_limits<int32_t>::min(), kHighest = std::numeric_limits<int32_t>::max();

int32_t clamp(int64_t token) { return static_cast<int32_t>(std::clamp(token, kLowest, kHighest)); }

// What the lanes of a block have in common.
struct Limits {
  int64_t first_least, first_most, last_least, last_most;  // over the lanes that hold a query
  int64_t sink;
};

Limits limits_of(const LaneBand& band, uint64_t lanes) {
  Limits l{kHighest, kLowest, kHighest, kLowest, band.sink};
  for (int i = 0; i < kBlockLanes; ++i) {
    if ((lanes >> i & 1) == 0) continue;
    l.first_least = std::min<int64_t>(l.first_least, band.first[i]);
    l.first_most = std::max<int64_t>(l.first_most, band.first[i]);
    l.last_least = std::min<int64_t>(l.last_least, band.last[i]);
    l.last_most = std::max<int64_t>(l.last_most, band.last[i]);
  }
  return l;
}

uint64_t lane_bits(int lanes) { return lanes >= 64 ? ~uint64_t{0} : (uint64_t{1} << lanes) - 1; }

// Writes the segments of a block.
class Cutter {
 public:
  // `padding`: lanes that read along where all real lanes read.
  Cutter(uint64_t real, uint64_t padding, std::vector<Segment>& segments) : real_(real), padding_(padding), segments_(segments) {}

  void add(int64_t start, int64_t stop, uint64_t bits, int32_t cell, bool is_tested) {
    if (start >= stop) return;
    const uint64_t read_along = bits == real_ ? padding_ : 0;
    segments_.push_back({static_cast<int32_t>(start), static_cast<int32_t>(stop), bits | read_along, cell, is_tested});
  }

  // A run whose edges the kernel tests by the band: keys that no lane sees go, keys that all lanes see are not tested.
  void add_banded(const Limits& limits, int64_t start, int64_t stop, uint64_t bits, int32_t cell) {
    stop = std::min(stop, limits.last_most + 1);
    const int64_t sink_stop = std::clamp(limits.sink, start, std::max(start, stop));
    add_parts(limits, start, std::min(sink_stop, stop), kLowest, bits, cell);
    add_parts(limits, std::max(sink_stop, limits.first_least), stop, limits.first_most, bits, cell);
  }

  // A run of slots that are tokens, by the lanes that see them.
  void add_seen(SeenByLanes& seen, int64_t start, int64_t stop, uint64_t bits, int32_t cell) {
    seen.for_each_stretch(start, stop, [&](int64_t first, int64_t last, uint64_t who) {
      if ((who & bits) != 0) add(first, last, who & bits, cell, false);
    });
  }

  // The same slot by slot: neighbours with equal bits become one segment.
  void add_seen(SeenByLanes& seen, const plan::Axis& keys, int64_t start, int64_t stop, uint64_t bits, int32_t cell) {
    uint64_t before = 0;
    int64_t from = start;
    for (int64_t slot = start; slot < stop; ++slot) {
      const int64_t token = keys.token(slot);
      const uint64_t who = token < 0 ? 0 : seen.at(token) & bits;
      if (who == before) continue;
      if (before != 0) add(from, slot, before, cell, false);
      before = who;
      from = slot;
    }
    if (before != 0) add(from, stop, before, cell, false);
  }

 private:
  // [start, stop) where lanes see keys from `seen_by_all` up to their last.
  void add_parts(const Limits& limits, int64_t start, int64_t stop, int64_t seen_by_all, uint64_t bits, int32_t cell) {
    if (start >= stop) return;
    const int64_t free_start = std::clamp(seen_by_all, start, stop);
    const int64_t free_stop = std::clamp(limits.last_least + 1, free_start, stop);
    add(start, free_start, bits, cell, true);
    add(free_start, free_stop, bits, cell, false);
    add(free_stop, stop, bits, cell, true);
  }

  const uint64_t real_, padding_;
  std::vector<Segment>& segments_;
};

// The three lists of a row, as one sees them.
struct RowLists {
  plan::Runs whole, masked, picked;
  int grain_whole, grain_masked;

  RowLists(const Lists& lists, int64_t b, int head, int heads, int64_t row)
      : whole(plan::runs_of(lists.whole, b, head, heads, row)),
        masked(plan::runs_of(lists.masked, b, head, heads, row)),
        picked(plan::runs_of(lists.picked, b, head, heads, row)),
        grain_whole(lists.whole.grain),
        grain_masked(lists.masked.grain) {}

  bool has_rows() const { return (masked.rows != nullptr && masked.count > 0) || (picked.rows != nullptr && picked.count > 0); }
  bool equals(const RowLists& other) const {
    const auto same = [](const plan::Runs& a, const plan::Runs& b) { return a.count == b.count && (a.count == 0 || a.start == b.start); };
    return same(whole, other.whole) && same(masked, other.masked) && same(picked, other.picked);
  }
  int64_t stop_of_whole(const PlanData& plan, int i) const { return stop_of(plan, whole, i, grain_whole); }
  int64_t stop_of_masked(const PlanData& plan, int i) const { return stop_of(plan, masked, i, grain_masked); }
  int64_t keys(const PlanData& plan) const {
    int64_t total = picked.count;
    for (int i = 0; i < whole.count; ++i) total += stop_of_whole(plan, i) - whole.start[i];
    for (int i = 0; i < masked.count; ++i) total += stop_of_masked(plan, i) - masked.start[i];
    return total;
  }

 private:
  static int64_t stop_of(const PlanData& plan, const plan::Runs& runs, int i, int grain) {
    return runs.stop != nullptr ? runs.stop[i] : plan::run_stop(runs, i, grain, plan::part_end(plan, runs.start[i]));
  }
};

// The spans of the lanes as a band, where they are one: each lane sees one range, or all see the same first keys and a range more.
bool set_band_of_spans(const PlanData& plan, const QueryBlock& block, std::span<const int32_t> tokens, LaneBand& band) {
  std::array<plan::VisibleKeys, kBlockLanes> seen;
  int64_t sink = 0;
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (tokens[i] < 0) continue;
    seen[i] = plan::visible_keys(plan.mask, block.head, block.b, tokens[i], plan.seqlen_k - plan.seqlen_q, plan.seqlen_k);
    if (seen[i].start[0] >= seen[i].stop[0]) {  // the one range stands first
      seen[i].start[0] = seen[i].start[1];
      seen[i].stop[0] = seen[i].stop[1];
      seen[i].stop[1] = seen[i].start[1];
    }
    if (seen[i].start[1] < seen[i].stop[1]) sink = seen[i].stop[0];
  }
  band.sink = clamp(sink);
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (tokens[i] < 0) continue;
    const plan::VisibleKeys& s = seen[i];
    if (s.start[1] < s.stop[1]) {
      if (s.start[0] != 0 || s.stop[0] != sink) return false;
      band.first[i] = clamp(s.start[1]);
      band.last[i] = clamp(s.stop[1] - 1);
    } else {
      if (s.start[0] > 0 && s.start[0] < s.stop[0] && sink > 0) return false;
      band.first[i] = clamp(s.start[0]);
      band.last[i] = s.start[0] < s.stop[0] ? clamp(s.stop[0] - 1) : -1;
    }
  }
  return true;
}

// Fills `band`, and whether it says all that the mask says. Lanes behind the block's see nothing, those of padding everything.
bool set_band(const PlanData& plan, const QueryBlock& block, std::span<const int32_t> tokens, LaneBand& band) {
  for (int i = 0; i < kBlockLanes; ++i) {
    const bool is_there = i < block.lanes;
    band.first[i] = static_cast<int32_t>(is_there ? kLowest : kHighest);
    band.last[i] = static_cast<int32_t>(is_there ? kHighest : kLowest);
  }
  band.sink = 0;
  if (plan.mask.spans.has_value()) return set_band_of_spans(plan, block, tokens, band);
  if (plan.mask.bands.empty()) return false;
  const Mask::Band& rule = plan.mask.bands[static_cast<size_t>(plan::head_class(plan.mask, block.head))];
  band.sink = clamp(rule.sink);
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (tokens[i] < 0) continue;
    const int64_t token = tokens[i] + plan.seqlen_k - plan.seqlen_q;
    if (rule.left != Mask::kAll) band.first[i] = clamp(token - rule.left);
    if (rule.right != Mask::kAll) band.last[i] = clamp(token + rule.right);
  }
  return true;
}

}  // namespace

Plan with_by_query(const Plan& plan, Context& context) {
  const bool is_by_key = !plan->by_query.has_runs() && plan->by_key.has_runs();
  return is_by_key ? complete(plan, context, plan->by_query.tile) : plan;
}

std::optional<std::string> refusal_of_operand(const char* name, const TensorView& view) {
  if (view.dtype() != Dtype::f32 && view.dtype() != Dtype::bf16 && view.dtype() != Dtype::f16) {
    return std::string(name) + " is " + std::string(tilewise::name(view.dtype())) + ", which is not built (has f32, bf16, f16)";
  }
  if (view.device().type != Device::Type::cpu) return std::string(name) + " is not on the CPU";
  const int64_t channels = view.dim(view.rank() - 1);
  if (channels > 256) return std::string(name) + " has " + std::to_string(channels) + " channels, above 256";
  if (channels % 8 != 0) return std::string(name) + " has " + std::to_string(channels) + " channels, not a multiple of 8; pad with zeros";
  return std::nullopt;
}

Cut::Cut(const PlanData& plan, int heads)
    : plan_(plan), heads_(heads), slots_k_(plan::slots_k(plan)), queries_(SlotAxes::of_queries(plan)), keys_(SlotAxes::of_keys(plan)) {}

std::vector<QueryBlock> Cut::blocks(int64_t batch) const {
  const Lists& lists = plan_.by_query;
  const int64_t slots = plan::slots_q(plan_);
  const int64_t rows = plan::num_rows(lists, slots);
  std::vector<QueryBlock> blocks;
  for (int64_t b = 0; b < batch; ++b) {
    for (int head = 0; head < heads_; ++head) {
      const plan::Axis& queries = queries_.of(b, head);
      const size_t head_begin = blocks.size();
      for (int64_t row = 0; row < rows;) {
        const RowLists here(lists, b, head, heads_, row);
        const int64_t first = plan::row_first(lists, row);
        int64_t last = plan::row_last(lists, row, slots), next = row + 1;
        // Short rows that read the same keys run as one block.
        while (next < rows && !here.has_rows() && last - first < kBlockLanes && plan::row_last(lists, next, slots) - first <= kBlockLanes &&
               here.equals(RowLists(lists, b, head, heads_, next))) {
          last = plan::row_last(lists, next++, slots);
        }
        const int64_t keys = here.keys(plan_);
        for (int64_t slot = first; slot < last; slot += kBlockLanes) {
          const int64_t stop = std::min(last, slot + kBlockLanes);
          if (queries.real(slot, stop) == 0) continue;
          blocks.push_back({.b = b,
                            .head = head,
                            .row = row,
                            .first = static_cast<int32_t>(slot),
                            .lanes = static_cast<int32_t>(stop - slot),
                            .offset = static_cast<int32_t>(slot - first),
                            .keys = keys,
                            .picked = here.picked.count});
        }
        row = next;
      }
      std::sort(blocks.begin() + static_cast<std::ptrdiff_t>(head_begin), blocks.end(), [](const QueryBlock& x, const QueryBlock& y) {
        const int64_t work_x = x.keys * x.lanes, work_y = y.keys * y.lanes;
        return work_x != work_y ? work_x > work_y : x.first < y.first;
      });
    }
  }
  return blocks;
}

void Cut::set_lanes(const QueryBlock& block, BlockCut& cut) const {
  const plan::Axis& queries = queries_.of(block.b, block.head);
  cut.token.fill(-1);
  cut.real = 0;
  for (int i = 0; i < block.lanes; ++i) {
    const int64_t token = queries.token(block.first + i);
    cut.token[static_cast<size_t>(i)] = static_cast<int32_t>(token);
    if (token >= 0) cut.real |= uint64_t{1} << i;
  }
  cut.is_banded_ = set_band(plan_, block, cut.token, cut.band);
  cut.is_seen_set_ = false;
}

int64_t Cut::cut(const QueryBlock& block, CutFor purpose, BlockCut& cut) const {
  set_lanes(block, cut);
  cut.segments.clear();
  const RowLists row(plan_.by_query, block.b, block.head, heads_, block.row);
  const plan::Axis& keys = keys_.of(block.b, block.head);
  const bool has_order = plan_.order_k.token.has_value();
  const Limits limits = limits_of(cut.band, cut.real);
  const uint64_t all = cut.real, padding = purpose == CutFor::forward ? lane_bits(block.lanes) & ~all : 0;
  const int real = std::popcount(all);
  Cutter cutter(all, padding, cut.segments);
  int64_t pairs = 0;
  const auto bits_of = [&](const plan::Runs& runs, int i) {
    return runs.rows == nullptr ? all : runs.rows[static_cast<int64_t>(i) * runs.words + block.offset / kBlockLanes] & all;
  };
  const auto take_whole = [&](int i, int32_t cell) {
    const int64_t stop = row.stop_of_whole(plan_, i);
    pairs += real * keys.real(row.whole.start[i], stop);
    cutter.add(row.whole.start[i], stop, all, cell, false);
  };
  const auto take_masked = [&](int i, int32_t cell) {
    const int64_t start = row.masked.start[i], stop = row.stop_of_masked(plan_, i);
    const uint64_t bits = bits_of(row.masked, i);
    pairs += std::popcount(bits) * keys.real(start, stop);
    if (bits == 0) return;
    const bool is_plain = !has_order && start < slots_k_;
    if (is_plain && cut.is_banded_) {
      cutter.add_banded(limits, start, stop, bits, cell);
      return;
    }
    if (!cut.is_seen_set_) cut.seen_.set(plan_, block.b, block.head, cut.token);
    cut.is_seen_set_ = true;
    if (is_plain) {
      cutter.add_seen(cut.seen_, start, stop, bits, cell);
    } else {
      cutter.add_seen(cut.seen_, keys, start, stop, bits, cell);
    }
  };
  const auto take_picked = [&](int i, int32_t cell) {
    const uint64_t bits = bits_of(row.picked, i);
    const int64_t start = row.picked.start[i];
    pairs += (bits == all ? real : std::popcount(bits)) * keys.real(start, start + 1);
    if (bits != 0) cutter.add(start, start + 1, bits, cell, false);
  };
  if (purpose != CutFor::measure_runs) {
    for (int i = 0; i < row.whole.count; ++i) take_whole(i, 0);
    for (int i = 0; i < row.masked.count; ++i) take_masked(i, 0);
    for (int i = 0; i < row.picked.count; ++i) take_picked(i, 0);
    if (purpose == CutFor::forward && cut.is_seen_set_) {  // strips that all lanes read in full need no test
      std::stable_partition(cut.segments.begin(), cut.segments.end(), [&](const Segment& s) { return !s.is_tested && s.bits == (all | padding); });
    }
    return pairs;
  }
  int32_t cell = 0;
  for (int w = 0, m = 0, p = 0; w < row.whole.count || m < row.masked.count || p < row.picked.count; ++cell) {
    const auto start = [](const plan::Runs& runs, int i) { return i < runs.count ? int64_t{runs.start[i]} : kHighest + 1; };
    const int64_t least = std::min({start(row.whole, w), start(row.masked, m), start(row.picked, p)});
    if (start(row.whole, w) == least) {
      take_whole(w++, cell);
    } else if (start(row.masked, m) == least) {
      take_masked(m++, cell);
    } else {
      take_picked(p++, cell);
    }
  }
  return pairs;
}

}  // namespace tilewise::attend::cpu
