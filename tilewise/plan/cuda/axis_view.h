// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>

#include "tilewise/machine/cuda/block.h"
#include "tilewise/plan/plan.h"
#include "tilewise/plan/rows.h"

// One axis of a plan as kernels see it: slots, pools behind them, rows of slots.
namespace tilewise::plan::cuda {

/// The slots of an axis: `parts` of them are cut by borders that no run passes (the slots proper, then each pool).
struct AxisView {
  static constexpr int kParts = 8;
  int64_t end[kParts] = {};     // first slot past each part
  int group[kParts] = {};       // slots proper that a slot of the part is the mean of; 1 for the first
  int parts = 1;
  const int32_t* token = nullptr;  // [batch, groups, end[0]]: -1 is padding; null: none is
  int batch = 1, groups = 1;

  TILEWISE_DEVICE int64_t slots() const { return end[parts - 1]; }
  TILEWISE_DEVICE int part_of(int64_t slot) const {
    int part = 0;
    while (part + 1 < parts && slot >= end[part]) ++part;
    return part;
  }
  TILEWISE_DEVICE int64_t part_end(int64_t slot) const { return end[part_of(slot)]; }
  TILEWISE_DEVICE bool is_real(int b, int head, int heads_q, int64_t slot) const {
    if (token == nullptr) return true;
    const int32_t* const of = token + (int64_t{batch == 1 ? 0 : b} * groups + static_cast<int64_t>(head) * groups / heads_q) * end[0];
    const int part = part_of(slot);
    if (part == 0) return of[slot] >= 0;
    const int64_t first = (slot - end[part - 1]) * group[part];
    for (int64_t member = first; member < first + group[part] && member < end[0]; ++member) {
      if (of[member] >= 0) return true;
    }
    return false;
  }
};

/// Rows of an axis: `tile` slots each, cut by `edge` or at the parts.
struct RowsView {
  int tile = 0;
  int64_t rows = 0;
  const int32_t* edge = nullptr;  // [rows + 1]

  TILEWISE_DEVICE int64_t first(int64_t row) const { return edge != nullptr ? edge[row] : row * tile; }
  TILEWISE_DEVICE int64_t last(int64_t row, int64_t slots) const {
    const int64_t past = edge != nullptr ? edge[row + 1] : (row + 1) * tile;
    return past < slots ? past : slots;
  }
};

inline void set_tokens(AxisView& axis, const Order& order) {
  if (!order.token.has_value()) return;
  axis.token = static_cast<const int32_t*>(order.token.raw());
  axis.batch = static_cast<int>(order.token.dim(0));
  axis.groups = static_cast<int>(order.token.dim(1));
}

inline AxisView query_axis(const PlanData& plan) {
  AxisView axis;
  axis.end[0] = slots_q(plan);
  axis.group[0] = 1;
  set_tokens(axis, plan.order_q);
  return axis;
}

/// Errors: unsupported, more pools than kernels take.
inline AxisView key_axis(const PlanData& plan) {
  check(plan.pools.size() < AxisView::kParts, Error::Kind::unsupported, "the plan has ", plan.pools.size(), " pools; kernels take up to ",
        AxisView::kParts - 1);
  AxisView axis;
  axis.end[0] = slots_k(plan);
  axis.group[0] = 1;
  for (const int group : plan.pools) {
    axis.end[axis.parts] = axis.end[axis.parts - 1] + (slots_k(plan) + group - 1) / group;
    axis.group[axis.parts++] = group;
  }
  set_tokens(axis, plan.order_k);
  return axis;
}

inline RowsView rows_view(const Lists& lists, int64_t slots) {
  RowsView rows;
  rows.tile = lists.tile;
  rows.rows = num_rows(lists, slots);
  if (lists.edge.has_value()) rows.edge = static_cast<const int32_t*>(lists.edge.raw());
  return rows;
}

}  // namespace tilewise::plan::cuda
