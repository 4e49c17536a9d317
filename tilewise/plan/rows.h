// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <algorithm>
#include <cstdint>

#include "tilewise/plan/plan.h"

// How code walks a plan on the host. Everything here trusts the plan: validate() first where it comes from outside.
namespace tilewise::plan {

/// The runs of one row of one list.
struct Runs {
  const int32_t* start = nullptr;
  const int32_t* stop = nullptr;   // null: start + grain, cut at the end of the axis or pool
  const uint64_t* rows = nullptr;  // null: every slot of the row reads the run; else `words` words a run
  int count = 0;
  int words = 0;
};

/// Index of batch entry b in an axis of size B or 1, and of head h in an axis of size G (head h uses h * G / Hq).
inline int64_t batch_index(const TensorView& view, int64_t b) { return view.dim(0) == 1 ? 0 : b; }
inline int64_t group_index(const TensorView& view, int head, int heads) { return static_cast<int64_t>(head) * view.dim(1) / heads; }

inline Runs runs_of(const RunList& list, int64_t b, int head, int heads, int64_t row) {
  if (!list.has_runs()) return {};
  const int64_t bi = batch_index(list.begin, b);
  const int64_t g = group_index(list.begin, head, heads);
  const int64_t begin = list.begin.at<int64_t>(bi, g, row);
  const int64_t bc = batch_index(list.count, b);
  const int64_t gc = group_index(list.count, head, heads);
  Runs runs;
  runs.count = list.count.at<int32_t>(bc, gc, row);
  runs.start = static_cast<const int32_t*>(list.start.raw()) + begin;
  if (list.stop.has_value()) runs.stop = static_cast<const int32_t*>(list.stop.raw()) + begin;
  if (list.rows.has_value()) {
    runs.words = static_cast<int>(list.rows.dim(1));
    runs.rows = static_cast<const uint64_t*>(list.rows.raw()) + begin * runs.words;
  }
  return runs;
}

/// Slots of the query axis and of the key axis (without pools).
inline int64_t slots_q(const PlanData& plan) { return plan.order_q.token.has_value() ? plan.order_q.token.dim(2) : plan.seqlen_q; }
inline int64_t slots_k(const PlanData& plan) { return plan.order_k.token.has_value() ? plan.order_k.token.dim(2) : plan.seqlen_k; }

/// Slots of the key axis with the pooled keys behind them.
inline int64_t slots_k_with_pools(const PlanData& plan) {
  int64_t total = slots_k(plan);
  for (const int group : plan.pools) total += (slots_k(plan) + group - 1) / group;
  return total;
}

/// First slot past the part of the key axis (the slots proper, or one pool) that holds `slot`.
inline int64_t part_end(const PlanData& plan, int64_t slot) {
  int64_t end = slots_k(plan);
  for (const int group : plan.pools) {
    if (slot < end) break;
    end += (slots_k(plan) + group - 1) / group;
  }
  return end;
}

inline int64_t num_rows(const Lists& lists, int64_t slots) {
  return lists.edge.has_value() ? lists.edge.dim(0) - 1 : (slots + lists.tile - 1) / lists.tile;
}
inline int64_t row_first(const Lists& lists, int64_t row) { return lists.edge.has_value() ? lists.edge.at<int32_t>(row) : row * lists.tile; }
inline int64_t row_last(const Lists& lists, int64_t row, int64_t slots) {  // first slot past the row
  return lists.edge.has_value() ? lists.edge.at<int32_t>(row + 1) : std::min<int64_t>(slots, (row + 1) * lists.tile);
}

/// Where run i ends. `axis_end` is the end of the axis or pool that holds it (part_end for keys, slots_q for queries).
inline int64_t run_stop(const Runs& runs, int i, int grain, int64_t axis_end) {
  return runs.stop != nullptr ? runs.stop[i] : std::min<int64_t>(axis_end, static_cast<int64_t>(runs.start[i]) + grain);
}

inline bool reads(const Runs& runs, int i, int64_t slot_in_row) {
  return runs.rows == nullptr || ((runs.rows[static_cast<int64_t>(i) * runs.words + slot_in_row / 64] >> (slot_in_row % 64)) & 1u) != 0;
}

/// Class of a head in the mask.
inline int head_class(const Mask& mask, int head) { return mask.head_class.empty() ? 0 : mask.head_class[static_cast<size_t>(head)]; }

/// Whether a band lets the query that counts as token `q` see key token `k`.
inline bool band_allows(const Mask::Band& band, int64_t q, int64_t k) {
  if (band.right != Mask::kAll && k > q + band.right) return false;
  if (k < band.sink) return true;
  return band.left == Mask::kAll || k >= q - band.left;
}

}  // namespace tilewise::plan
