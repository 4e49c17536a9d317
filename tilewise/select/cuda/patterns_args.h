// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <algorithm>
#include <memory>
#include <optional>
#include <string>

#include "tilewise/select/cuda/last_queries_args.h"
#include "tilewise/select/cuda/lines_args.h"
#include "tilewise/select/cuda/mean_pool_args.h"
#include "tilewise/select/cuda/patterns.h"

// What a plan of patterns on a GPU is launched with: no CUDA in it, so that the CPU's tests launch the same.
namespace tilewise::select::cuda {

struct PatternLaunch {
  bool has_lines = false, has_tiles = false;
  LastQueriesLaunch last;
  BestLinesArgs best = {};
  MeanPoolLaunch pool;
  PlanLaunch plan;
  LineRowsArgs rows = {};
  bool has_line_rows = false;  // lines that are not aligned
};

inline bool has_kind(const PatternParams& params, PatternHead::Kind kind) {
  return std::any_of(params.heads.begin(), params.heads.end(), [&](const PatternHead& head) { return head.kind == kind; });
}

/// Scores that stand for the rows of the plan, with the products of tiles at `memory` where a head asks for them.
inline Scores pattern_scores(const Inputs& inputs, const PatternParams& params, void* memory) {
  Scores scores = score_space(inputs, params.tile, memory);
  scores.mask = params.read;
  return scores;
}

inline Budget pattern_budget(const PatternParams& params) {
  Budget budget;
  for (const PatternHead& head : params.heads) budget.count.push_back(head.tiles);
  if (std::all_of(budget.count.begin(), budget.count.end(), [&](int64_t count) { return count == budget.count[0]; })) budget.count.resize(1);
  budget.diagonal = 1;
  budget.forced = Budget::Forced::beside;
  return budget;
}

inline std::optional<std::string> refusal_of(const Inputs& inputs, const PatternParams& params) {
  if (auto reason = refusal_of(inputs)) return reason;
  if (auto reason = refusal_of(pattern_scores(inputs, params, nullptr), pattern_budget(params))) return reason;
  if (has_kind(params, PatternHead::Kind::lines) && inputs.seqlen_k() > kMostLineKeys) return "lines over more than 786432 keys are not built";
  return std::nullopt;
}

/// Room that no inputs outgrow.
inline plan::cuda::ListsSpace pattern_space(const Inputs& inputs, const PatternParams& params) {
  const Scores scores = pattern_scores(inputs, params, nullptr);
  const RowGrid& grid = scores.grid;
  plan::cuda::ListsSpace space = plan_space(scores, {});
  space.has_picked = has_kind(params, PatternHead::Kind::lines) && !params.aligned;
  const int64_t tile = params.tile;
  for (int head = 0; head < scores.heads; ++head) {
    const PatternHead& of = params.heads[static_cast<size_t>(head)];
    const bool has_ranges = of.kind == PatternHead::Kind::lines && !params.aligned;
    for (int64_t row = 0; row < grid.rows(); ++row) {
      const int64_t seen = std::clamp<int64_t>(grid.last(row) + grid.offset(), 0, grid.seqlen_k);
      int64_t whole = 0, masked = 0;
      if (has_ranges) {
        // Ranges are a tile long at least, with a key between them; two at most reach past the row's first query.
        whole = std::min<int64_t>(of.slash, (seen + tile) / (tile + 1) + 1);
        masked = 2;
        space.picked += std::min<int64_t>(of.vertical, seen);
      } else {
        const Visible visible = visible_keys(scores.mask, head, 0, grid, row, scores.tile_k);
        if (of.kind == PatternHead::Kind::band) {
          whole = static_cast<int64_t>(visible.whole.size());
          masked = static_cast<int64_t>(visible.masked.size());
        } else {  // every other tile at most
          for (const Interval& part : visible.whole) whole += ((part.last + tile - 1) / tile - part.first / tile + 1) / 2;
          for (const Interval& part : visible.masked) masked += ((part.last + tile - 1) / tile - part.first / tile + 1) / 2;
          if (of.kind == PatternHead::Kind::tiles) whole = std::min(whole, of.tiles + 2);
        }
      }
      space.whole += whole;
      space.masked += std::max<int64_t>(masked, 1);
    }
  }
  space.whole *= space.batch;
  space.masked *= space.batch;
  space.picked *= space.batch;
  return space;
}

/// Places everything at `memory` and fills in what is launched; with a null plan it only counts. Returns the bytes.
inline size_t pattern_launch(const Inputs& inputs, const PatternParams& params, const PlanData* plan, void* memory, PatternLaunch& launch) {
  launch.has_lines = has_kind(params, PatternHead::Kind::lines);
  launch.has_tiles = has_kind(params, PatternHead::Kind::tiles);
  launch.has_line_rows = launch.has_lines && !params.aligned;
  plan::cuda::MemoryParts parts(memory);
  const auto part = [&](size_t bytes) -> void* { return parts.take<uint64_t>(static_cast<int64_t>((bytes + 7) / 8)); };
  const Scores shapes = pattern_scores(inputs, params, nullptr);
  void* const chosen = part([&] {
    ChooseArgs args;
    plan::cuda::PlaceRowsArgs place;
    return plan_workspace(shapes, nullptr, args, place);
  }());
  void *values = nullptr, *means = nullptr;
  if (launch.has_tiles) {
    MeanPoolArgs args;
    values = part(static_cast<size_t>(shapes.values.view.numel()) * sizeof(float));
    means = part(mean_pool_workspace(inputs, shapes, nullptr, args));
  }
  const int64_t words = line_words(inputs.seqlen_k()), all = inputs.batch() * inputs.heads_q();
  uint32_t* bits[2] = {};
  if (launch.has_lines) {
    for (uint32_t*& kind : bits) kind = parts.take<uint32_t>(all * words);
    if (plan == nullptr)
      last_queries_workspace(inputs, params.last, parts, launch.last);
    else
      launch.last = last_queries_launch(inputs, params.last, parts);
  }
  if (plan == nullptr) return parts.bytes();

  const Scores scores = pattern_scores(inputs, params, values);
  launch.plan = plan_launch(scores, pattern_budget(params), *plan, chosen);
  if (launch.has_tiles) {
    launch.pool = mean_pool_launch(inputs, scores, means);
    launch.pool.rows = 0;  // no softmax: products rank without its underflow
  }
  ChooseArgs& args = launch.plan.args;
  args.is_signed = true;
  BestLinesArgs& best = launch.best;
  best.seqlen_k = inputs.seqlen_k();
  best.words = words;
  best.heads = inputs.heads_q();
  best.forced[0] = params.first;
  best.forced[1] = params.nearest;
  best.sums[0] = launch.last.args.key;
  best.sums[1] = launch.last.args.offset;
  for (int kind = 0; kind < 2; ++kind) {
    best.bits[kind] = bits[kind];
    args.lines[kind] = bits[kind];
  }
  args.line_words = words;
  if (launch.has_line_rows) {
    const RunList& picked = plan->by_query.picked;
    plan::cuda::PlaceRowsArgs& place = launch.plan.place;
    launch.rows = line_rows_args(scores.grid, scores.heads, bits[0], bits[1], plan->by_query, place.cut);
    place.count[2] = args.no_picked = static_cast<int32_t*>(picked.count.raw());
    place.begin[2] = static_cast<int64_t*>(picked.begin.raw());
    place.capacity[2] = picked.start.numel();
  }
  for (int head = 0; head < scores.heads; ++head) {
    const PatternHead& of = params.heads[static_cast<size_t>(head)];
    const bool has_own_lines = of.kind == PatternHead::Kind::lines;
    best.count[0][head] = has_own_lines ? of.vertical : -1;
    best.count[1][head] = has_own_lines ? of.slash : -1;
    launch.rows.is_mine[head] = has_own_lines ? 1 : 0;
    args.head_rows[head] = of.kind == PatternHead::Kind::band    ? HeadRows::all
                           : of.kind == PatternHead::Kind::tiles ? HeadRows::by_scores
                           : params.aligned                      ? HeadRows::by_lines
                                                                 : HeadRows::elsewhere;
  }
  return parts.bytes();
}

}  // namespace tilewise::select::cuda
