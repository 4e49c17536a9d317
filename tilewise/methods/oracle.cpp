// SPDX-License-Identifier: Apache-2.0
#include "tilewise/methods/oracle.h"

#include <algorithm>

#include "tilewise/attend/attend.h"
#include "tilewise/methods/problem.h"
#include "tilewise/select/mean_pool.h"
#include "tilewise/select/plan.h"

namespace tilewise::method {
namespace {

/// The part of a mask that one head of one batch entry sees.
Mask mask_of(const Mask& mask, int head, int64_t b) {
  const int index = mask.head_class.empty() ? 0 : mask.head_class[static_cast<size_t>(head)];
  Mask part;
  if (mask.spans.has_value())
    part.spans = mask.spans.slice(0, index, 1).slice(1, mask.spans.dim(1) == 1 ? 0 : b, 1);
  else
    part.bands = {mask.bands[static_cast<size_t>(index)]};
  return part;
}

/// Reduces the true probabilities of one head to its tiles. One head at a time bounds the memory: [Sq, Tk] floats.
void score_head(const select::Inputs& inputs, const select::Scores& scores, int64_t b, int head, OracleOptions::Rule rule, Context& context) {
  const select::RowGrid& grid = scores.grid;
  const int64_t tiles = scores.key_tiles(), head_kv = static_cast<int64_t>(head) * inputs.heads_kv() / inputs.heads_q();
  const TensorView q = inputs.q.slice(0, b, 1).slice(1, head, 1), k = inputs.k.slice(0, b, 1).slice(1, head_kv, 1);
  const Mask mask = mask_of(inputs.mask, head, b);
  const Plan dense = select::plan_of_mask(mask, mask, select::RowGrid::plain(grid.seqlen_q, grid.seqlen_k, grid.tile), 1, 1, context);
  const Tensor lse(context.memory, Dtype::f32, {1, 1, grid.seqlen_q});
  attend_forward({.q = q, .k = k, .lse = lse.view, .plan = dense, .softmax_scale = inputs.softmax_scale, .softcap = inputs.softcap}, context);
  const Tensor mass(context.memory, Dtype::f32, {1, 1, grid.seqlen_q, tiles});
  measure({.q = q,
           .k = k,
           .plan = dense,
           .lse = lse.view,
           .over = MeasureOver::query_tile,
           .tile_k = scores.tile_k,
           .softmax_scale = inputs.softmax_scale,
           .softcap = inputs.softcap,
           .sum = mass.view},
          context);
  context.parallel_for(grid.rows(), [&](int64_t row, int) {
    float* values = scores.row(b, head, row);
    std::fill_n(values, tiles, 0.0f);
    for (int64_t i = grid.first(row); i < grid.last(row); ++i) {
      const float* of_query = static_cast<const float*>(mass.view.raw()) + i * tiles;
      for (int64_t j = 0; j < tiles; ++j) values[j] = rule == OracleOptions::Rule::sum ? values[j] + of_query[j] : std::max(values[j], of_query[j]);
    }
  });
}

}  // namespace

Planned oracle(const Problem& problem, const OracleOptions& options, Context& context) {
  check_ranges("oracle", options);
  const select::Inputs inputs = inputs_of("oracle", problem);
  refuse_orders("oracle", problem);
  refuse_grids("oracle", problem);
  const select::Scores scores = select::make_scores(inputs, select::score_rows(inputs, options.tile), options.tile, context);
  const bool has_pairs = inputs.seqlen_q() > 0 && inputs.seqlen_k() > 0;
  for (int64_t b = 0; b < scores.batch && has_pairs; ++b) {
    for (int head = 0; head < scores.heads; ++head) {
      try {
        score_head(inputs, scores, b, head, options.rule, context);
      } catch (const Error& error) {  // what attend does not take, this method does not
        if (error.kind() != Error::Kind::unsupported) throw;
        fail(Error::Kind::unsupported, "oracle: the true attention cannot be computed. ", error.what());
      }
    }
  }
  select::Budget budget;
  const bool is_sum = options.rule == OracleOptions::Rule::sum;
  if (options.force || !is_sum) budget.sink = budget.diagonal = 1;
  if (options.density > 0) {
    budget.share = {options.density};
    budget.floor = 1;  // a small share of few tiles rounds to none
  } else if (is_sum) {
    budget.mass = {options.threshold};
  } else {
    budget.at_least = {options.threshold};
  }
  Planned planned;
  planned.plan = select::plan(scores, budget, context);
  return planned;
}

}  // namespace tilewise::method
