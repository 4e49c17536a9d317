// SPDX-License-Identifier: Apache-2.0
#include "tilewise/plan/builder.h"

#include <algorithm>
#include <utility>

TILEWISE_BEGIN_PUBLIC

namespace {

/// Sorts by start and joins touching runs that the same slots read.
void canonicalise(std::vector<Run>& runs) {
  std::sort(runs.begin(), runs.end(), [](const Run& a, const Run& b) { return a.start < b.start; });
  size_t kept = 0;
  for (size_t i = 0; i < runs.size(); ++i) {
    if (kept > 0 && runs[kept - 1].stop == runs[i].start && runs[kept - 1].rows == runs[i].rows) {
      runs[kept - 1].stop = runs[i].stop;
    } else {
      if (kept != i) runs[kept] = std::move(runs[i]);
      ++kept;
    }
  }
  runs.resize(kept);
}

}  // namespace

ListsBuilder::ListsBuilder(int tile, int64_t batch, int groups, int64_t num_rows, std::vector<int32_t> edge)
    : tile_(tile), batch_(batch), num_rows_(num_rows), groups_(groups), edge_(std::move(edge)) {
  check(tile > 0, Error::Kind::value, "ListsBuilder: tile ", tile, " is not positive");
  check(batch > 0 && groups > 0 && num_rows >= 0, Error::Kind::value, "ListsBuilder: batch ", batch, ", groups ", groups, ", rows ", num_rows,
        " must be positive");
  check(edge_.empty() || static_cast<int64_t>(edge_.size()) == num_rows + 1, Error::Kind::shape, "ListsBuilder: edge has ", edge_.size(),
        " numbers, takes rows + 1 = ", num_rows + 1);
  const auto total = static_cast<size_t>(batch * groups * num_rows);
  rows_.resize(total);
  shared_with_.assign(total, -1);
}

void ListsBuilder::set(int64_t b, int group, int64_t row, RowRuns runs) {
  check(b >= 0 && b < batch_ && group >= 0 && group < groups_ && row >= 0 && row < num_rows_, Error::Kind::value, "ListsBuilder::set: row (", b, ", ",
        group, ", ", row, ") is outside [", batch_, ", ", groups_, ", ", num_rows_, "]");
  for (std::vector<Run>* list : {&runs.whole, &runs.masked, &runs.picked}) {
    for (const Run& run : *list) {
      check(run.start >= 0 && run.start < run.stop, Error::Kind::value, "ListsBuilder::set: run [", run.start, ", ", run.stop, ") of row ", row,
            " is empty, reversed or negative");
    }
  }
  std::vector<Run> singles;
  for (const Run& run : runs.picked) {
    for (int32_t slot = run.start; slot < run.stop; ++slot) singles.push_back({slot, slot + 1, run.rows});
  }
  std::sort(singles.begin(), singles.end(), [](const Run& a, const Run& c) { return a.start < c.start; });
  runs.picked = std::move(singles);
  canonicalise(runs.whole);
  canonicalise(runs.masked);
  const auto index = static_cast<size_t>((b * groups_ + group) * num_rows_ + row);
  rows_[index] = std::move(runs);
  shared_with_[index] = -1;
}

void ListsBuilder::share(int64_t b, int group, int64_t row, int64_t as_row) {
  check(b >= 0 && b < batch_ && group >= 0 && group < groups_ && row >= 0 && row < num_rows_ && as_row >= 0 && as_row < num_rows_ && as_row != row,
        Error::Kind::value, "ListsBuilder::share: rows ", row, " and ", as_row, " of (", b, ", ", group, ") must be two rows of [0, ", num_rows_, ")");
  const int64_t base = (b * groups_ + group) * num_rows_;
  int64_t target = base + as_row;
  if (shared_with_[static_cast<size_t>(target)] >= 0) target = shared_with_[static_cast<size_t>(target)];
  shared_with_[static_cast<size_t>(base + row)] = target;
}

Lists ListsBuilder::build(const std::shared_ptr<Memory>& memory, PlanData& plan) const {
  Lists lists;
  lists.tile = tile_;
  const auto keep = [&](Tensor tensor) {
    const TensorView view = tensor.view;
    plan.memory.push_back(std::move(tensor.buffer));
    return view;
  };
  if (!edge_.empty()) {
    lists.edge = keep(Tensor(memory, Dtype::i32, {static_cast<int64_t>(edge_.size())}));
    std::copy(edge_.begin(), edge_.end(), lists.edge.data<int32_t>());
  }
  const auto words = static_cast<size_t>((tile_ + 63) / 64);
  const auto total = static_cast<int64_t>(rows_.size());

  const auto pack = [&](std::vector<Run> RowRuns::* member, bool is_picked, const char* what) {
    RunList list;
    int64_t capacity = 0;
    bool has_rows = false;
    for (int64_t i = 0; i < total; ++i) {
      if (shared_with_[static_cast<size_t>(i)] >= 0) continue;
      const std::vector<Run>& runs = rows_[static_cast<size_t>(i)].*member;
      capacity += static_cast<int64_t>(runs.size());
      for (const Run& run : runs) has_rows = has_rows || !run.rows.empty();
    }
    if (capacity == 0) return list;
    list.begin = keep(Tensor(memory, Dtype::i64, {batch_, groups_, num_rows_}));
    list.count = keep(Tensor(memory, Dtype::i32, {batch_, groups_, num_rows_}));
    list.start = keep(Tensor(memory, Dtype::i32, {capacity}));
    if (!is_picked) list.stop = keep(Tensor(memory, Dtype::i32, {capacity}));
    if (has_rows) list.rows = keep(Tensor(memory, Dtype::u64, {capacity, static_cast<int64_t>(words)}));
    auto* begin = list.begin.data<int64_t>();
    auto* count = list.count.data<int32_t>();
    auto* start = list.start.data<int32_t>();
    auto* stop = is_picked ? nullptr : list.stop.data<int32_t>();
    auto* bits = has_rows ? list.rows.data<uint64_t>() : nullptr;
    int64_t next = 0;
    for (int64_t i = 0; i < total; ++i) {
      if (shared_with_[static_cast<size_t>(i)] >= 0) continue;
      const std::vector<Run>& runs = rows_[static_cast<size_t>(i)].*member;
      begin[i] = next;
      count[i] = static_cast<int32_t>(runs.size());
      for (const Run& run : runs) {
        check(run.rows.empty() || run.rows.size() == words, Error::Kind::shape, "ListsBuilder::build: a ", what, " run has ", run.rows.size(),
              " words of rows, takes none or ", words, " at tile ", tile_);
        start[next] = run.start;
        if (stop != nullptr) stop[next] = run.stop;
        if (bits != nullptr) {
          for (size_t w = 0; w < words; ++w) bits[static_cast<size_t>(next) * words + w] = run.rows.empty() ? ~uint64_t{0} : run.rows[w];
        }
        ++next;
      }
    }
    for (int64_t i = 0; i < total; ++i) {
      const int64_t as = shared_with_[static_cast<size_t>(i)];
      if (as < 0) continue;
      begin[i] = begin[as];
      count[i] = count[as];
    }
    return list;
  };
  lists.whole = pack(&RowRuns::whole, false, "whole");
  lists.masked = pack(&RowRuns::masked, false, "masked");
  lists.picked = pack(&RowRuns::picked, true, "picked");
  check(!lists.whole.rows.has_value(), Error::Kind::value, "ListsBuilder::build: a whole run has rows; put it into masked or picked");
  return lists;
}

TILEWISE_END_PUBLIC
