// SPDX-License-Identifier: Apache-2.0
#include "tilewise/plan/validate_lists.h"

#include <algorithm>
#include <array>
#include <string>
#include <tuple>
#include <vector>

#include "tilewise/plan/axis.h"
#include "tilewise/plan/fault.h"
#include "tilewise/plan/groups.h"
#include "tilewise/plan/rows.h"

namespace tilewise::plan {
namespace {

constexpr std::array<const char*, 3> kNames{"whole", "masked", "picked"};

class ListsCheck {
 public:
  ListsCheck(const PlanData& plan, Direction direction)
      : plan_(plan),
        lists_(direction == Direction::by_query ? plan.by_query : plan.by_key),
        is_by_query_(direction == Direction::by_query),
        slots_(is_by_query_ ? slots_q(plan) : slots_k_with_pools(plan)),
        run_slots_(is_by_query_ ? slots_k_with_pools(plan) : slots_q(plan)) {}

  void run() {
    require(lists_.tile >= 16 && lists_.tile <= 256, name(), ".tile is ", lists_.tile, ", takes 16 to 256");
    for (size_t kind = 0; kind < 3; ++kind) {
      const RunList& list = *lists()[kind];
      require(list.has_runs() || (!list.count.has_value() && !list.rows.has_value()), of(kind), " has arrays but no begin");
    }
    if (!lists_.has_runs() && !lists_.edge.has_value() && !lists_.status.has_value()) return;
    require_edge();
    if (lists_.status.has_value()) {
      const TensorView& status = lists_.status;
      require(status.device().type == Device::Type::cpu && status.dtype() == Dtype::i32 && status.rank() == 1 && status.dim(0) == 2, name(),
              ".status is ", status.dtype(), " ", status.shape(), ", takes i32 [2]");
      require(status.at<int32_t>(1) == 0, name(), ".status reports fault ", status.at<int32_t>(1), " of the kernel that wrote the lists");
    }
    for (size_t kind = 0; kind < 3; ++kind) {
      const RunList& list = *lists()[kind];
      if (!list.has_runs()) continue;
      require_arrays(kind);
      require_ranges(kind);
    }
    require_rows();
    if (is_by_query_) require_no_padding();
  }

 private:
  std::array<const RunList*, 3> lists() const { return {&lists_.whole, &lists_.masked, &lists_.picked}; }
  const char* name() const { return is_by_query_ ? "by_query" : "by_key"; }
  std::string of(size_t kind) const { return std::string(name()) + "." + kNames[kind]; }
  int64_t end_of(int64_t start) const { return is_by_query_ ? part_end(plan_, start) : run_slots_; }

  void require_edge() {
    if (lists_.edge.has_value()) {
      const TensorView& edge = lists_.edge;
      require(edge.device().type == Device::Type::cpu && edge.dtype() == Dtype::i32 && edge.rank() == 1 && edge.dim(0) >= 1 && edge.is_contiguous(),
              name(), ".edge is ", edge.dtype(), " ", edge.shape(), ", takes contiguous i32 [T + 1]");
      require(edge.at<int32_t>(0) == 0 && edge.at<int32_t>(edge.dim(0) - 1) == slots_, name(), ".edge goes from ", edge.at<int32_t>(0), " to ",
              edge.at<int32_t>(edge.dim(0) - 1), ", takes 0 to ", slots_, " slots");
    }
    num_rows_ = num_rows(lists_, slots_);
    for (int64_t row = 0; row < num_rows_; ++row) {
      const int64_t first = row_first(lists_, row), last = row_last(lists_, row, slots_);
      require(first < last && last - first <= lists_.tile && last <= slots_, name(), " row ", row, " is [", first, ", ", last, "), takes 1 to ",
              lists_.tile, " slots within [0, ", slots_, ")");
      require(is_by_query_ || part_end(plan_, first) >= last, name(), " row ", row, " is [", first, ", ", last,
              "), which passes the border of a pool at ", part_end(plan_, first), "; cut it there by an edge");
    }
  }

  void require_arrays(size_t kind) const {
    const RunList& list = *lists()[kind];
    for (const auto& [view, dtype, what] : {std::tuple{&list.begin, Dtype::i64, "begin"}, std::tuple{&list.count, Dtype::i32, "count"}}) {
      require(view->device().type == Device::Type::cpu && view->dtype() == dtype && view->rank() == 3 &&
                  (view->dim(0) == 1 || view->dim(0) == plan_.batch) && view->dim(1) >= 1 && plan_.heads_q % view->dim(1) == 0 &&
                  view->dim(2) == num_rows_,
              of(kind), ".", what, " is ", view->dtype(), " ", view->shape(), ", takes ", dtype, " [1 or ", plan_.batch, ", a divisor of ",
              plan_.heads_q, ", ", num_rows_, "]");
    }
    const auto is_array = [](const TensorView& view, Dtype dtype, int rank) {
      return view.device().type == Device::Type::cpu && view.dtype() == dtype && view.rank() == rank && view.is_contiguous();
    };
    require(is_array(list.start, Dtype::i32, 1), of(kind), ".start is ", list.start.dtype(), " ", list.start.shape(),
            ", takes contiguous i32 [capacity]");
    if (list.stop.has_value()) {
      require(is_array(list.stop, Dtype::i32, 1) && list.stop.dim(0) == list.start.dim(0), of(kind), ".stop is ", list.stop.dtype(), " ",
              list.stop.shape(), ", takes i32 ", list.start.shape(), " like start");
    }
    if (list.rows.has_value()) {
      require(kind != 0, of(kind), " has rows: whole runs are read by every slot of their row; put them into masked");
      const int64_t words = (lists_.tile + 63) / 64;
      require(is_array(list.rows, Dtype::u64, 2) && list.rows.dim(0) == list.start.dim(0) && list.rows.dim(1) == words, of(kind), ".rows is ",
              list.rows.dtype(), " ", list.rows.shape(), ", takes u64 [", list.start.dim(0), ", ", words, "]");
    }
    require(list.grain >= 1 && (kind != 2 || (list.grain == 1 && !list.stop.has_value())), of(kind), " has grain ", list.grain,
            kind == 2 ? "; picked runs are single slots, with grain 1 and no stop" : ", takes at least 1");
  }

  // What does not depend on the row that reads a list: looked at once, however many rows share it.
  void require_ranges(size_t kind) const {
    const RunList& list = *lists()[kind];
    const std::array<TensorView, 2> views{list.begin, list.count};
    const Groups groups = common_groups(views, plan_.heads_q);
    std::vector<std::pair<int64_t, int64_t>> ranges;  // begin, count
    for (int64_t b = 0; b < groups.batch; ++b) {
      for (int g = 0; g < groups.groups; ++g) {
        const int head = first_head(g, groups.groups, plan_.heads_q);
        for (int64_t row = 0; row < num_rows_; ++row) {
          const int64_t begin = list.begin.at<int64_t>(batch_index(list.begin, b), group_index(list.begin, head, plan_.heads_q), row);
          const int64_t count = list.count.at<int32_t>(batch_index(list.count, b), group_index(list.count, head, plan_.heads_q), row);
          const auto end = static_cast<uint64_t>(begin) + static_cast<uint64_t>(count);  // for the message: it may be past all numbers
          require(count >= 0 && begin >= 0 && begin <= list.start.dim(0) - count, of(kind), " row ", row, " of head ", head, " has runs [", begin,
                  ", ", static_cast<int64_t>(end), "), the capacity is ", list.start.dim(0));
          if (count > 0 && (ranges.empty() || ranges.back() != std::pair{begin, count})) ranges.emplace_back(begin, count);
        }
      }
    }
    std::sort(ranges.begin(), ranges.end());
    ranges.erase(std::unique(ranges.begin(), ranges.end()), ranges.end());
    for (size_t i = 0; i < ranges.size(); ++i) {
      require(i == 0 || ranges[i - 1].first + ranges[i - 1].second <= ranges[i].first, of(kind), " has rows whose runs overlap at ", ranges[i].first,
              "; rows share a list (equal begin and count) or have their own");
      require_runs(kind, ranges[i].first, ranges[i].second);
    }
  }

  void require_runs(size_t kind, int64_t begin, int64_t count) const {
    const RunList& list = *lists()[kind];
    const auto* starts = static_cast<const int32_t*>(list.start.raw());
    const auto* stops = list.stop.has_value() ? static_cast<const int32_t*>(list.stop.raw()) : nullptr;
    int64_t before = 0;
    for (int64_t i = begin; i < begin + count; ++i) {
      const int64_t start = starts[i];
      require(start >= 0 && start < run_slots_, of(kind), " run ", i, " starts at ", start, ", takes 0 to ", run_slots_ - 1);
      require(start >= before, of(kind), " run ", i, " starts at ", start, ", before the end of the run ahead of it (", before,
              "); runs ascend and are apart");
      const int64_t end = end_of(start);
      const int64_t stop = stops != nullptr ? stops[i] : std::min<int64_t>(end, start + list.grain);
      require(stop > start && stop <= end, of(kind), " run ", i, " is [", start, ", ", stop, "), takes at least one slot, up to ", end,
              " (the end of the axis or of a pool)");
      require((stop - start) % list.grain == 0 || stop == end, of(kind), " run ", i, " is [", start, ", ", stop, "), no multiple of its grain ",
              list.grain);
      before = stop;
    }
  }

  // What depends on the row: `rows` name a slot of it, and its three lists are apart.
  void require_rows() const {
    std::vector<TensorView> views;
    for (const RunList* list : lists()) {
      if (!list->has_runs()) continue;
      views.push_back(list->begin);
      views.push_back(list->count);
    }
    const Groups groups = common_groups(views, plan_.heads_q);
    for (int64_t b = 0; b < groups.batch; ++b) {
      for (int g = 0; g < groups.groups; ++g) {
        const int head = first_head(g, groups.groups, plan_.heads_q);
        std::array<Runs, 3> before{};
        int64_t length_before = 0;
        for (int64_t row = 0; row < num_rows_; ++row) {
          std::array<Runs, 3> now;
          const int64_t length = row_last(lists_, row, slots_) - row_first(lists_, row);
          bool is_shared = length == length_before;
          for (size_t kind = 0; kind < 3; ++kind) {
            now[kind] = runs_of(*lists()[kind], b, head, plan_.heads_q, row);
            is_shared = is_shared && now[kind].start == before[kind].start && now[kind].count == before[kind].count;
          }
          before = now;
          length_before = length;
          if (is_shared) continue;
          for (size_t kind = 0; kind < 3; ++kind) {
            if (now[kind].rows != nullptr) require_bits(kind, now[kind], row, length);
            for (size_t other = kind + 1; other < 3; ++other) require_apart(kind, now[kind], other, now[other], row, head);
          }
        }
      }
    }
  }

  void require_bits(size_t kind, const Runs& runs, int64_t row, int64_t length) const {
    const RowBits all = bits_between(0, length);
    for (int i = 0; i < runs.count; ++i) {
      bool has_bit = false;
      for (int word = 0; word < runs.words; ++word)
        has_bit = has_bit || (runs.rows[static_cast<int64_t>(i) * runs.words + word] & all[static_cast<size_t>(word)]) != 0;
      require(has_bit, of(kind), " row ", row, ": no slot of the row reads its run at ", runs.start[i], " (rows has no bit)");
    }
  }

  // Looks the shorter list up in the longer one, so that a long list which many rows share costs each of them little.
  void require_apart(size_t kind_a, const Runs& a, size_t kind_b, const Runs& b, int64_t row, int head) const {
    if (a.count > b.count) {
      require_apart(kind_b, b, kind_a, a, row, head);
      return;
    }
    const auto stop_of = [&](size_t kind, const Runs& runs, int i) { return run_stop(runs, i, lists()[kind]->grain, end_of(runs.start[i])); };
    for (int i = 0; i < a.count; ++i) {
      const int64_t start = a.start[i], stop = stop_of(kind_a, a, i);
      const int next = static_cast<int>(std::upper_bound(b.start, b.start + b.count, a.start[i]) - b.start);
      const bool is_apart = (next == 0 || stop_of(kind_b, b, next - 1) <= start) && (next == b.count || b.start[next] >= stop);
      require(is_apart, name(), " row ", row, " of head ", head, ": the ", kNames[kind_a], " run [", start, ", ", stop, ") shares slots with a ",
              kNames[kind_b], " run; a row's lists are apart");
    }
  }

  // A padding key has no value: only a tested run may hold one.
  void require_no_padding() const {
    if (!plan_.order_k.token.has_value()) return;
    for (const Reader& reader : distinct_readers(plan_, lists_)) {
      const Axis keys = Axis::of_keys(plan_, reader.b, reader.head);
      if (keys.real(0, keys.slots()) == keys.slots()) continue;
      for (const size_t kind : {size_t{0}, size_t{2}}) {
        const int32_t* last_start = nullptr;
        for (int64_t row = 0; row < num_rows_; ++row) {
          const Runs runs = runs_of(*lists()[kind], reader.b, reader.head, plan_.heads_q, row);
          if (runs.start == last_start) continue;
          last_start = runs.start;
          for (int i = 0; i < runs.count; ++i) {
            const int64_t stop = run_stop(runs, i, lists()[kind]->grain, end_of(runs.start[i]));
            require(keys.real(runs.start[i], stop) == stop - runs.start[i], of(kind), " row ", row, " of head ", reader.head, ": the run [",
                    runs.start[i], ", ", stop, ") holds a padding slot; put it into masked");
          }
        }
      }
    }
  }

  const PlanData& plan_;
  const Lists& lists_;
  const bool is_by_query_;
  const int64_t slots_, run_slots_;
  int64_t num_rows_ = 0;
};

}  // namespace

void require_lists(const PlanData& plan, Direction direction) { ListsCheck(plan, direction).run(); }

}  // namespace tilewise::plan
