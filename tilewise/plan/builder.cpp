// SPDX-License-Identifier: Apache-2.0
#include "tilewise/plan/builder.h"

#include <algorithm>

#include "tilewise/plan/pack.h"
#include "tilewise/plan/rows.h"

TILEWISE_BEGIN_PUBLIC

ListsBuilder::ListsBuilder(int tile, int64_t batch, int groups, int64_t num_rows, std::vector<int32_t> edge)
    : tile_(tile), batch_(batch), num_rows_(num_rows), groups_(groups), edge_(std::move(edge)) {
  check(tile >= 1 && tile <= 64 * plan::kMaxWords, Error::Kind::value, "ListsBuilder: tile is ", tile, ", takes 1 to ", 64 * plan::kMaxWords);
  check(batch >= 1 && groups >= 1 && num_rows >= 0, Error::Kind::value, "ListsBuilder: batch ", batch, ", groups ", groups, " and num_rows ",
        num_rows, "; takes at least 1, 1 and 0");
  check(edge_.empty() || static_cast<int64_t>(edge_.size()) == num_rows + 1, Error::Kind::shape, "ListsBuilder: edge has ", edge_.size(),
        " entries for ", num_rows, " rows, takes ", num_rows + 1);
  rows_.resize(static_cast<size_t>(batch * groups * num_rows));
  shared_with_.assign(rows_.size(), -1);
  is_set_.assign(rows_.size(), 0);
}

size_t ListsBuilder::index_of(const char* function, int64_t b, int group, int64_t row) const {
  check(b >= 0 && b < batch_ && group >= 0 && group < groups_ && row >= 0 && row < num_rows_, Error::Kind::value, function, ": row (", b, ", ", group,
        ", ", row, ") is outside [", batch_, ", ", groups_, ", ", num_rows_, "]");
  return static_cast<size_t>((b * groups_ + group) * num_rows_ + row);
}

void ListsBuilder::set(int64_t b, int group, int64_t row, RowRuns runs) {
  const size_t index = index_of("ListsBuilder::set", b, group, row);
  rows_[index] = std::move(runs);
  shared_with_[index] = -1;
  is_set_[index] = 1;
}

void ListsBuilder::share(int64_t b, int group, int64_t row, int64_t as_row) { share(b, group, row, b, group, as_row); }

void ListsBuilder::share(int64_t b, int group, int64_t row, int64_t as_b, int as_group, int64_t as_row) {
  const size_t index = index_of("ListsBuilder::share", b, group, row);
  const size_t as_index = index_of("ListsBuilder::share", as_b, as_group, as_row);
  check(is_set_[as_index] != 0 && shared_with_[as_index] < 0 && index != as_index, Error::Kind::value, "ListsBuilder::share: row (", b, ", ", group,
        ", ", row, ") is to share (", as_b, ", ", as_group, ", ", as_row, "), which has no runs of its own; set() that row first");
  shared_with_[index] = static_cast<int64_t>(as_index);
  is_set_[index] = 0;
}

Lists ListsBuilder::build(const std::shared_ptr<Memory>& memory, PlanData& plan, bool is_by_key) const {
  const std::vector<int64_t> ends = plan::part_ends(plan, is_by_key ? plan::Direction::by_key : plan::Direction::by_query);
  const int64_t slots = is_by_key ? plan::slots_k_with_pools(plan) : plan::slots_q(plan);
  plan::Packer packer(tile_, batch_, groups_, num_rows_, ends);
  plan::PackedRow packed;
  const int words = (tile_ + 63) / 64;
  for (size_t index = 0; index < rows_.size(); ++index) {
    if (shared_with_[index] >= 0) continue;
    const int64_t row = static_cast<int64_t>(index) % num_rows_;
    const int64_t first = edge_.empty() ? row * tile_ : edge_[static_cast<size_t>(row)];
    const int64_t last = edge_.empty() ? std::min<int64_t>(first + tile_, slots) : edge_[static_cast<size_t>(row) + 1];
    check(last > first && last - first <= tile_ && last <= slots, Error::Kind::value, "ListsBuilder::build: row ", row, " is the slots [", first,
          ", ", last, "), takes 1 to ", tile_, " slots within [0, ", slots, "); set the plan's lengths, orders and pools first");
    const plan::RowBits all = plan::bits_between(0, last - first);
    packed.clear();
    for (size_t kind = 0; kind < 3; ++kind) {
      const std::vector<Run>& runs = kind == 0 ? rows_[index].whole : kind == 1 ? rows_[index].masked : rows_[index].picked;
      for (const Run& run : runs) {
        check(run.start >= 0 && run.start < run.stop && run.stop <= ends.back(), Error::Kind::value, "ListsBuilder::build: row ", row,
              " has the run [", run.start, ", ", run.stop, "), takes runs of at least one slot within [0, ", ends.back(), ")");
        plan::RowBits bits = all;
        if (!run.rows.empty()) {
          check(static_cast<int>(run.rows.size()) == words, Error::Kind::shape, "ListsBuilder::build: row ", row, " has a run with ", run.rows.size(),
                " words of rows, takes ", words, " for tile ", tile_);
          bool has_bit = false;
          for (size_t word = 0; word < run.rows.size(); ++word) has_bit = (bits[word] &= run.rows[word]) != 0 || has_bit;
          check(has_bit, Error::Kind::value, "ListsBuilder::build: no slot of row ", row, " reads its run [", run.start, ", ", run.stop,
                "); leave it out");
          check(kind != 0 || bits == all, Error::Kind::value, "ListsBuilder::build: row ", row, " has a whole run [", run.start, ", ", run.stop,
                ") that not every slot reads; put it into masked");
        }
        packed.lists[kind].push_back({run.start, run.stop, bits});
      }
    }
    packer.add(static_cast<int64_t>(index), last - first, packed, joins_touching_);
  }
  for (size_t index = 0; index < rows_.size(); ++index) {
    int64_t as_index = shared_with_[index];
    if (as_index < 0) continue;
    while (shared_with_[static_cast<size_t>(as_index)] >= 0)
      as_index = shared_with_[static_cast<size_t>(as_index)];  // it may have begun to share since
    packer.share(static_cast<int64_t>(index), as_index);
  }
  return packer.finish(edge_, memory, plan);
}

TILEWISE_END_PUBLIC
