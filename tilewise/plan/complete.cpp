// SPDX-License-Identifier: Apache-2.0
#include "tilewise/plan/complete.h"

#include <algorithm>
#include <vector>

#include "tilewise/plan/axis.h"
#include "tilewise/plan/collector.h"
#include "tilewise/plan/mask.h"
#include "tilewise/plan/mask_rule.h"
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

/// Transposes the lists of one batch entry and group of heads. "Row" is a row at hand, over axis `from`; `to` is the axis of the rows to be made.
class Transposer {
 public:
  Transposer(const PlanData& data, bool is_by_query, const NewRows& rows, int64_t b, int head, std::vector<int> heads_of_mask)
      : data_(data),
        lists_(is_by_query ? data.by_query : data.by_key),
        is_by_query_(is_by_query),
        rows_(rows),
        b_(b),
        head_(head),
        rule_(data, b, std::move(heads_of_mask)),
        from_(is_by_query ? Axis::of_queries(data, b, head) : Axis::of_keys(data, b, head)),
        to_(is_by_query ? Axis::of_keys(data, b, head) : Axis::of_queries(data, b, head)),
        words_((rows.tile + 63) / 64),
        collector_(rows.count(), words_) {}

  RunCollector run(const Context& context) {
    for (int64_t row = 0; row < num_rows(lists_, from_.slots()); ++row) {
      if (row % 64 == 0) context.check_cancel();
      first_ = row_first(lists_, row);
      last_ = row_last(lists_, row, from_.slots());
      gather(row);
      for (size_t i = 0; i < pieces_.size();) {
        size_t end = i;
        while (end < pieces_.size() && pieces_[end].to_row == pieces_[i].to_row) ++end;
        write_cell({pieces_.begin() + static_cast<int64_t>(i), pieces_.begin() + static_cast<int64_t>(end)});
        i = end;
      }
    }
    return std::move(collector_);
  }

 private:
  /// The part of a run that lies in one new row.
  struct Piece {
    int64_t to_row, start, stop;
    const uint64_t* bits;  // slots of the row at hand that read it; null: all
    bool is_tested;
  };

  void gather(int64_t row) {
    pieces_.clear();
    for (const RunList* list : {&lists_.whole, &lists_.masked, &lists_.picked}) {
      const Runs runs = runs_of(*list, b_, head_, data_.heads_q, row);
      for (int i = 0; i < runs.count; ++i) {
        const int64_t start = runs.start[i];
        const int64_t stop = run_stop(runs, i, list->grain, is_by_query_ ? part_end(data_, start) : to_.slots());
        const uint64_t* bits = runs.rows == nullptr ? nullptr : runs.rows + static_cast<int64_t>(i) * runs.words;
        const bool is_tested = list == &lists_.masked;
        if (!is_tested) {
          if (is_by_query_) {
            rule_.check_rectangle(from_, first_, last_, bits, to_, start, stop);
          } else {
            rule_.check_rectangle_by_key(to_, start, stop, from_, first_, last_, bits);
          }
        }
        for (int64_t to_row = rows_.of(start), at = start; at < stop; ++to_row) {
          const int64_t end = std::min<int64_t>(stop, rows_.edge[static_cast<size_t>(to_row + 1)]);
          if (end > at) pieces_.push_back({to_row, at, end, bits, is_tested});
          at = std::max(at, end);
        }
      }
    }
    std::stable_sort(pieces_.begin(), pieces_.end(), [](const Piece& a, const Piece& c) { return a.to_row < c.to_row; });
  }

  /// What the row at hand reads of one new row.
  void write_cell(std::span<const Piece> pieces) {
    const int64_t to_row = pieces[0].to_row, to_first = rows_.edge[static_cast<size_t>(to_row)];
    const auto words = static_cast<size_t>(words_);
    bool is_tested = false, has_bits = false;
    for (const Piece& piece : pieces) {
      is_tested = is_tested || piece.is_tested;
      has_bits = has_bits || piece.bits != nullptr;
    }
    if (!has_bits && (is_by_query_ || from_.real(first_, last_) == last_ - first_)) {
      bits_.assign(words, 0);
      for (const Piece& piece : pieces) set_bits(bits_, piece.start - to_first, piece.stop - to_first);
      write_run(to_row, first_, last_, {bits_.data(), words}, is_tested);
      return;
    }
    const auto slots = static_cast<size_t>(last_ - first_);
    bits_.assign(slots * words, 0);
    for (const Piece& piece : pieces) {
      for (size_t slot = 0; slot < slots; ++slot) {
        const bool is_read = piece.bits == nullptr || ((piece.bits[slot / 64] >> (slot % 64)) & 1) != 0;
        // A key's padding slot has nothing to be read; a run of by_query that held it would have to be masked.
        if (!is_read || (!is_by_query_ && from_.token(first_ + static_cast<int64_t>(slot)) < 0)) continue;
        set_bits({bits_.data() + slot * words, words}, piece.start - to_first, piece.stop - to_first);
      }
    }
    const auto of = [&](size_t slot) { return std::span<const uint64_t>(bits_.data() + slot * words, words); };
    for (size_t slot = 0; slot < slots;) {
      size_t end = slot + 1;
      while (end < slots && std::equal(of(slot).begin(), of(slot).end(), of(end).begin())) ++end;
      if (std::any_of(of(slot).begin(), of(slot).end(), [](uint64_t word) { return word != 0; })) {
        write_run(to_row, first_ + static_cast<int64_t>(slot), first_ + static_cast<int64_t>(end), of(slot), is_tested);
      }
      slot = end;
    }
  }

  void write_run(int64_t to_row, int64_t start, int64_t stop, std::span<const uint64_t> bits, bool is_tested) {
    const int64_t to_first = rows_.edge[static_cast<size_t>(to_row)], to_last = rows_.edge[static_cast<size_t>(to_row + 1)];
    bool is_full = true;  // every real slot of the new row
    for (int64_t slot = to_first; is_full && slot < to_last; ++slot) {
      const auto at = static_cast<size_t>(slot - to_first);
      is_full = ((bits[at / 64] >> (at % 64)) & 1) != 0 || to_.token(slot) < 0;
    }
    const bool may_join = is_by_query_ || start == 0 || part_end(data_, start - 1) == part_end(data_, start);
    if (is_full) {
      collector_.add(to_row, is_tested ? Kind::masked : Kind::whole, start, stop, {}, may_join);
    } else {
      collector_.add(to_row, Kind::masked, start, stop, bits, may_join);
    }
  }

  const PlanData& data_;
  const Lists& lists_;
  const bool is_by_query_;
  const NewRows& rows_;
  const int64_t b_;
  const int head_;
  const MaskRule rule_;
  const Axis from_, to_;
  const int words_;
  RunCollector collector_;
  int64_t first_ = 0, last_ = 0;
  std::vector<Piece> pieces_;
  std::vector<uint64_t> bits_;
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
  const NewRows rows = cut_rows(tile, is_by_query ? part_edges(*plan) : std::vector<int64_t>{0, slots_q(*plan)});
  std::vector<TensorView> views{lists.whole.begin, lists.whole.count, lists.masked.begin, lists.masked.count, lists.picked.begin, lists.picked.count};
  // Padding decides which runs need bits, so groups follow the orders as well.
  views.push_back(plan->order_q.token);
  views.push_back(plan->order_k.token);
  const Groups groups = common_groups(views, plan->heads_q);
  const auto total = groups.batch * groups.groups;
  std::vector<RunCollector> collectors(static_cast<size_t>(total), RunCollector(0, 1));
  context.parallel_for(total, [&](int64_t item, int) {
    const int64_t b = item / groups.groups;
    const int g = static_cast<int>(item % groups.groups);
    Transposer transposer(*plan, is_by_query, rows, b, first_head(g, groups.groups, plan->heads_q), mask_heads(*plan, g, groups.groups));
    collectors[static_cast<size_t>(item)] = transposer.run(context);
  });
  Lists& made = is_by_query ? data.by_key : data.by_query;
  made = pack(collectors, groups.batch, tile, rows.is_uniform ? std::vector<int32_t>{} : rows.edge, context.memory, data);
  return std::make_shared<const PlanData>(std::move(data));
}

TILEWISE_END_PUBLIC
