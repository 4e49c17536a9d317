// SPDX-License-Identifier: Apache-2.0
#include "tilewise/select/pack_rows.h"

#include <algorithm>
#include <optional>

namespace tilewise::select {
namespace {

constexpr plan::RowBits kAllSlots{~uint64_t{0}, ~uint64_t{0}, ~uint64_t{0}, ~uint64_t{0}};

}  // namespace

Lists pack_rows(const RowGrid& grid, int64_t batch, int heads, PlanData& plan, Context& context,
                FunctionRef<void(int64_t b, int head, int64_t index, plan::PackedRow& row)> set_row) {
  constexpr int64_t kRowsAnItem = 32;  // heads alone would leave threads idle
  const int64_t rows = grid.rows(), parts = (rows + kRowsAnItem - 1) / kRowsAnItem;
  const std::vector<int64_t> ends = plan::part_ends(plan, plan::Direction::by_query);
  std::vector<std::optional<plan::Packer>> packers(static_cast<size_t>(batch * heads * parts));
  context.parallel_for(static_cast<int64_t>(packers.size()), [&](int64_t item, int) {
    const int64_t b = item / (heads * parts), from = item % parts * kRowsAnItem, to = std::min(rows, from + kRowsAnItem);
    const int head = static_cast<int>(item / parts % heads);
    plan::Packer& packer = packers[static_cast<size_t>(item)].emplace(grid.tile, 1, 1, to - from, ends);
    plan::PackedRow row;
    for (int64_t index = from; index < to; ++index) {
      row.clear();
      set_row(b, head, index, row);
      packer.add(index - from, grid.last(index) - grid.first(index), row);
    }
  });
  plan::Packer packer(grid.tile, std::max<int64_t>(batch, 1), heads, rows, ends);
  for (size_t item = 0; item < packers.size(); ++item) {
    const auto head = static_cast<int64_t>(item) / parts, part = static_cast<int64_t>(item) % parts;
    packer.append(head * rows + part * kRowsAnItem, *packers[item]);
  }
  return packer.finish(grid.edge, context.memory, plan);
}

void add_run(plan::PackedRow& row, plan::Kind kind, int64_t start, int64_t stop) {
  if (start >= stop) return;
  std::vector<plan::PackedRun>& runs = row.list(kind);
  if (!runs.empty() && runs.back().stop == start)
    runs.back().stop = static_cast<int32_t>(stop);
  else
    runs.push_back({static_cast<int32_t>(start), static_cast<int32_t>(stop), kAllSlots});
}

void add_visible(plan::PackedRow& row, const Visible& visible) {
  for (const Interval& part : visible.whole) add_run(row, plan::Kind::whole, part.first, part.last);
  for (const Interval& part : visible.masked) add_run(row, plan::Kind::masked, part.first, part.last);
}

void add_tiles(plan::PackedRow& row, const Visible& visible, const std::vector<uint8_t>& is_kept, int tile_k) {
  for (const auto& [kind, parts] : {std::pair{plan::Kind::whole, &visible.whole}, std::pair{plan::Kind::masked, &visible.masked}}) {
    for (const Interval& part : *parts) {
      for (int64_t j = part.first / tile_k; j * tile_k < part.last; ++j) {
        if (is_kept[static_cast<size_t>(j)] != 0) add_run(row, kind, std::max(part.first, j * tile_k), std::min(part.last, (j + 1) * tile_k));
      }
    }
  }
}

}  // namespace tilewise::select
