// SPDX-License-Identifier: Apache-2.0
#include "tilewise/plan/complete.h"

#include <algorithm>
#include <array>
#include <iterator>
#include <map>
#include <span>
#include <utility>
#include <vector>

#include "tilewise/plan/axis.h"
#include "tilewise/plan/groups.h"
#include "tilewise/plan/mask_rule.h"
#include "tilewise/plan/pack.h"
#include "tilewise/plan/rows.h"

TILEWISE_BEGIN_PUBLIC

namespace {

using namespace tilewise::plan;

/// Rows of the direction to be made: `tile` slots each, cut at the parts of the axis.
struct NewRows {
  int tile;
  int64_t slots;
  std::vector<int32_t> edge;   // [T + 1]
  bool is_uniform = true;      // row i is [i * tile, ...)

  int64_t count() const { return static_cast<int64_t>(edge.size()) - 1; }
  int64_t of(int64_t slot) const {
    if (is_uniform) return slot / tile;
    return std::upper_bound(edge.begin(), edge.end(), static_cast<int32_t>(slot)) - edge.begin() - 1;
  }
};

NewRows cut_rows(int tile, const std::vector<int64_t>& parts) {
  NewRows rows{tile, parts.back(), {0}, parts.size() <= 2};
  for (size_t part = 0; part + 1 < parts.size(); ++part) {
    for (int64_t slot = parts[part]; slot < parts[part + 1]; slot += tile) {
      rows.edge.push_back(static_cast<int32_t>(std::min<int64_t>(slot + tile, parts[part + 1])));
    }
  }
  return rows;
}

/// The rows at hand that read every slot of the new row at which a sweep stands. Neighbours that read it alike are kept as one segment, so that
/// a new row costs what its list is long, not how many rows read it.
class Readers {
 public:
  struct Segment {
    int64_t last;  // row past it
    bool is_tested;
  };

  /// `joins_before`: the row may be one run with the row before it; `joins_after`: with the row behind it.
  void insert(int64_t row, bool is_tested, bool joins_before, bool joins_after) {
    auto after = segments_.lower_bound(row);
    int64_t last = row + 1;
    if (joins_after && after != segments_.end() && after->first == row + 1 && after->second.is_tested == is_tested) {
      last = after->second.last;
      after = segments_.erase(after);
    }
    if (joins_before && after != segments_.begin()) {
      const auto before = std::prev(after);
      if (before->second.last == row && before->second.is_tested == is_tested) {
        before->second.last = last;
        return;
      }
    }
    segments_.emplace_hint(after, row, Segment{last, is_tested});
  }

  void erase(int64_t row) {
    const auto at = std::prev(segments_.upper_bound(row));
    const Segment whole = at->second;
    if (at->first == row) {
      segments_.erase(at);
    } else {
      at->second.last = row;
    }
    if (row + 1 < whole.last) segments_.emplace(row + 1, whole);
  }

  const std::map<int64_t, Segment>& segments() const { return segments_; }

 private:
  std::map<int64_t, Segment> segments_;  // by first row
};

/// Transposes the lists of one batch entry and group of heads. "Row" is a row at hand, over axis `from`; `to` is the axis of the rows to be made.
/// A sweep over the new rows: each row at hand waits at the next new row where what it reads begins, ends or covers a part of it only.
class Transposer {
 public:
  Transposer(const PlanData& data, bool is_by_query, const NewRows& rows, int64_t b, int head, std::vector<int> heads_of_mask)
      : data_(data),
        lists_(is_by_query ? data.by_query : data.by_key),
        kinds_{&lists_.whole, &lists_.masked, &lists_.picked},
        is_by_query_(is_by_query),
        rows_(rows),
        rule_(data, b, std::move(heads_of_mask)),
        from_(is_by_query ? Axis::of_queries(data, b, head) : Axis::of_keys(data, b, head)),
        to_(is_by_query ? Axis::of_keys(data, b, head) : Axis::of_queries(data, b, head)),
        states_(static_cast<size_t>(num_rows(lists_, from_.slots()))),
        waiting_(static_cast<size_t>(rows.count()), -1) {
    for (size_t row = 0; row < states_.size(); ++row) {
      for (size_t list = 0; list < 3; ++list) states_[row].lists[list] = runs_of(*kinds_[list], b, head, data.heads_q, static_cast<int64_t>(row));
    }
  }

  Packer run(const Context& context) {
    Packer packer(rows_.tile, 1, 1, rows_.count(), part_ends(data_, is_by_query_ ? Direction::by_key : Direction::by_query));
    for (int64_t row = 0; row < static_cast<int64_t>(states_.size()); ++row) {
      if (row % 1024 == 0) context.check_cancel();
      const Run run = next_run(row);
      if (run.start < run.stop) wait(row, rows_.of(run.start));
    }
    bool is_ragged = false;  // some row read a part of the new row before
    for (to_row_ = 0; to_row_ < rows_.count(); ++to_row_) {
      if (to_row_ % 64 == 0) context.check_cancel();
      const int64_t slots_before = to_last_ - to_first_;
      to_first_ = rows_.edge[static_cast<size_t>(to_row_)];
      to_last_ = rows_.edge[static_cast<size_t>(to_row_) + 1];
      if (to_row_ > 0 && !is_ragged && waiting_[static_cast<size_t>(to_row_)] < 0 && to_last_ - to_first_ == slots_before) {
        packer.share(to_row_, to_row_ - 1);
        continue;
      }
      made_.clear();
      is_ragged = false;
      due_.clear();
      for (int64_t row = waiting_[static_cast<size_t>(to_row_)]; row >= 0; row = states_[static_cast<size_t>(row)].next) due_.push_back(row);
      // Rows that began to wait together come back in reverse.
      if (due_.size() > 1 && due_.front() > due_.back()) std::reverse(due_.begin(), due_.end());
      if (!std::is_sorted(due_.begin(), due_.end())) std::sort(due_.begin(), due_.end());
      for (const int64_t row : due_) is_ragged = advance(row) || is_ragged;
      auto before = sizes();
      for (const auto& [row, segment] : readers_.segments()) {
        write_run(row_first(lists_, row), row_last(lists_, segment.last - 1, from_.slots()), bits_between(0, to_last_ - to_first_),
                  segment.is_tested);
      }
      merge(before);
      before = sizes();
      for (const auto& [row, reader] : slotwise_readers_) {
        for (const auto& [first, last] : reader.slots) write_run(first, last, bits_between(0, to_last_ - to_first_), reader.is_tested);
      }
      merge(before);
      packer.add(to_row_, to_last_ - to_first_, made_);
    }
    return packer;
  }

 private:
  /// A run of a row at hand, or the part of one that lies in the new row.
  struct Run {
    int64_t start = 0, stop = 0;
    const uint64_t* bits = nullptr;  // slots of the row at hand that read it; null: all
    bool is_tested = false;
    size_t list = 0;
  };
  /// Where the sweep is in the lists of a row at hand.
  struct State {
    std::array<Runs, 3> lists;    // whole, masked, picked
    std::array<int32_t, 3> at{};  // run that comes next, of each list
    enum class Reads : uint8_t { nothing, all, slotwise } reads = Reads::nothing;  // of every slot of the new row
    int64_t next = -1;                                                           // row that waits with it
  };

  void wait(int64_t row, int64_t to_row) {
    if (to_row >= rows_.count()) return;
    states_[static_cast<size_t>(row)].next = waiting_[static_cast<size_t>(to_row)];
    waiting_[static_cast<size_t>(to_row)] = row;
  }

  /// The first run of the row that the sweep has not passed; empty: none is left.
  Run next_run(int64_t row) const {
    const State& state = states_[static_cast<size_t>(row)];
    Run first;
    first.start = to_.slots();
    for (size_t list = 0; list < 3; ++list) {
      const Runs& runs = state.lists[list];
      const int i = state.at[list];
      if (i >= runs.count || runs.start[i] >= first.start) continue;
      first.start = runs.start[i];
      first.list = list;
    }
    const Runs& runs = state.lists[first.list];
    const int i = state.at[first.list];
    if (first.start == to_.slots()) return {};
    first.stop = run_stop(runs, i, kinds_[first.list]->grain, is_by_query_ ? part_end(data_, first.start) : to_.slots());
    first.bits = runs.rows == nullptr ? nullptr : runs.rows + static_cast<int64_t>(i) * runs.words;
    first.is_tested = first.list == static_cast<size_t>(Kind::masked);
    return first;
  }

  /// Takes in what the row reads of the new row and lets it wait for the next change. Returns whether it reads a part only.
  bool advance(int64_t row) {
    State& state = states_[static_cast<size_t>(row)];
    if (state.reads == State::Reads::all) readers_.erase(row);
    if (state.reads == State::Reads::slotwise) slotwise_readers_.erase(row);
    state.reads = State::Reads::nothing;
    parts_.clear();
    Run run = next_run(row);
    for (; run.start < run.stop && run.start < to_last_; run = next_run(row)) {
      if (run.start >= to_first_) check_run(row, run);
      Run part = run;
      part.start = std::max(run.start, to_first_);
      part.stop = std::min(run.stop, to_last_);
      if (part.start < part.stop) parts_.push_back(part);
      if (run.stop > to_last_) break;
      ++state.at[run.list];
    }
    const bool is_all = parts_.size() == 1 && parts_[0].start == to_first_ && parts_[0].stop == to_last_;
    const bool goes_on = run.start < run.stop && run.start < to_last_;
    if (goes_on && is_all) {
      wait(row, end_row(run.stop));  // up to there it covers every new row
    } else if (goes_on || is_all) {
      wait(row, to_row_ + 1);
    } else if (run.start < run.stop) {
      wait(row, rows_.of(run.start));
    }
    if (is_all && reads_alike(row, parts_[0])) {
      state.reads = State::Reads::all;
      readers_.insert(row, parts_[0].is_tested, may_join(row), row + 1 < static_cast<int64_t>(states_.size()) && may_join(row + 1));
    } else if (is_all) {
      state.reads = State::Reads::slotwise;
      slotwise_readers_[row] = {slots_of(row, parts_[0]), parts_[0].is_tested};
    } else if (!parts_.empty()) {
      write_cell(row, parts_);
    }
    return !is_all && !parts_.empty();
  }

  int64_t end_row(int64_t stop) const { return stop >= rows_.slots ? rows_.count() : rows_.of(stop); }

  void check_run(int64_t row, const Run& run) const {
    if (run.is_tested) return;
    const int64_t first = row_first(lists_, row), last = row_last(lists_, row, from_.slots());
    if (is_by_query_) {
      rule_.check_rectangle(from_, first, last, run.bits, to_, run.start, run.stop);
    } else {
      rule_.check_rectangle_by_key(to_, run.start, run.stop, from_, first, last, run.bits);
    }
  }

  /// Whether all slots of the row read the run. A key's padding slot has nothing to be read: a run of by_query that held it would have to be masked.
  bool reads_alike(int64_t row, const Run& run) const {
    const int64_t first = row_first(lists_, row), last = row_last(lists_, row, from_.slots());
    return run.bits == nullptr && (is_by_query_ || from_.real(first, last) == last - first);
  }

  /// Whether a slot of the row is real and reads the run.
  bool reads_run(int64_t first, int64_t slot, const Run& run) const {
    const int64_t bit = slot - first;
    const bool has_bit = run.bits == nullptr || ((run.bits[bit / 64] >> (bit % 64)) & 1) != 0;
    return has_bit && (is_by_query_ || from_.token(slot) >= 0);
  }

  /// Those that do, as ranges.
  std::vector<std::pair<int64_t, int64_t>> slots_of(int64_t row, const Run& run) const {
    const int64_t first = row_first(lists_, row), last = row_last(lists_, row, from_.slots());
    std::vector<std::pair<int64_t, int64_t>> ranges;
    for (int64_t slot = first; slot < last; ++slot) {
      if (!reads_run(first, slot, run)) continue;
      if (ranges.empty() || ranges.back().second != slot) ranges.emplace_back(slot, slot);
      ++ranges.back().second;
    }
    return ranges;
  }

  /// Whether the row may be one run with the row before it: no pool begins there.
  bool may_join(int64_t row) const {
    const int64_t first = row_first(lists_, row);
    return is_by_query_ || first == 0 || part_end(data_, first - 1) == part_end(data_, first);
  }

  /// What the row at hand reads of the new row.
  void write_cell(int64_t row, std::span<const Run> parts) {
    const int64_t first = row_first(lists_, row), last = row_last(lists_, row, from_.slots());
    bool is_tested = false, is_alike = true;
    for (const Run& part : parts) {
      is_tested = is_tested || part.is_tested;
      is_alike = is_alike && reads_alike(row, part);
    }
    const auto slots = static_cast<size_t>(is_alike ? 1 : last - first);  // else one word set a slot
    bits_.assign(slots, RowBits{});
    for (const Run& part : parts) {
      const RowBits bits = bits_between(part.start - to_first_, part.stop - to_first_);
      for (size_t slot = 0; slot < slots; ++slot) {
        if (!is_alike && !reads_run(first, first + static_cast<int64_t>(slot), part)) continue;
        for (size_t word = 0; word < kMaxWords; ++word) bits_[slot][word] |= bits[word];
      }
    }
    if (is_alike) {
      write_run(first, last, bits_[0], is_tested);
      return;
    }
    for (size_t slot = 0; slot < slots;) {
      size_t end = slot + 1;
      while (end < slots && bits_[slot] == bits_[end]) ++end;
      if (bits_[slot] != RowBits{}) write_run(first + static_cast<int64_t>(slot), first + static_cast<int64_t>(end), bits_[slot], is_tested);
      slot = end;
    }
  }

  std::array<size_t, 3> sizes() const { return {made_.lists[0].size(), made_.lists[1].size(), made_.lists[2].size()}; }

  /// Each list ascends up to `middle` and from there on.
  void merge(const std::array<size_t, 3>& middle) {
    for (size_t kind = 0; kind < 3; ++kind) {
      std::vector<PackedRun>& runs = made_.lists[kind];
      if (middle[kind] == 0 || middle[kind] == runs.size()) continue;
      std::inplace_merge(runs.begin(), runs.begin() + static_cast<int64_t>(middle[kind]), runs.end(),
                         [](const PackedRun& a, const PackedRun& b) { return a.start < b.start; });
    }
  }

  void write_run(int64_t start, int64_t stop, const RowBits& bits, bool is_tested) {
    const RowBits all = bits_between(0, to_last_ - to_first_);
    bool is_full = true;  // every real slot of the new row
    for (int64_t slot = 0; bits != all && is_full && slot < to_last_ - to_first_; ++slot) {
      is_full = ((bits[static_cast<size_t>(slot / 64)] >> (slot % 64)) & 1) != 0 || to_.token(to_first_ + slot) < 0;
    }
    made_.list(is_full && !is_tested ? Kind::whole : Kind::masked)
        .push_back({static_cast<int32_t>(start), static_cast<int32_t>(stop), is_full ? all : bits});
  }

  const PlanData& data_;
  const Lists& lists_;
  const std::array<const RunList*, 3> kinds_;
  const bool is_by_query_;
  const NewRows& rows_;
  const MaskRule rule_;
  const Axis from_, to_;
  std::vector<State> states_;  // of each row at hand
  std::vector<int64_t> waiting_;  // for each new row, the first row at hand that waits for it, or -1
  Readers readers_;
  /// A row that reads every slot of the new row too, but not with all of its own.
  struct SlotwiseReader {
    std::vector<std::pair<int64_t, int64_t>> slots;
    bool is_tested;
  };
  std::map<int64_t, SlotwiseReader> slotwise_readers_;
  int64_t to_row_ = 0, to_first_ = 0, to_last_ = 0;
  std::vector<int64_t> due_;
  PackedRow made_;
  std::vector<Run> parts_;
  std::vector<RowBits> bits_;
};

}  // namespace

Plan complete(const Plan& plan, Context& context, int tile) {
  check(plan != nullptr, Error::Kind::value, "complete: the plan is null; make one with a method or load one");
  const bool has_queries = plan->by_query.has_runs(), has_keys = plan->by_key.has_runs();
  if (has_queries && has_keys) return plan;
  const bool is_by_query = !has_keys;  // the direction at hand; of a plan that reads nothing, by_query
  const Lists& lists = is_by_query ? plan->by_query : plan->by_key;
  if (tile == 0) tile = lists.tile;
  check(tile >= 16 && tile <= 256, Error::Kind::value, "complete: tile ", tile, " is outside 16 to 256");

  PlanData data = share(plan);
  data.is_by_key = !is_by_query;
  const NewRows rows = cut_rows(tile, is_by_query ? part_edges(*plan) : std::vector<int64_t>{0, slots_q(*plan)});
  std::vector<TensorView> views{lists.whole.begin, lists.whole.count, lists.masked.begin, lists.masked.count, lists.picked.begin, lists.picked.count};
  // Padding decides which runs need bits, so groups follow the orders as well.
  views.push_back(plan->order_q.token);
  views.push_back(plan->order_k.token);
  const Groups groups = common_groups(views, plan->heads_q);
  std::vector<Packer> parts(static_cast<size_t>(groups.total()), Packer(tile, 1, 1, 0, {}));
  context.parallel_for(groups.total(), [&](int64_t item, int) {
    const int64_t b = item / groups.groups;
    const int g = static_cast<int>(item % groups.groups);
    Transposer transposer(*plan, is_by_query, rows, b, first_head(g, groups.groups, plan->heads_q), mask_heads(*plan, g, groups.groups));
    parts[static_cast<size_t>(item)] = transposer.run(context);
  });
  if (!has_queries && !has_keys) {  // says so in both directions, and by_query stays the one that was planned
    const int64_t count = num_rows(lists, slots_q(*plan));
    data.by_query.whole = Packer(lists.tile, 1, 1, count, part_ends(*plan, Direction::by_query)).finish({}, context.memory, data).whole;
  }
  Lists& made = is_by_query ? data.by_key : data.by_query;
  Packer packer(tile, groups.batch, groups.groups, rows.count(), part_ends(*plan, is_by_query ? Direction::by_key : Direction::by_query));
  for (size_t item = 0; item < parts.size(); ++item) packer.append(static_cast<int64_t>(item) * rows.count(), parts[item]);
  made = packer.finish(rows.is_uniform ? std::vector<int32_t>{} : rows.edge, context.memory, data);
  return std::make_shared<const PlanData>(std::move(data));
}

TILEWISE_END_PUBLIC
