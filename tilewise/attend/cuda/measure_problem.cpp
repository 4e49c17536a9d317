// SPDX-License-Identifier: Apache-2.0
#include "tilewise/attend/cuda/measure_problem.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "tilewise/attend/cuda/plan_view.h"
#include "tilewise/attend/cuda/problem.h"
#include "tilewise/plan/rows.h"

namespace tilewise::attend::cuda {
namespace {

// Rows and columns of the workspace's cells, for one head; none where a cell has one block.
struct Rows {
  int64_t rows = 0, width = 0, group = 1;
  int64_t cells() const { return rows * width; }
};

Rows rows_of(const MeasureParams& params, const MeasureArgs& args) {
  switch (params.over) {
    case MeasureOver::tile: {
      const int64_t tile_k = measure_tile_k(params);
      return {plan::slots_q(*params.plan), (plan::slots_k_with_pools(*params.plan) + tile_k - 1) / tile_k, measure_tile_q(params)};
    }
    case MeasureOver::key:
    case MeasureOver::offset: {
      const int64_t parts = args.rows.rows * args.parts_per_row;
      return {parts, params.over == MeasureOver::key ? plan::slots_k(*params.plan) : params.plan->seqlen_k, std::max<int64_t>(parts, 1)};
    }
    default: return {};
  }
}

int kernel_head_dim_of(const Sizes& sizes) {
  Sizes own = sizes;
  own.head_dim_v = 0;
  return kernel_head_dim(own);
}

MeasureArgs plan_args(const MeasureParams& params, const Sizes& sizes) {
  MeasureArgs args;
  set_plan(args, *params.plan, sizes, params.in_slots, forward_tile_q(params.q.dtype(), kernel_head_dim_of(sizes)));
  return args;
}

AttendParams pooled_params(const MeasureParams& params) {
  AttendParams p;
  p.q = params.q;
  p.k = params.k;
  p.plan = params.plan;
  p.in_slots = params.in_slots;
  return p;
}

Sizes sizes_without_v(const Sizes& sizes) {
  Sizes own = sizes;
  own.head_dim_v = 0;
  return own;
}

VectorArg vector_arg(const TensorView& view) {
  if (!view.has_value()) return {};
  return {static_cast<const float*>(view.raw()), view.stride(0), view.stride(1), view.stride(2)};
}

int64_t heads_at_once(int64_t heads, int64_t cells, size_t most) {
  const auto bytes = static_cast<int64_t>(3 * sizeof(float)) * cells;
  return bytes == 0 ? heads : std::clamp<int64_t>(static_cast<int64_t>(most) / bytes, 1, std::max<int64_t>(heads, 1));
}

}  // namespace

std::optional<std::string> refusal_of_measure(const MeasureParams& params) {
  for (const auto& [name, view] : {std::pair{"q", &params.q}, std::pair{"k", &params.k}}) {
    if (auto reason = refusal_of_tensor(name, *view)) return reason;
  }
  if (params.over == MeasureOver::query_run)
    return "sums over the runs of a query are not built (has tiles, tiles of a query, queries, keys, offsets)";
  return refusal_of_plan(*params.plan);
}

size_t measure_workspace(const MeasureParams& params, const Sizes& sizes, size_t most) {
  const int64_t cells = rows_of(params, plan_args(params, sizes)).cells(), heads = sizes.batch * sizes.heads_q;
  PlanArgs plan;
  WorkspaceParts parts(nullptr);
  make_pools(pooled_params(params), sizes_without_v(sizes), plan, parts);
  if (heads > 0) parts.take<float>(3 * cells * heads_at_once(heads, cells, most));
  return parts.bytes();
}

MeasureWork measure_work(const MeasureParams& params, const Sizes& sizes, void* workspace, size_t most) {
  MeasureWork work;
  MeasureArgs& args = work.args;
  args = plan_args(params, sizes);
  WorkspaceParts parts(workspace);
  const Pools pools = make_pools(pooled_params(params), sizes_without_v(sizes), args, parts);
  work.pool = pools.args;
  work.pool_blocks = pools.blocks;
  args.pooled_k = pools.k;
  args.q = tensor_arg(params.q);
  args.k = tensor_arg(params.k);
  args.lse = vector_arg(params.lse);
  args.key_bias = vector_arg(params.key_bias);
  args.softmax_scale = static_cast<float>(scale_of(params.softmax_scale, sizes.head_dim));
  args.softcap = params.softcap;
  args.tile_k = params.over == MeasureOver::query ? std::numeric_limits<int64_t>::max()
                : params.over == MeasureOver::key ? 1
                                                  : measure_tile_k(params);
  args.row = params.over == MeasureOver::tile     ? CellRow::slot
             : params.over == MeasureOver::key    ? CellRow::part_keys
             : params.over == MeasureOver::offset ? CellRow::part_offsets
                                                  : CellRow::place;
  work.heads = sizes.batch * sizes.heads_q;
  work.blocks_of_head = args.rows.rows * args.parts_per_row;

  // What the caller gets: [B, Hq, row, column]; over queries one column, over keys one row.
  const Shape shape = measure_shape(params);
  CellsView& out = work.clear.cells;
  const bool is_query = params.over == MeasureOver::query, has_one_row = params.over == MeasureOver::key || params.over == MeasureOver::offset;
  const TensorView* const views[3] = {&params.sum, &params.max, &params.count};
  for (int what = 0; what < 3; ++what) {
    const TensorView& view = *views[what];
    if (!view.has_value()) continue;
    out.of[what] = static_cast<float*>(view.raw());
    for (int axis = 0; axis < 2; ++axis) out.stride[what][axis] = view.stride(axis);
    out.stride[what][2] = has_one_row ? 0 : view.stride(2);
    out.stride[what][3] = is_query ? 0 : view.stride(shape.rank - 1);
  }
  work.clear.sizes[0] = shape[0];
  work.clear.sizes[1] = shape[1];
  work.clear.sizes[2] = has_one_row ? 1 : shape[2];
  work.clear.sizes[3] = is_query ? 1 : shape[shape.rank - 1];

  const Rows rows = rows_of(params, args);
  if (params.over != MeasureOver::tile && !has_one_row) {
    args.cells = out;
    return work;
  }
  if (rows.cells() == 0 || work.heads == 0) {  // nothing but what is cleared
    work.heads = 0;
    return work;
  }
  work.cells_of_head = rows.cells();
  work.heads_at_once = heads_at_once(work.heads, rows.cells(), most);
  work.workspace = parts.take<float>(3 * rows.cells() * work.heads_at_once);
  for (int what = 0; what < 3; ++what) {
    args.cells.of[what] = work.workspace + what * work.heads_at_once * rows.cells();
    const int64_t strides[4] = {sizes.heads_q * rows.cells(), rows.cells(), rows.width, 1};
    std::copy(strides, strides + 4, args.cells.stride[what]);
  }
  ReduceArgs& reduce = work.reduce;
  reduce.sum = args.cells.of[0];
  reduce.max = args.cells.of[1];
  reduce.count = args.cells.of[2];
  reduce.rows = rows.rows;
  reduce.width = rows.width;
  reduce.group = rows.group;
  reduce.heads_q = sizes.heads_q;
  reduce.has_one_row = has_one_row;
  reduce.is_by_token = params.over == MeasureOver::key && !params.in_slots;
  reduce.axis_k = args.axis_k;
  reduce.out = out;
  return work;
}

}  // namespace tilewise::attend::cuda
