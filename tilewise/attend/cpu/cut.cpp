// SPDX-License-Identifier: Apache-2.0
#include "tilewise/attend/cpu/cut.h"

#include <algorithm>
#include <bit>
#include <limits>

#include "tilewise/plan/rows.h"

namespace tilewise::attend::cpu {
namespace {

constexpr int64_t kLowest = std::numeric_limits<int32_t>::min(), kHighest = std::numeric_limits<int32_t>::max();

int32_t clamp(int64_t token) { return static_cast<int32_t>(std::clamp(token, kLowest, kHighest)); }

// What the lanes of a block have in common.
struct Limits {
  int64_t first_least, first_most, last_least, last_most;  // over the real lanes
  int64_t sink;
};

Limits limits_of(const LaneBand& band, int lanes) {
  Limits l{kHighest, kLowest, kHighest, kLowest, band.sink};
  for (int i = 0; i < lanes; ++i) {
    l.first_least = std::min<int64_t>(l.first_least, band.first[i]);
    l.first_most = std::max<int64_t>(l.first_most, band.first[i]);
    l.last_least = std::min<int64_t>(l.last_least, band.last[i]);
    l.last_most = std::max<int64_t>(l.last_most, band.last[i]);
  }
  return l;
}

class Cutter {
 public:
  Cutter(const Limits& limits, std::vector<Segment>& segments) : limits_(limits), segments_(segments) {}

  void add(int64_t start, int64_t stop, uint64_t bits, int32_t cell, bool is_tested) {
    if (start >= stop) return;
    segments_.push_back({static_cast<int32_t>(start), static_cast<int32_t>(stop), bits, cell, is_tested});
  }

  // A run that the mask tests: keys that no lane sees go, keys that all lanes see are not tested.
  void add_masked(int64_t start, int64_t stop, uint64_t bits, int32_t cell) {
    stop = std::min(stop, limits_.last_most + 1);
    const int64_t sink_stop = std::clamp(limits_.sink, start, std::max(start, stop));
    add_parts(start, std::min(sink_stop, stop), kLowest, bits, cell);
    add_parts(std::max(sink_stop, limits_.first_least), stop, limits_.first_most, bits, cell);
  }

 private:
  // [start, stop) where lanes see keys from `seen_by_all` up to their last.
  void add_parts(int64_t start, int64_t stop, int64_t seen_by_all, uint64_t bits, int32_t cell) {
    if (start >= stop) return;
    const int64_t free_start = std::clamp(seen_by_all, start, stop);
    const int64_t free_stop = std::clamp(limits_.last_least + 1, free_start, stop);
    add(start, free_start, bits, cell, true);
    add(free_start, free_stop, bits, cell, false);
    add(free_stop, stop, bits, cell, true);
  }

  const Limits& limits_;
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
  int64_t keys(int64_t seqlen_k) const {
    int64_t total = picked.count;
    for (int i = 0; i < whole.count; ++i) total += plan::run_stop(whole, i, grain_whole, seqlen_k) - whole.start[i];
    for (int i = 0; i < masked.count; ++i) total += plan::run_stop(masked, i, grain_masked, seqlen_k) - masked.start[i];
    return total;
  }
};

uint64_t lane_bits(int lanes) { return lanes >= 64 ? ~uint64_t{0} : (uint64_t{1} << lanes) - 1; }

}  // namespace

std::optional<std::string> refusal_of_plan(const Plan& plan) {
  if (plan == nullptr) return "the plan is null";
  if (plan->mask.spans.has_value()) return "masks of spans are not built (has bands)";
  if (!plan->mask.grids.empty()) return "grid masks are not built (has bands)";
  if (!plan->pools.empty()) return "pooled keys are not built";
  if (plan->order_q.token.has_value() || plan->order_k.token.has_value()) return "orders are not built";
  if (!plan->by_query.has_runs() && plan->by_key.has_runs()) return "the plan has only by_key, this backend reads by_query; complete() the plan";
  return std::nullopt;
}

std::optional<std::string> refusal_of_operand(const char* name, const TensorView& view) {
  if (view.dtype() != Dtype::f32 && view.dtype() != Dtype::bf16) {
    return std::string(name) + " is " + std::string(tilewise::name(view.dtype())) + ", which is not built (has f32, bf16)";
  }
  if (view.device().type != Device::Type::cpu) return std::string(name) + " is not on the CPU";
  const int64_t channels = view.dim(view.rank() - 1);
  if (channels > 256) return std::string(name) + " has " + std::to_string(channels) + " channels, above 256";
  if (channels % 8 != 0) return std::string(name) + " has " + std::to_string(channels) + " channels, not a multiple of 8; pad with zeros";
  return std::nullopt;
}

std::vector<QueryBlock> cut_blocks(const PlanData& plan, int64_t batch, int heads) {
  const Lists& lists = plan.by_query;
  const int64_t slots = plan::slots_q(plan);
  const int64_t rows = plan::num_rows(lists, slots);
  std::vector<QueryBlock> blocks;
  for (int64_t b = 0; b < batch; ++b) {
    for (int head = 0; head < heads; ++head) {
      const size_t head_begin = blocks.size();
      for (int64_t row = 0; row < rows;) {
        const RowLists here(lists, b, head, heads, row);
        const int64_t first = plan::row_first(lists, row);
        int64_t last = plan::row_last(lists, row, slots), next = row + 1;
        // Short rows that read the same keys run as one block.
        while (next < rows && !here.has_rows() && last - first < kBlockLanes && plan::row_last(lists, next, slots) - first <= kBlockLanes &&
               here.equals(RowLists(lists, b, head, heads, next))) {
          last = plan::row_last(lists, next++, slots);
        }
        const int64_t keys = here.keys(plan.seqlen_k);
        for (int64_t slot = first; slot < last; slot += kBlockLanes) {
          blocks.push_back({.b = b,
                            .head = head,
                            .row = row,
                            .first = static_cast<int32_t>(slot),
                            .lanes = static_cast<int32_t>(std::min<int64_t>(kBlockLanes, last - slot)),
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

void set_band(const PlanData& plan, const QueryBlock& block, LaneBand& band) {
  const Mask::Band& rule = plan.mask.bands[static_cast<size_t>(plan::head_class(plan.mask, block.head))];
  band.sink = clamp(rule.sink);
  for (int i = 0; i < kBlockLanes; ++i) {
    const int64_t token = block.first + i + plan.seqlen_k - plan.seqlen_q;
    const bool is_real = i < block.lanes;
    band.first[i] = !is_real ? static_cast<int32_t>(kHighest) : rule.left == Mask::kAll ? static_cast<int32_t>(kLowest) : clamp(token - rule.left);
    band.last[i] = !is_real ? static_cast<int32_t>(kLowest) : rule.right == Mask::kAll ? static_cast<int32_t>(kHighest) : clamp(token + rule.right);
  }
}

int64_t cut_segments(const PlanData& plan, int heads, const QueryBlock& block, const LaneBand& band, bool by_run, std::vector<Segment>& segments) {
  segments.clear();
  const RowLists row(plan.by_query, block.b, block.head, heads, block.row);
  const Limits limits = limits_of(band, block.lanes);
  Cutter cutter(limits, segments);
  const uint64_t all = lane_bits(block.lanes);
  int64_t pairs = 0;
  const auto bits_of = [&](const plan::Runs& runs, int i) {
    return runs.rows == nullptr ? all : runs.rows[static_cast<int64_t>(i) * runs.words + block.offset / kBlockLanes] & all;
  };
  const auto take_whole = [&](int i, int32_t cell) {
    const int64_t stop = plan::run_stop(row.whole, i, row.grain_whole, plan.seqlen_k);
    pairs += block.lanes * (stop - row.whole.start[i]);
    cutter.add(row.whole.start[i], stop, all, cell, false);
  };
  const auto take_masked = [&](int i, int32_t cell) {
    const int64_t stop = plan::run_stop(row.masked, i, row.grain_masked, plan.seqlen_k);
    const uint64_t bits = bits_of(row.masked, i);
    pairs += std::popcount(bits) * (stop - row.masked.start[i]);
    if (bits != 0) cutter.add_masked(row.masked.start[i], stop, bits, cell);
  };
  const auto take_picked = [&](int i, int32_t cell) {
    const uint64_t bits = bits_of(row.picked, i);
    pairs += bits == all ? block.lanes : std::popcount(bits);
    if (bits != 0) cutter.add(row.picked.start[i], int64_t{row.picked.start[i]} + 1, bits, cell, false);
  };
  if (!by_run) {
    for (int i = 0; i < row.whole.count; ++i) take_whole(i, 0);
    for (int i = 0; i < row.masked.count; ++i) take_masked(i, 0);
    for (int i = 0; i < row.picked.count; ++i) take_picked(i, 0);
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
