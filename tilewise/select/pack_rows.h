// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <vector>

#include "tilewise/base/context.h"
#include "tilewise/plan/pack.h"
#include "tilewise/select/inputs.h"

// From what each row reads to the lists of a plan, rows in parallel.
namespace tilewise::select {

/// by_query of a plan that begin_plan() made, with lists for each head and batch entry: `set_row` writes the runs of one row into an empty `row`, from
/// several threads. Errors: memory, cancelled.
Lists pack_rows(const RowGrid& grid, int64_t batch, int heads, PlanData& plan, Context& context,
                FunctionRef<void(int64_t b, int head, int64_t index, plan::PackedRow& row)> set_row);

/// Appends keys [start, stop), which all slots of the row read, to one of its lists, joined with what ends there; nothing where it is empty.
void add_run(plan::PackedRow& row, plan::Kind kind, int64_t start, int64_t stop);
/// Everything that a row sees.
void add_visible(plan::PackedRow& row, const Visible& visible);
/// The tiles j with is_kept[j] != 0, `tile_k` keys each, cut to what the row sees.
void add_tiles(plan::PackedRow& row, const Visible& visible, const std::vector<uint8_t>& is_kept, int tile_k);

}  // namespace tilewise::select
