// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <utility>
#include <vector>

#include "tilewise/plan/cuda/complete.h"
#include "tilewise/plan/cuda/complete_kernel.h"
#include "tilewise/plan/cuda/lists_space.h"
#include "tilewise/plan/cuda/place_rows_kernel.h"
#include "tilewise/plan/cuda/run_list.h"
#include "tilewise/plan/groups.h"
#include "tilewise/plan/pack.h"

// What complete() on a GPU is launched with, from a plan: no CUDA in it, so that the CPU's tests launch the same.
namespace tilewise::plan::cuda {

struct CompleteLaunch {
  CompleteArgs args;
  PlaceRowsArgs place;
  int32_t* edge = nullptr;  // [T + 1] to be written; null: rows of `tile` slots
  long blocks = 0;
};

/// First slots of the rows of `tile` that an axis is cut into, at its parts too; returns how many there are. `edge` may be null.
TILEWISE_HOST_DEVICE inline int64_t cut_axis(const AxisView& axis, int tile, int32_t* edge) {
  int64_t rows = 0, first = 0;
  for (int part = 0; part < axis.parts; ++part) {
    for (; first < axis.end[part]; first = first + tile < axis.end[part] ? first + tile : axis.end[part]) {
      if (edge != nullptr) edge[rows] = static_cast<int32_t>(first);
      ++rows;
    }
  }
  if (edge != nullptr) edge[rows] = static_cast<int32_t>(first);
  return rows;
}

inline Groups groups_of(const PlanData& plan, const Lists& lists) {
  std::vector<TensorView> views{lists.whole.begin, lists.whole.count, lists.masked.begin, lists.masked.count, lists.picked.begin, lists.picked.count};
  views.push_back(plan.order_q.token);
  views.push_back(plan.order_k.token);
  return common_groups(views, plan.heads_q);
}

/// The space of the direction that `plan` lacks.
inline ListsSpace complete_space(const PlanData& plan, const CompleteRoom& room) {
  const bool is_by_query = plan.by_query.has_runs() || !plan.by_key.has_runs();
  const Lists& lists = is_by_query ? plan.by_query : plan.by_key;
  const AxisView to = is_by_query ? key_axis(plan) : query_axis(plan);
  const Groups groups = groups_of(plan, lists);
  ListsSpace space;
  space.tile = room.tile == 0 ? lists.tile : room.tile;
  space.batch = groups.batch;
  space.groups = groups.groups;
  space.rows = cut_axis(to, space.tile, nullptr);
  space.whole = room.whole;
  space.masked = room.masked;
  space.has_rows = room.has_rows;
  space.has_edge = to.parts > 1;
  return space;
}

inline CompleteRoom most_room_of(const PlanData& plan, int tile) {
  const bool is_by_query = plan.by_query.has_runs() || !plan.by_key.has_runs();
  const Lists& lists = is_by_query ? plan.by_query : plan.by_key;
  const ListsSpace space = complete_space(plan, {.tile = tile});
  const int64_t slots = is_by_query ? slots_q(plan) : slots_k_with_pools(plan), rows = num_rows(lists, slots);
  const bool by_slot = lists.masked.rows.has_value() || lists.picked.rows.has_value() || (!is_by_query && plan.order_k.token.has_value());
  const int64_t made = space.batch * space.groups * space.rows, cells = by_slot ? slots : rows;
  // Rows of padding queries alone read nothing that differs, but rows of by_key may not join at the border of a pool.
  const auto borders = static_cast<int64_t>(is_by_query ? 0 : plan.pools.size());
  return {.whole = made * ((cells + 1) / 2 + borders), .masked = made * cells, .has_rows = true, .tile = tile};
}

inline size_t complete_workspace(void* memory, PlaceRowsArgs& place, CompleteArgs& args) {
  MemoryParts parts(memory);
  place.cut = parts.take<int64_t>(1);
  args.needs_rows = parts.take<int32_t>(1);
  return parts.bytes();
}

/// `plan` has both directions; the one that was not planned is written.
inline CompleteLaunch complete_launch(const PlanData& plan, void* workspace) {
  CompleteLaunch launch;
  CompleteArgs& args = launch.args;
  PlaceRowsArgs& place = launch.place;
  place = {};
  args.is_by_query = !plan.is_by_key;
  const Lists& lists = args.is_by_query ? plan.by_query : plan.by_key;
  const Lists& made = args.is_by_query ? plan.by_key : plan.by_query;
  args.lists[0] = run_list(lists.whole);
  args.lists[1] = run_list(lists.masked);
  args.lists[2] = run_list(lists.picked);
  args.from = args.is_by_query ? query_axis(plan) : key_axis(plan);
  args.to = args.is_by_query ? key_axis(plan) : query_axis(plan);
  args.from_rows = rows_view(lists, args.is_by_query ? slots_q(plan) : slots_k_with_pools(plan));
  args.to_rows = rows_view(made, args.is_by_query ? slots_k_with_pools(plan) : slots_q(plan));
  args.batch = static_cast<int>(made.whole.begin.dim(0));
  args.groups = static_cast<int>(made.whole.begin.dim(1));
  args.heads_q = plan.heads_q;
  complete_workspace(workspace, place, args);
  for (const auto& [list, i] : {std::pair{&made.whole, 0}, std::pair{&made.masked, 1}}) {
    args.count[i] = place.count[i] = static_cast<int32_t*>(list->count.raw());
    args.begin[i] = place.begin[i] = static_cast<int64_t*>(list->begin.raw());
    args.start[i] = static_cast<int32_t*>(list->start.raw());
    args.stop[i] = static_cast<int32_t*>(list->stop.raw());
    place.capacity[i] = list->start.numel();
  }
  args.rows = made.masked.rows.has_value() ? static_cast<uint64_t*>(made.masked.rows.raw()) : nullptr;
  args.words = (made.tile + 63) / 64;
  place.rows = args.batch * int64_t{args.groups} * args.to_rows.rows;
  place.status = static_cast<int32_t*>(made.status.raw());
  place.needs_rows = args.needs_rows;
  place.covers = false;
  if (made.edge.has_value()) launch.edge = static_cast<int32_t*>(made.edge.raw());
  launch.blocks = static_cast<long>(place.rows);
  return launch;
}

}  // namespace tilewise::plan::cuda
