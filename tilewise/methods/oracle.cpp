// SPDX-License-Identifier: Apache-2.0
#include "tilewise/methods/oracle.h"

#include <algorithm>

#include "tilewise/attend/attend.h"
#include "tilewise/methods/problem.h"
#include "tilewise/plan/rows.h"
#include "tilewise/select/plan.h"
#ifdef TILEWISE_WITH_CUDA
#include "tilewise/select/cuda/scored_plan.h"
#endif

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

/// The part of an order that one head of one batch entry has.
Order order_of(const Order& order, int64_t b, int head, int heads) {
  if (!order.token.has_value()) return {};
  return {order.token.slice(0, plan::batch_index(order.token, b), 1).slice(1, plan::group_index(order.token, head, heads), 1), order.boxes};
}

/// Reduces the true probabilities of one head to its tiles. One head at a time bounds the memory: [Sq, Tk] floats.
void score_head(const select::Inputs& inputs, const select::Scores& scores, int64_t b, int head, OracleOptions::Rule rule, Context& context) {
  const select::RowGrid& grid = scores.grid;
  const int64_t tiles = scores.key_tiles(), head_kv = static_cast<int64_t>(head) * inputs.heads_kv() / inputs.heads_q();
  const TensorView q = inputs.q.slice(0, b, 1).slice(1, head, 1), k = inputs.k.slice(0, b, 1).slice(1, head_kv, 1);
  const Mask mask = mask_of(inputs.mask, head, b);
  select::RowGrid rows = select::RowGrid::plain(grid.seqlen_q, grid.seqlen_k, grid.tile);
  rows.order_q = order_of(inputs.order_q, b, head, inputs.heads_q());
  rows.order_k = order_of(inputs.order_k, b, head, inputs.heads_q());
  const Plan dense = select::plan_of_mask(mask, mask, rows, 1, 1, context);
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
  const plan::SlotTokens queries = grid.queries(b, head);
  context.parallel_for(grid.rows(), [&](int64_t row, int) {
    float* values = scores.row(b, head, row);
    std::fill_n(values, tiles, 0.0f);
    for (int64_t slot = grid.first(row); slot < grid.last(row); ++slot) {
      const int64_t query = queries[slot];
      if (query < 0) continue;
      const float* of_query = static_cast<const float*>(mass.view.raw()) + query * tiles;
      for (int64_t j = 0; j < tiles; ++j) values[j] = rule == OracleOptions::Rule::sum ? values[j] + of_query[j] : std::max(values[j], of_query[j]);
    }
  });
}

}  // namespace

Planned oracle(const Problem& problem, const OracleOptions& options, Context& context) {
  check_ranges("oracle", options);
  const bool is_on_device = is_on_gpu(problem, context);
  const select::Inputs inputs = inputs_of("oracle", problem, is_on_device ? context.device : Device{});
  refuse_grids("oracle", problem);
  select::Budget budget;
  const bool is_sum = options.rule == OracleOptions::Rule::sum;
  if (options.force || !is_sum) {
    budget.sink = budget.diagonal = 1;
  } else if (inputs.has_orders() && !select::is_full(inputs.mask, inputs.seqlen_q(), inputs.seqlen_k())) {
    // A tile that is seen in part may leave queries of the row without a key; in token order the diagonal alone is seen so.
    budget.diagonal = 1;
    budget.forced = select::Budget::Forced::beside;
  }
  if (options.density > 0) {
    budget.share = {options.density};
    budget.floor = 1;  // a small share of few tiles rounds to none
  } else if (is_sum) {
    budget.mass = {options.threshold};
  } else {
    budget.at_least = {options.threshold};
  }
  Planned planned;
#ifdef TILEWISE_WITH_CUDA
  if (is_on_device) {  // antidiagonals of one token are the true logits
    planned.plan = select::cuda::antidiagonal_plan(inputs, {.tile = options.tile, .stride = 1}, budget, context, !is_sum);
    return planned;
  }
#endif
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
  planned.plan = select::plan(scores, budget, context);
  return planned;
}

}  // namespace tilewise::method
