// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "tilewise/plan/cuda/lists_space.h"
#include "tilewise/plan/cuda/place_rows_kernel.h"
#include "tilewise/plan/rows.h"
#include "tilewise/select/cuda/choose_kernel.h"
#include "tilewise/select/cuda/plan.h"

// What select::plan() on a GPU is launched with: no CUDA in it, so that the CPU's tests launch the same.
namespace tilewise::select::cuda {

constexpr int kMostTiles = 8192;

struct PlanLaunch {
  ChooseArgs args;
  plan::cuda::PlaceRowsArgs place;
  long blocks = 0;
};

/// Slots of the first row where rows are cut on key tiles; 0: as many as the others; nothing: neither.
inline std::optional<int64_t> lead_of(const RowGrid& grid) {
  if (grid.edge.empty()) return 0;
  const auto lead = static_cast<int64_t>(grid.edge.size() > 1 ? grid.edge[1] : 0);
  for (size_t i = 1; i < grid.edge.size(); ++i) {
    if (grid.edge[i] != std::min(grid.seqlen_q, lead + (static_cast<int64_t>(i) - 1) * grid.tile)) return std::nullopt;
  }
  return lead;
}

inline int64_t key_tiles(const Scores& scores) { return (scores.grid.seqlen_k + scores.tile_k - 1) / scores.tile_k; }

/// Why the shapes alone are not taken.
inline std::optional<std::string> refusal_of_shapes(const Scores& scores) {
  const RowGrid& grid = scores.grid;
  if (grid.has_orders()) return "an order is not built; plan on the host, or for tensors that are reordered";
  if (scores.mask.bands.empty()) return "spans and neighbourhoods are not built; plan on the host";
  if (scores.mask.bands.size() > ChooseArgs::kClasses) return "the mask has more than 16 classes of heads";
  if (scores.heads > ChooseArgs::kMaskHeads) return "more than 256 heads are not built";
  if (!lead_of(grid)) return "rows of any edges are not built; take rows of one tile, or on the key tiles";
  if (key_tiles(scores) > kMostTiles) return "more than 8192 tiles of keys in a row are not built; take a larger tile";
  return std::nullopt;
}

inline std::optional<std::string> refusal_of(const Scores& scores, const Budget& budget) {
  if (auto reason = refusal_of_shapes(scores)) return reason;
  if (budget.scope != Budget::Scope::row) return "budgets over a head or a layer are not built; take one for each row";
  const size_t numbers = std::max({budget.mass.size(), budget.share.size(), budget.count.size(), budget.at_least.size()});
  if (numbers > 1 && scores.heads > ChooseArgs::kHeads) return "numbers for each of more than 64 heads are not built; take one for all";
  return std::nullopt;
}

inline plan::cuda::ListsSpace plan_space(const Scores& scores, const PlanRoom& room) {
  plan::cuda::ListsSpace space;
  space.tile = scores.grid.tile;
  space.batch = std::max<int64_t>(scores.batch, 1);
  space.groups = scores.heads;
  space.rows = scores.grid.rows();
  space.whole = room.whole;
  space.masked = room.masked;
  space.has_edge = !scores.grid.edge.empty();
  return space;
}

/// The most runs that one row of each head can have, over all rows and heads.
inline PlanRoom most_runs_of(const Scores& scores, const Budget& budget) {
  PlanRoom room;
  const int64_t tile = scores.tile_k;
  for (int head = 0; head < scores.heads; ++head) {
    for (int64_t row = 0; row < scores.grid.rows(); ++row) {
      const Visible visible = visible_keys(scores.mask, head, 0, scores.grid, row, scores.tile_k);
      int64_t whole = 0, masked = 0;  // every other tile of a part at most
      for (const Interval& part : visible.whole) whole += ((part.last + tile - 1) / tile - part.first / tile + 1) / 2;
      for (const Interval& part : visible.masked) masked += ((part.last + tile - 1) / tile - part.first / tile + 1) / 2;
      if (!budget.count.empty()) {
        const int64_t count = budget.count[budget.count.size() == 1 ? 0 : static_cast<size_t>(head)];
        const int64_t most = std::max(count, budget.floor) + budget.sink + (budget.diagonal > 0 ? budget.diagonal + scores.grid.tile / tile + 1 : 0);
        whole = std::min(whole, most);
        masked = std::min(masked, 4 * most);  // a tile may hold four masked pieces
      }
      room.whole += whole;
      room.masked += std::max<int64_t>(masked, 1);
    }
  }
  room.whole *= std::max<int64_t>(scores.batch, 1);
  room.masked *= std::max<int64_t>(scores.batch, 1);
  return room;
}

inline size_t plan_workspace(const Scores& scores, void* memory, ChooseArgs& args, plan::cuda::PlaceRowsArgs& place) {
  plan::cuda::MemoryParts parts(memory);
  place.cut = parts.take<int64_t>(1);
  args.cut = place.cut;
  args.kept_words = static_cast<int>((key_tiles(scores) + 31) / 32);
  args.kept = parts.take<uint32_t>(std::max<int64_t>(scores.batch, 1) * scores.heads * scores.grid.rows() * args.kept_words);
  return parts.bytes();
}

inline PlanLaunch plan_launch(const Scores& scores, const Budget& budget, const PlanData& plan, void* workspace) {
  PlanLaunch launch;
  ChooseArgs& args = launch.args;
  args = {};
  const RowGrid& grid = scores.grid;
  const TensorView& values = scores.values.view;
  args.scores = static_cast<const float*>(values.raw());
  args.stride_batch = values.stride(0);
  args.stride_head = values.stride(1);
  args.stride_row = values.stride(2);
  args.heads = scores.heads;
  args.tiles = static_cast<int>(key_tiles(scores));
  args.tile_k = scores.tile_k;
  args.tile_q = grid.tile;
  args.rows = grid.rows();
  args.seqlen_q = grid.seqlen_q;
  args.seqlen_k = grid.seqlen_k;
  args.lead = *lead_of(grid);
  std::copy(scores.mask.bands.begin(), scores.mask.bands.end(), args.bands);
  std::copy(scores.mask.head_class.begin(), scores.mask.head_class.end(), args.head_class);
  const size_t numbers = std::max({budget.mass.size(), budget.share.size(), budget.count.size(), budget.at_least.size(), size_t{1}});
  const auto number_of = [](const auto& list, size_t head, auto otherwise) { return list.empty() ? otherwise : list[list.size() == 1 ? 0 : head]; };
  args.num_limits = numbers == 1 ? 1 : scores.heads;
  for (int head = 0; head < args.num_limits; ++head) {
    const auto at = static_cast<size_t>(head);
    args.limits[head] = {number_of(budget.mass, at, 1.0f), number_of(budget.share, at, 1.0f), number_of(budget.at_least, at, -1.0f),
                         number_of(budget.count, at, int64_t{0})};
  }
  args.has_mass = !budget.mass.empty();
  args.has_share = !budget.share.empty();
  args.has_count = !budget.count.empty();
  args.is_forced_counted = budget.forced == Budget::Forced::counted;
  args.floor = budget.floor;
  args.sink = budget.sink;
  args.diagonal = budget.diagonal;
  plan::cuda::PlaceRowsArgs& place = launch.place;
  place = {};
  plan_workspace(scores, workspace, args, place);
  for (const auto& [list, i] : {std::pair{&plan.by_query.whole, 0}, std::pair{&plan.by_query.masked, 1}}) {
    args.count[i] = place.count[i] = static_cast<int32_t*>(list->count.raw());
    args.begin[i] = place.begin[i] = static_cast<int64_t*>(list->begin.raw());
    args.start[i] = static_cast<int32_t*>(list->start.raw());
    args.stop[i] = static_cast<int32_t*>(list->stop.raw());
    place.capacity[i] = list->start.numel();
  }
  if (plan.by_query.edge.has_value()) args.edge = static_cast<int32_t*>(plan.by_query.edge.raw());
  place.rows = scores.batch * scores.heads * grid.rows();
  place.status = static_cast<int32_t*>(plan.by_query.status.raw());
  place.covers = true;
  launch.blocks = static_cast<long>(place.rows);
  return launch;
}

}  // namespace tilewise::select::cuda
