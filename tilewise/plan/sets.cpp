// SPDX-License-Identifier: Apache-2.0
#include "tilewise/plan/sets.h"

#include <algorithm>
#include <array>
#include <utility>
#include <vector>

#include "tilewise/plan/axis.h"
#include "tilewise/plan/complete.h"
#include "tilewise/plan/groups.h"
#include "tilewise/plan/join.h"
#include "tilewise/plan/mask_rule.h"
#include "tilewise/plan/pack.h"
#include "tilewise/plan/recut.h"
#include "tilewise/plan/rows.h"

TILEWISE_BEGIN_PUBLIC

namespace {

using namespace tilewise::plan;

RowBits operator|(const RowBits& a, const RowBits& b) {
  RowBits bits;
  for (size_t word = 0; word < kMaxWords; ++word) bits[word] = a[word] | b[word];
  return bits;
}
RowBits operator&(const RowBits& a, const RowBits& b) {
  RowBits bits;
  for (size_t word = 0; word < kMaxWords; ++word) bits[word] = a[word] & b[word];
  return bits;
}

/// One of the two plans, in the direction at hand.
struct Side {
  const PlanData* data;
  const Lists* lists;
  std::vector<int64_t> old_row;  // for each new row, the row that holds it
};

/// A run of a row, with the slots of the new row that read it.
struct Piece {
  int64_t start = 0, stop = 0;
  RowBits bits{};
  Kind kind = Kind::whole;
};

/// What the two plans say about slots that they treat alike; a null side reads nothing.
struct Cell {
  RowBits bits{};  // those that the result reads
  Kind kind = Kind::whole;
  std::array<RowBits, 2> moved{};  // pairs that a side reads untested and the result tests
};

class Combiner {
 public:
  Combiner(const std::array<Side, 2>& sides, bool is_by_query, bool is_union, const std::vector<int32_t>& edge, int64_t b, int head,
           const std::vector<std::vector<int>>& heads_of_mask)
      : sides_(sides),
        is_by_query_(is_by_query),
        is_union_(is_union),
        edge_(edge),
        b_(b),
        head_(head),
        queries_(Axis::of_queries(*sides[0].data, b, head)),
        keys_(Axis::of_keys(*sides[0].data, b, head)),
        rules_{MaskRule(*sides[0].data, b, heads_of_mask[0]), MaskRule(*sides[1].data, b, heads_of_mask[1])} {}

  void run(Packer& packer, const Context& context) {
    for (size_t row = 0; row + 1 < edge_.size(); ++row) {
      if (row % 64 == 0) context.check_cancel();
      first_ = edge_[row];
      last_ = edge_[row + 1];
      made_.clear();
      for (size_t side = 0; side < 2; ++side) read_pieces(sides_[side], row, pieces_[side]);
      combine();
      packer.add(static_cast<int64_t>(row), last_ - first_, made_);
    }
  }

 private:
  void read_pieces(const Side& side, size_t row, std::vector<Piece>& pieces) const {
    pieces.clear();
    const int64_t old = side.old_row[row], offset = first_ - row_first(*side.lists, old);
    const std::array<std::pair<const RunList*, Kind>, 3> all{
        {{&side.lists->whole, Kind::whole}, {&side.lists->masked, Kind::masked}, {&side.lists->picked, Kind::picked}}};
    for (const auto& [list, kind] : all) {
      const Runs runs = runs_of(*list, b_, head_, side.data->heads_q, old);
      for (int i = 0; i < runs.count; ++i) {
        const int64_t end = is_by_query_ ? part_end(*side.data, runs.start[i]) : slots_q(*side.data);
        const RowBits bits = moved_bits(runs, i, offset, last_ - first_, 0);
        if (bits != RowBits{}) pieces.push_back({runs.start[i], run_stop(runs, i, list->grain, end), bits, kind});
      }
    }
    std::sort(pieces.begin(), pieces.end(), [](const Piece& x, const Piece& y) { return x.start < y.start; });
  }

  /// A sweep over both; within a side pieces are apart.
  void combine() {
    std::array<size_t, 2> next{};
    int64_t at = 0;
    while (next[0] < pieces_[0].size() || next[1] < pieces_[1].size()) {
      int64_t stop = INT64_MAX;
      std::array<const Piece*, 2> here{};
      for (size_t side = 0; side < 2; ++side) {
        if (next[side] == pieces_[side].size()) continue;
        const Piece& piece = pieces_[side][next[side]];
        if (piece.start <= at) here[side] = &piece;
        stop = std::min(stop, piece.start <= at ? piece.stop : piece.start);
      }
      if (here[0] != nullptr || here[1] != nullptr) write(at, stop, is_union_ ? united(here) : intersected(here));
      at = stop;
      for (size_t side = 0; side < 2; ++side) {
        if (next[side] < pieces_[side].size() && pieces_[side][next[side]].stop <= at) ++next[side];
      }
    }
  }

  Cell united(const std::array<const Piece*, 2>& here) const {
    std::array<RowBits, 2> untested{};
    bool is_picked = true;
    Cell cell;
    for (size_t side = 0; side < 2; ++side) {
      if (here[side] == nullptr) continue;
      cell.bits = cell.bits | here[side]->bits;
      if (here[side]->kind != Kind::masked) untested[side] = here[side]->bits;
      is_picked = is_picked && here[side]->kind == Kind::picked;
    }
    return decide(cell, untested, is_picked);
  }

  Cell intersected(const std::array<const Piece*, 2>& here) const {
    Cell cell;
    if (here[0] == nullptr || here[1] == nullptr) return cell;
    cell.bits = here[0]->bits & here[1]->bits;
    std::array<RowBits, 2> untested{};
    for (size_t side = 0; side < 2; ++side) {
      if (here[side]->kind != Kind::masked) untested[side] = cell.bits;
    }
    // The mask lets every pair of a picked key through, so the other plan's test changes nothing.
    return decide(cell, untested, here[0]->kind == Kind::picked || here[1]->kind == Kind::picked);
  }

  /// Whole where every slot of the row reads it untested; picked where a picked key alone says all; else tested.
  Cell decide(Cell cell, const std::array<RowBits, 2>& untested, bool is_picked) const {
    const RowBits free = untested[0] | untested[1];
    cell.kind = is_picked ? Kind::picked : free == bits_between(0, last_ - first_) ? Kind::whole : Kind::masked;
    if (cell.kind == Kind::masked) cell.moved = untested;
    return cell;
  }

  void write(int64_t start, int64_t stop, const Cell& cell) {
    if (cell.bits == RowBits{}) return;
    for (size_t side = 0; side < 2; ++side) {
      if (cell.moved[side] == RowBits{}) continue;
      if (is_by_query_)
        rules_[side].check_rectangle(queries_, first_, last_, cell.moved[side].data(), keys_, start, stop);
      else
        rules_[side].check_rectangle_by_key(queries_, start, stop, keys_, first_, last_, cell.moved[side].data());
    }
    made_.list(cell.kind).push_back({static_cast<int32_t>(start), static_cast<int32_t>(stop), cell.bits});
  }

  const std::array<Side, 2>& sides_;
  const bool is_by_query_, is_union_;
  const std::vector<int32_t>& edge_;
  const int64_t b_;
  const int head_;
  const Axis queries_, keys_;
  const std::array<MaskRule, 2> rules_;
  int64_t first_ = 0, last_ = 0;
  std::array<std::vector<Piece>, 2> pieces_;
  PackedRow made_;
};

/// Whether the head reads anything at all.
bool reads_any(const PlanData& data, const Lists& lists, int64_t rows, int head) {
  for (const RunList* list : {&lists.whole, &lists.masked, &lists.picked}) {
    for (int64_t b = 0; b < data.batch && list->has_runs(); ++b) {
      for (int64_t row = 0; row < rows; ++row) {
        if (runs_of(*list, b, head, data.heads_q, row).count > 0) return true;
      }
    }
  }
  return false;
}

bool has_by_key_alone(const Plan& plan) { return plan->by_key.has_runs() && !plan->by_query.has_runs(); }

Plan combine(const char* function, const Plan& a, const Plan& b, bool is_union, Context& context) {
  const std::array<Plan, 2> given{a, b};
  check_alike(function, given);
  const bool is_by_query = !(has_by_key_alone(a) && has_by_key_alone(b));
  std::array<Plan, 2> plans = given;
  for (Plan& plan : plans) {
    if (is_by_query && has_by_key_alone(plan)) plan = complete(plan, context);
  }
  const int heads = a->heads_q;
  const int64_t slots = is_by_query ? slots_q(*a) : slots_k_with_pools(*a);
  std::array<Side, 2> sides;
  for (size_t side = 0; side < 2; ++side) sides[side] = {plans[side].get(), is_by_query ? &plans[side]->by_query : &plans[side]->by_key, {}};
  const std::array<const Lists*, 2> lists{sides[0].lists, sides[1].lists};
  const std::vector<int32_t> edge = common_edges(lists, slots);
  const int tile = std::min(lists[0]->tile, lists[1]->tile);
  const auto rows = static_cast<int64_t>(edge.size()) - 1;
  for (Side& side : sides) {
    int64_t old = 0;
    for (int64_t row = 0; row < rows; ++row) {
      while (row_last(*side.lists, old, slots) <= edge[static_cast<size_t>(row)]) ++old;
      side.old_row.push_back(old);
    }
  }

  PlanData data = share(plans[0]);
  data.shared = {plans[0], plans[1]};
  data.by_query = data.by_key = {};
  data.is_by_key = !is_by_query;
  if (plans[1]->dense_reads > data.dense_reads) {
    data.dense_reads = plans[1]->dense_reads;
    data.dense_reads_of_head = plans[1]->dense_reads_of_head;
  }
  std::vector<const PlanData*> masks;
  bool has_one_mask = true;
  for (int head = 0; head < heads; ++head) {
    std::array<bool, 2> reads{};
    for (size_t side = 0; side < 2; ++side) reads[side] = reads_any(*plans[side], *lists[side], num_rows(*lists[side], slots), head);
    const bool is_equal = has_equal_mask(*plans[0], *plans[1], head);
    check(is_equal || !reads[0] || !reads[1], Error::Kind::unsupported, function, ": both plans read head ", head,
          ", under different masks; one plan tests a head in one way");
    masks.push_back(plans[reads[1] && !reads[0] ? 1 : 0].get());
    has_one_mask = has_one_mask && (is_equal || masks.back() == plans[0].get());
  }
  if (!has_one_mask) data.mask = join_masks(function, masks, context.memory, data);

  std::vector<TensorView> views{data.order_q.token, data.order_k.token};
  for (const Lists* side : lists) {
    for (const RunList* list : {&side->whole, &side->masked, &side->picked}) {
      views.push_back(list->begin);
      views.push_back(list->count);
    }
  }
  const Groups groups = common_groups(views, heads);
  const std::vector<int64_t> ends = part_ends(data, is_by_query ? Direction::by_query : Direction::by_key);
  std::vector<Packer> parts(static_cast<size_t>(groups.total()), Packer(tile, 1, 1, rows, ends));
  context.parallel_for(groups.total(), [&](int64_t item, int) {
    const int g = static_cast<int>(item % groups.groups);
    const std::vector<std::vector<int>> heads_of_mask{mask_heads(*plans[0], g, groups.groups), mask_heads(*plans[1], g, groups.groups)};
    Combiner combiner(sides, is_by_query, is_union, edge, item / groups.groups, first_head(g, groups.groups, heads), heads_of_mask);
    combiner.run(parts[static_cast<size_t>(item)], context);
  });
  Packer packer(tile, groups.batch, groups.groups, rows, ends);
  for (size_t item = 0; item < parts.size(); ++item) packer.append(static_cast<int64_t>(item) * rows, parts[item]);
  (is_by_query ? data.by_query : data.by_key) = packer.finish(unless_uniform(edge, tile, slots), context.memory, data);
  return std::make_shared<const PlanData>(std::move(data));
}

}  // namespace

Plan unite(const Plan& a, const Plan& b, Context& context) { return combine("unite", a, b, true, context); }
Plan intersect(const Plan& a, const Plan& b, Context& context) { return combine("intersect", a, b, false, context); }

TILEWISE_END_PUBLIC
