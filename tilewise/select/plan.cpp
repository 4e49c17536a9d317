// SPDX-License-Identifier: Apache-2.0
#include "tilewise/select/plan.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <optional>

#include "tilewise/plan/builder.h"
#include "tilewise/plan/make.h"
#include "tilewise/select/forced.h"

namespace tilewise::select {
namespace {

/// The numbers of a Budget for one head.
struct Limits {
  std::optional<double> mass, share;
  std::optional<int64_t> count;
  float at_least = -1;
};

template <class T>
std::optional<T> number_of(const std::vector<T>& values, int head) {
  if (values.empty()) return std::nullopt;
  return values[values.size() == 1 ? 0 : static_cast<size_t>(head)];
}

Limits limits_of(const Budget& budget, int head) {
  Limits limits;
  if (const auto mass = number_of(budget.mass, head)) limits.mass = static_cast<double>(*mass);
  if (const auto share = number_of(budget.share, head)) limits.share = static_cast<double>(*share);
  limits.count = number_of(budget.count, head);
  limits.at_least = number_of(budget.at_least, head).value_or(-1.0f);
  return limits;
}

template <class T>
void check_numbers(const char* name, const std::vector<T>& values, int heads, Budget::Scope scope, T high) {
  const bool is_one = values.size() <= 1;
  check(is_one || (static_cast<int>(values.size()) == heads && scope != Budget::Scope::layer), Error::Kind::value, "select::plan: budget.", name,
        " has ", values.size(), " numbers; it takes one", scope == Budget::Scope::layer ? " (its scope is the layer)" : ", or one for each of ",
        scope == Budget::Scope::layer ? "" : std::to_string(heads) + " heads");
  for (const T value : values) {
    check(value >= T{0} && value <= high, Error::Kind::value, "select::plan: budget.", name, " is ", value, "; it takes 0 to ", high);
  }
}

/// One row while its tiles are chosen.
struct Row {
  int64_t b = 0, index = 0;
  int head = 0;
  Visible visible = {};
  std::vector<uint8_t> kept = {};  // per key tile
};

/// Key tiles that the row sees, ascending.
template <class Body>
void for_visible_tiles(const Row& row, int tile_k, Body&& body) {
  int64_t next = 0;
  const auto visit = [&](const Interval& interval) {
    for (int64_t j = std::max(next, interval.first / tile_k); j * tile_k < interval.last; ++j, next = j) body(j);
  };
  // Two ascending lists, merged: a tile may be partly whole, partly masked.
  size_t w = 0, m = 0;
  while (w < row.visible.whole.size() || m < row.visible.masked.size()) {
    const bool take_whole =
        m == row.visible.masked.size() || (w < row.visible.whole.size() && row.visible.whole[w].first < row.visible.masked[m].first);
    visit(take_whole ? row.visible.whole[w++] : row.visible.masked[m++]);
  }
}

class Chooser {
 public:
  Chooser(const Scores& scores, const Budget& budget) : scores_(scores), budget_(budget) {}

  /// Chooses among the tiles of `rows` together.
  void choose(std::vector<Row>& rows, const Limits& limits) {
    candidates_.clear();
    double total = 0, held = 0;
    int64_t visible = 0, kept = 0;
    for (size_t r = 0; r < rows.size(); ++r) {
      Row& row = rows[r];
      const float* values = scores_.row(row.b, row.head, row.index);
      mark_forced_tiles(scores_.grid, row.b, row.head, row.index, scores_.tile_k, budget_.sink, budget_.diagonal, is_forced_);
      for_visible_tiles(row, scores_.tile_k, [&](int64_t j) {
        const float value = values[j];
        ++visible;
        total += static_cast<double>(value);
        const bool is_forced = is_forced_[static_cast<size_t>(j)] != 0;
        if (is_forced) row.kept[static_cast<size_t>(j)] = 1;
        if (is_forced && budget_.forced == Budget::Forced::counted) {
          held += static_cast<double>(value);
          ++kept;
        } else if (value > 0 && value >= limits.at_least) {
          candidates_.push_back({key_of(value), r, static_cast<int32_t>(j)});
        }
      });
    }
    if (!std::isfinite(total)) {
      for (Row& row : rows) for_visible_tiles(row, scores_.tile_k, [&](int64_t j) { row.kept[static_cast<size_t>(j)] = 1; });
      return;
    }
    const double required = limits.mass && *limits.mass < 1 ? *limits.mass * total : HUGE_VAL;
    int64_t most = INT64_MAX;
    if (limits.count) most = std::min(most, *limits.count);
    if (limits.share) most = std::min<int64_t>(most, std::llround(*limits.share * static_cast<double>(visible)));
    // Best first without sorting what is never looked at: runs of the sorted prefix are made as they are needed.
    size_t sorted = 0;
    for (size_t next = 0; next < candidates_.size(); ++next) {
      if (kept >= budget_.floor && (held >= required || kept >= most)) break;
      if (next == sorted) sorted = sort_more(sorted);
      const Candidate& best = candidates_[next];
      rows[best.row].kept[static_cast<size_t>(best.tile)] = 1;
      held += static_cast<double>(std::bit_cast<float>(~best.key));
      ++kept;
    }
  }

 private:
  struct Candidate {
    uint32_t key;   // ascending: larger scores first
    size_t row;
    int32_t tile;
    bool operator<(const Candidate& other) const {
      if (key != other.key) return key < other.key;
      if (row != other.row) return row < other.row;
      return tile < other.tile;
    }
  };
  /// The bits of positive floats order as the floats do; inverted, the largest comes first.
  static uint32_t key_of(float value) { return ~std::bit_cast<uint32_t>(value); }

  size_t sort_more(size_t sorted) {
    const size_t end = std::min(candidates_.size(), std::max<size_t>(2 * sorted, 32));
    const auto first = candidates_.begin() + static_cast<std::ptrdiff_t>(sorted);
    const auto middle = candidates_.begin() + static_cast<std::ptrdiff_t>(end);
    if (middle != candidates_.end()) std::nth_element(first, middle, candidates_.end());
    std::sort(first, middle);
    return end;
  }

  const Scores& scores_;
  const Budget& budget_;
  std::vector<Candidate> candidates_;
  std::vector<uint8_t> is_forced_;  // per key tile, of the row at hand
};

void add_run(std::vector<Run>& list, int64_t first, int64_t last) {
  if (first >= last) return;
  if (!list.empty() && list.back().stop == first)
    list.back().stop = static_cast<int32_t>(last);
  else
    list.push_back({static_cast<int32_t>(first), static_cast<int32_t>(last), {}});
}

/// The kept tiles of a row, cut to what it sees.
RowRuns runs_of(const Row& row, int tile_k, int64_t slots_k) {
  RowRuns runs;
  const auto cut = [&](const std::vector<Interval>& parts, std::vector<Run>& list) {
    for (const Interval& part : parts) {
      for (int64_t j = part.first / tile_k; j * tile_k < part.last; ++j) {
        if (row.kept[static_cast<size_t>(j)] == 0) continue;
        add_run(list, std::max(part.first, j * tile_k), std::min({part.last, (j + 1) * tile_k, slots_k}));
      }
    }
  };
  cut(row.visible.whole, runs.whole);
  cut(row.visible.masked, runs.masked);
  return runs;
}

}  // namespace

void check_budget(const Budget& budget, int heads) {
  check_numbers("mass", budget.mass, heads, budget.scope, 1.0f);
  check_numbers("share", budget.share, heads, budget.scope, 1.0f);
  check_numbers<int64_t>("count", budget.count, heads, budget.scope, INT32_MAX);
  check_numbers("at_least", budget.at_least, heads, budget.scope, 3.0e38f);
  check(budget.floor >= 0 && budget.sink >= 0 && budget.diagonal >= 0, Error::Kind::value, "select::plan: budget.floor ", budget.floor, ", sink ",
        budget.sink, " and diagonal ", budget.diagonal, " must be at least 0");
}

Plan plan(const Scores& scores, const Budget& budget, Context& context) {
  check_budget(budget, scores.heads);
  const RowGrid& grid = scores.grid;
  PlanData data = begin_plan(scores.mask, scores.mask, grid, scores.batch, scores.heads, context);
  ListsBuilder builder(grid.tile, std::max<int64_t>(scores.batch, 1), scores.heads, grid.rows(), grid.edge);

  // An item of work is what shares a limit, except that rows are taken 16 at a time to spare the executor.
  const bool by_row = budget.scope == Budget::Scope::row;
  const int64_t rows_an_item = by_row ? 16 : std::max<int64_t>(grid.rows(), 1);
  const int64_t parts = (grid.rows() + rows_an_item - 1) / rows_an_item;
  const int heads_an_item = budget.scope == Budget::Scope::layer ? scores.heads : 1;
  const int64_t head_items = scores.heads / heads_an_item;
  context.parallel_for(scores.batch * head_items * parts, [&](int64_t item, int) {
    const int64_t b = item / (head_items * parts), part = item % parts;
    const int head = static_cast<int>(item / parts % head_items) * heads_an_item;
    const Limits limits = limits_of(budget, head);
    Chooser chooser(scores, budget);
    std::vector<Row> rows;
    const auto finish = [&] {
      chooser.choose(rows, limits);
      for (const Row& row : rows) builder.set(b, row.head, row.index, runs_of(row, scores.tile_k, grid.slots_k()));
      rows.clear();
    };
    for (int h = head; h < head + heads_an_item; ++h) {
      for (int64_t index = part * rows_an_item; index < std::min(grid.rows(), (part + 1) * rows_an_item); ++index) {
        rows.push_back({b, index, h, visible_keys(scores.mask, h, b, grid, index, scores.tile_k),
                        std::vector<uint8_t>(static_cast<size_t>(scores.key_tiles()), 0)});
        if (by_row) finish();
      }
    }
    if (!by_row) finish();
  });
  data.by_query = builder.build(context.memory, data);
  return make_plan(std::move(data));
}

}  // namespace tilewise::select
