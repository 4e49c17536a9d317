// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <algorithm>
#include <optional>
#include <string>

#include "tilewise/select/cuda/flex.h"
#include "tilewise/select/cuda/flex_kernel.h"
#include "tilewise/select/cuda/last_queries_args.h"
#include "tilewise/select/cuda/mean_pool_args.h"

// What flexprefill on a GPU is launched with: no CUDA in it, so that the CPU's tests launch the same.
namespace tilewise::select::cuda {

struct FlexLaunch {
  LastQueriesLaunch last;
  MeanPoolLaunch last_mean, map;  // the mean of the last queries; means of all tiles and their map
  FlexArgs args = {};
  PlanLaunch plan;
};

inline std::optional<std::string> refusal_of(const Inputs& inputs, const FlexParams& params) {
  if (auto reason = refusal_of(inputs)) return reason;
  return refusal_of_shapes(score_space(inputs, params.tile, nullptr));
}

/// Places everything at `memory` and fills in what is launched; with a null plan it only counts. Returns the bytes.
inline size_t flex_launch(const Inputs& inputs, const FlexParams& params, const PlanData* plan, void* memory, FlexLaunch& launch) {
  plan::cuda::MemoryParts parts(memory);
  const auto part = [&](size_t bytes) -> void* { return parts.take<uint64_t>(static_cast<int64_t>((bytes + 7) / 8)); };
  const Scores shapes = score_space(inputs, params.tile, nullptr);
  FlexArgs& args = launch.args;
  args.rows = shapes.grid.rows();
  args.tiles = static_cast<int>(shapes.key_tiles());
  args.words = (args.tiles + 31) / 32;
  args.map_words = (args.rows * args.tiles + 31) / 32;
  const int64_t all = inputs.batch() * inputs.heads_q();
  MeanPoolArgs means;
  ChooseArgs choose;
  plan::cuda::PlaceRowsArgs place;
  void* const chosen = part(plan_workspace(shapes, nullptr, choose, place));
  void* const values = part(static_cast<size_t>(shapes.values.view.numel()) * sizeof(float));
  void* const pools = part(mean_pool_workspace(inputs, shapes, nullptr, means));
  auto* const mean_q = parts.take<float>(all * inputs.head_dim());
  args.columns = parts.take<uint32_t>(all * args.words);
  args.diagonals = parts.take<uint32_t>(all * args.words);
  args.map_bits = parts.take<uint32_t>(all * args.map_words);
  args.asks = parts.take<int32_t>(all);
  if (plan == nullptr) {
    last_queries_workspace(inputs, params.tile, parts, launch.last);
    return parts.bytes();
  }
  launch.last = last_queries_launch(inputs, params.tile, parts);
  const Scores scores = score_space(inputs, params.tile, values);
  launch.map = mean_pool_launch(inputs, scores, pools);
  // The mean of the last queries: a tensor of one tile a head.
  launch.last_mean = launch.map;
  PoolArgs& last = launch.last_mean.args.q;
  last.x = static_cast<const unsigned char*>(last.x) +
           (inputs.seqlen_q() - launch.last.args.queries) * last.stride_token * static_cast<int64_t>(size_of(inputs.q.dtype()));
  last.seqlen = launch.last.args.queries;
  last.tiles = 1;
  last.lead = 0;
  last.means = mean_q;
  launch.last_mean.args.q_blocks = all;
  launch.last_mean.pool_blocks = static_cast<long>(all);
  launch.last_mean.product_blocks = launch.last_mean.rows = 0;
  if (params.tau <= 0)
    launch.last_mean.pool_blocks = launch.map.pool_blocks = launch.map.product_blocks = launch.map.rows = 0;  // no head asks for means

  args.sums[0] = launch.last.args.key;
  args.sums[1] = launch.last.args.offset;
  args.mean_q = mean_q;
  args.mean_k = launch.map.args.k.means;
  args.map = static_cast<const float*>(values);
  args.seqlen_k = inputs.seqlen_k();
  args.heads = inputs.heads_q();
  args.group = inputs.heads_q() / inputs.heads_kv();
  args.dim = static_cast<int>(inputs.head_dim());
  args.queries = launch.last.args.queries;
  args.tile = params.tile;
  args.gamma = params.gamma;
  args.tau = params.tau;
  args.scale = inputs.softmax_scale;
  args.softcap = inputs.softcap;
  args.min_budget = params.min_budget;
  args.max_budget = params.max_budget;
  launch.plan = plan_launch(scores, {}, *plan, chosen);
  ChooseArgs& rows = launch.plan.args;
  std::fill(std::begin(rows.head_rows), std::end(rows.head_rows), HeadRows::by_marks);
  rows.columns = args.columns;
  rows.diagonals = args.diagonals;
  rows.marks = args.map_bits;
  rows.has_marks = args.asks;
  rows.mark_words = args.map_words;
  return parts.bytes();
}

}  // namespace tilewise::select::cuda
