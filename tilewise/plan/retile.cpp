// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <utility>
#include <vector>

#include "tilewise/plan/axis.h"
#include "tilewise/plan/complete.h"
#include "tilewise/plan/groups.h"
#include "tilewise/plan/mask_rule.h"
#include "tilewise/plan/pack.h"
#include "tilewise/plan/recut.h"
#include "tilewise/plan/rows.h"

TILEWISE_BEGIN_PUBLIC

namespace {

using namespace tilewise::plan;

/// A row to be made: slots [first, last), from the old rows [from, to).
struct NewRow {
  int64_t first, last, from, to;
};

std::vector<NewRow> cut_or_join(const Lists& lists, int tile, int64_t slots, const std::vector<int64_t>& parts) {
  std::vector<NewRow> rows;
  const auto part_of = [&](int64_t slot) { return std::upper_bound(parts.begin(), parts.end(), slot) - parts.begin(); };
  for (int64_t old = 0; old < num_rows(lists, slots); ++old) {
    const int64_t first = row_first(lists, old), last = row_last(lists, old, slots);
    // Joining: only whole old rows of the same part, and only where rows are to grow.
    if (tile > lists.tile && !rows.empty() && last - rows.back().first <= tile && part_of(rows.back().first) == part_of(last - 1)) {
      rows.back().last = last;
      rows.back().to = old + 1;
      continue;
    }
    for (int64_t slot = first; slot < last; slot += tile) rows.push_back({slot, std::min<int64_t>(slot + tile, last), old, old + 1});
    if (first == last) rows.push_back({first, last, old, old + 1});
  }
  return rows;
}

std::vector<NewRow> cut_at(const Lists& lists, const std::vector<int32_t>& edge, int64_t slots) {
  std::vector<NewRow> rows;
  int64_t old = 0;
  for (size_t i = 0; i + 1 < edge.size(); ++i) {
    while (row_last(lists, old, slots) <= edge[i]) ++old;
    rows.push_back({edge[i], edge[i + 1], old, old + 1});
  }
  return rows;
}

std::vector<int32_t> edges_of(const std::vector<NewRow>& rows, int tile, int64_t slots) {
  std::vector<int32_t> edge{0};
  for (const NewRow& row : rows) edge.push_back(static_cast<int32_t>(row.last));
  return unless_uniform(std::move(edge), tile, slots);
}

/// Rewrites one direction of a plan.
class Retiler {
 public:
  Retiler(const PlanData& data, bool is_by_query, int tile, const std::vector<int32_t>& edge = {})
      : data_(data),
        lists_(is_by_query ? data.by_query : data.by_key),
        is_by_query_(is_by_query),
        tile_(tile),
        slots_(is_by_query ? slots_q(data) : slots_k_with_pools(data)),
        rows_(!edge.empty() ? cut_at(lists_, edge, slots_)
                            : cut_or_join(lists_, tile, slots_, is_by_query ? std::vector<int64_t>{0, slots_} : part_edges(data))),
        edge_(edges_of(rows_, tile, slots_)) {}

  Lists run(PlanData& out, Context& context) const { return tile_ > lists_.tile ? coarsen(out, context) : refine(out, context); }

  Lists refine(PlanData& out, Context& context) const {
    Lists made;
    made.tile = tile_;
    if (!edge_.empty()) {
      made.edge = keep(out, Tensor(context.memory, Dtype::i32, {static_cast<int64_t>(edge_.size())}));
      std::copy(edge_.begin(), edge_.end(), made.edge.data<int32_t>());
    }
    made.whole = refine_list(lists_.whole, Kind::whole, out, context);
    made.masked = refine_list(lists_.masked, Kind::masked, out, context);
    made.picked = refine_list(lists_.picked, Kind::picked, out, context);
    return made;
  }

 private:
  int64_t stop_of(const Runs& runs, int i, int grain) const {
    return run_stop(runs, i, grain, is_by_query_ ? part_end(data_, runs.start[i]) : slots_q(data_));
  }

  RunList refine_list(const RunList& list, Kind kind, PlanData& out, Context& context) const {
    if (!list.has_runs()) return {};
    if (list.rows.has_value()) return rewrite(list, kind, out, context);
    RunList made = list;  // the same runs; only more rows point at them
    const auto spread = [&]<class T>(const TensorView& from, T) {
      Tensor to(context.memory, kDtypeOf<T>, {from.dim(0), from.dim(1), static_cast<int64_t>(rows_.size())});
      for (int64_t b = 0; b < from.dim(0); ++b) {
        for (int64_t g = 0; g < from.dim(1); ++g) {
          for (size_t i = 0; i < rows_.size(); ++i) to.view.at<T>(b, g, static_cast<int64_t>(i)) = from.at<T>(b, g, rows_[i].from);
        }
      }
      return keep(out, std::move(to));
    };
    made.begin = spread(list.begin, int64_t{});
    made.count = spread(list.count, int32_t{});
    return made;
  }

  /// A list with `rows`: each finer row keeps the runs that one of its slots reads.
  RunList rewrite(const RunList& list, Kind kind, PlanData& out, Context& context) const {
    const TensorView views[] = {list.begin, list.count};
    const Groups groups = common_groups(views, data_.heads_q);
    const Packer packer = pack_each(groups, context, [&](int64_t b, int g, Packer& part) {
      const int head = first_head(g, groups.groups, data_.heads_q);
      std::vector<PackedRun> made;
      for (size_t row = 0; row < rows_.size(); ++row) {
        const Runs runs = runs_of(list, b, head, data_.heads_q, rows_[row].from);
        const int64_t offset = rows_[row].first - row_first(lists_, rows_[row].from);
        const int64_t length = rows_[row].last - rows_[row].first;
        made.clear();
        for (int i = 0; i < runs.count; ++i) {
          const RowBits bits = moved_bits(runs, i, offset, length, 0);
          if (bits == RowBits{}) continue;
          const int64_t stop = kind == Kind::picked ? runs.start[i] + 1 : stop_of(runs, i, list.grain);
          made.push_back({runs.start[i], static_cast<int32_t>(stop), bits});
        }
        part.add(kind, static_cast<int64_t>(row), length, made);
      }
    });
    const Lists packed = packer.finish({}, context.memory, out);
    return kind == Kind::masked ? packed.masked : packed.picked;
  }

  /// Fills a Packer for each group of heads, in parallel, and appends them.
  template <class Fill>
  Packer pack_each(const Groups& groups, Context& context, const Fill& fill) const {
    const std::vector<int64_t> ends = part_ends(data_, is_by_query_ ? Direction::by_query : Direction::by_key);
    const auto count = static_cast<int64_t>(rows_.size());
    std::vector<Packer> parts(static_cast<size_t>(groups.total()), Packer(tile_, 1, 1, count, ends));
    context.parallel_for(groups.total(), [&](int64_t item, int) {
      fill(item / groups.groups, static_cast<int>(item % groups.groups), parts[static_cast<size_t>(item)]);
    });
    Packer all(tile_, groups.batch, groups.groups, count, ends);
    for (size_t item = 0; item < parts.size(); ++item) all.append(static_cast<int64_t>(item) * count, parts[item]);
    return all;
  }

  /// A run of an old row inside a coarser one.
  struct Piece {
    int64_t start, stop;
    int64_t offset, length;  // the old row's place among the new row's slots
    const uint64_t* bits;  // slots of the old row that read it; null: all
    RowBits bits_in_row;   // slots of the new row that do
    Kind kind;
  };

  Lists coarsen(PlanData& out, Context& context) const {
    std::vector<TensorView> views;
    for (const RunList* list : {&lists_.whole, &lists_.masked, &lists_.picked}) {
      views.push_back(list->begin);
      views.push_back(list->count);
    }
    // Heads of one list may differ in order: the mask is asked about the tokens of each.
    views.push_back(data_.order_q.token);
    views.push_back(data_.order_k.token);
    const Groups groups = common_groups(views, data_.heads_q);
    const Packer packer = pack_each(groups, context, [&](int64_t b, int g, Packer& part) {
      const int head = first_head(g, groups.groups, data_.heads_q);
      const MaskRule rule(data_, b, mask_heads(data_, g, groups.groups));
      const Axis queries = Axis::of_queries(data_, b, head), keys = Axis::of_keys(data_, b, head);
      for (size_t row = 0; row < rows_.size(); ++row) {
        PackedRow made = coarsen_row(rows_[row], b, head, rule, queries, keys);
        part.add(static_cast<int64_t>(row), rows_[row].last - rows_[row].first, made);
      }
    });
    return packer.finish(edge_, context.memory, out);
  }

  PackedRow coarsen_row(const NewRow& row, int64_t b, int head, const MaskRule& rule, const Axis& queries, const Axis& keys) const {
    std::vector<Piece> pieces;
    std::vector<int64_t> cuts;
    const std::pair<const RunList*, Kind> kinds[] = {{&lists_.whole, Kind::whole}, {&lists_.masked, Kind::masked}, {&lists_.picked, Kind::picked}};
    for (int64_t old = row.from; old < row.to; ++old) {
      const int64_t first = row_first(lists_, old), last = row_last(lists_, old, slots_);
      for (const auto& [list, kind] : kinds) {
        const Runs runs = runs_of(*list, b, head, data_.heads_q, old);
        for (int i = 0; i < runs.count; ++i) {
          const int64_t start = runs.start[i], stop = kind == Kind::picked ? start + 1 : stop_of(runs, i, list->grain);
          const uint64_t* bits = runs.rows == nullptr ? nullptr : runs.rows + static_cast<int64_t>(i) * runs.words;
          pieces.push_back({start, stop, first - row.first, last - first, bits, moved_bits(runs, i, 0, last - first, first - row.first), kind});
          cuts.push_back(start);
          cuts.push_back(stop);
        }
      }
    }
    std::sort(pieces.begin(), pieces.end(), [](const Piece& a, const Piece& c) { return a.start < c.start; });
    std::sort(cuts.begin(), cuts.end());
    cuts.erase(std::unique(cuts.begin(), cuts.end()), cuts.end());

    const RowBits full = bits_between(0, row.last - row.first);
    PackedRow made;
    std::vector<const Piece*> active;
    size_t next = 0;
    for (size_t cut = 0; cut + 1 < cuts.size(); ++cut) {
      const int64_t start = cuts[cut], stop = cuts[cut + 1];
      std::erase_if(active, [&](const Piece* piece) { return piece->stop <= start; });
      while (next < pieces.size() && pieces[next].start == start) active.push_back(&pieces[next++]);
      if (active.empty()) continue;
      RowBits bits{};
      bool is_tested = false, is_picked = true;
      for (const Piece* piece : active) {
        is_tested = is_tested || piece->kind == Kind::masked;
        is_picked = is_picked && piece->kind == Kind::picked;
        for (size_t word = 0; word < kMaxWords; ++word) bits[word] |= piece->bits_in_row[word];
      }
      const Kind kind = is_picked ? Kind::picked : bits == full && !is_tested ? Kind::whole : Kind::masked;
      made.list(kind).push_back({static_cast<int32_t>(start), static_cast<int32_t>(stop), bits});
      if (kind != Kind::masked) continue;
      for (const Piece* piece : active) {
        if (piece->kind != Kind::masked) check_moved(*piece, row, start, stop, rule, queries, keys);
      }
    }
    return made;
  }

  /// Untested pairs that become tested ones must pass the test.
  void check_moved(const Piece& piece, const NewRow& row, int64_t start, int64_t stop, const MaskRule& rule, const Axis& queries,
                   const Axis& keys) const {
    const int64_t first = row.first + piece.offset, last = first + piece.length;
    if (is_by_query_) {
      rule.check_rectangle(queries, first, last, piece.bits, keys, start, stop);
    } else {
      rule.check_rectangle_by_key(queries, start, stop, keys, first, last, piece.bits);
    }
  }

  const PlanData& data_;
  const Lists& lists_;
  const bool is_by_query_;
  const int tile_;
  const int64_t slots_;
  const std::vector<NewRow> rows_;
  const std::vector<int32_t> edge_;
};

}  // namespace

TILEWISE_END_PUBLIC

namespace tilewise::plan {

std::vector<int32_t> common_edges(std::span<const Lists* const> lists, int64_t slots) {
  std::vector<int32_t> edge{0};
  for (const Lists* one : lists) {
    for (int64_t row = 0; row < num_rows(*one, slots); ++row) edge.push_back(static_cast<int32_t>(row_last(*one, row, slots)));
  }
  std::sort(edge.begin(), edge.end());
  edge.erase(std::unique(edge.begin(), edge.end()), edge.end());
  return edge;
}

std::vector<int32_t> unless_uniform(std::vector<int32_t> edge, int tile, int64_t slots) {
  bool is_uniform = true;
  for (size_t i = 0; i + 1 < edge.size() && is_uniform; ++i) {
    const int64_t first = static_cast<int64_t>(i) * tile;
    is_uniform = edge[i] == first && edge[i + 1] == std::min<int64_t>(slots, first + tile);
  }
  if (is_uniform) edge.clear();
  return edge;
}

Lists recut(const PlanData& data, Direction direction, const std::vector<int32_t>& edge, int tile, PlanData& out, Context& context) {
  return Retiler(data, direction == Direction::by_query, tile, edge).refine(out, context);
}

}  // namespace tilewise::plan

TILEWISE_BEGIN_PUBLIC

Plan retile(const Plan& plan, Context& context, int tile_q, int tile_k) {
  check(plan != nullptr, Error::Kind::value, "retile: the plan is null; make one with a method or load one");
  for (const int tile : {tile_q, tile_k}) {
    check(tile == 0 || (tile >= 16 && tile <= 256), Error::Kind::value, "retile: tile ", tile, " is outside 16 to 256 (0 leaves rows as they are)");
  }
  PlanData data = share(plan);
  const auto rewrite = [&](Lists& lists, bool is_by_query, int tile) {
    if (tile == 0 || tile == lists.tile || !lists.has_runs()) return;
    lists = Retiler(*plan, is_by_query, tile).run(data, context);
  };
  rewrite(data.by_query, true, tile_q);
  rewrite(data.by_key, false, tile_k);
  return std::make_shared<const PlanData>(std::move(data));
}

Plan refine(const Plan& plan, Context& context, int tile) {
  check(plan != nullptr, Error::Kind::value, "refine: the plan is null; make one with a method or load one");
  check(tile <= plan->by_query.tile, Error::Kind::value, "refine: tile ", tile, " is above the plan's ", plan->by_query.tile,
        "; coarsen() makes taller rows");
  return retile(plan, context, tile);
}

Plan coarsen(const Plan& plan, Context& context, int tile) {
  check(plan != nullptr, Error::Kind::value, "coarsen: the plan is null; make one with a method or load one");
  check(tile >= plan->by_query.tile, Error::Kind::value, "coarsen: tile ", tile, " is below the plan's ", plan->by_query.tile,
        "; refine() makes finer rows");
  return retile(plan, context, tile);
}

TILEWISE_END_PUBLIC
