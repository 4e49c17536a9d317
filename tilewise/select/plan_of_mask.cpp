// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cstring>

#include "tilewise/plan/builder.h"
#include "tilewise/plan/make.h"
#include "tilewise/plan/mask.h"
#include "tilewise/select/plan.h"

namespace tilewise::select {
namespace {

/// A contiguous copy of an i32 tensor whose buffer goes to the plan.
TensorView own(const TensorView& view, PlanData& plan, const std::shared_ptr<Memory>& memory) {
  if (!view.has_value()) return view;
  Tensor copy(memory, Dtype::i32, view.shape());
  auto* to = static_cast<int32_t*>(copy.view.raw());
  const Shape& shape = view.shape();
  const int64_t inner = shape[view.rank() - 1];
  const int64_t lines = inner == 0 ? 0 : view.numel() / inner;
  for (int64_t line = 0; line < lines; ++line) {
    int64_t rest = line, from = 0;
    for (int axis = view.rank() - 2; axis >= 0; --axis) {
      from += rest % shape[axis] * view.stride(axis);
      rest /= shape[axis];
    }
    for (int64_t i = 0; i < inner; ++i) *to++ = static_cast<const int32_t*>(view.raw())[from + i * view.stride(view.rank() - 1)];
  }
  plan.memory.push_back(std::move(copy.buffer));
  return copy.view;
}

std::vector<Run> runs_of(const std::vector<Interval>& intervals) {
  std::vector<Run> runs;
  runs.reserve(intervals.size());
  for (const Interval& interval : intervals) runs.push_back({static_cast<int32_t>(interval.first), static_cast<int32_t>(interval.last), {}});
  return runs;
}

}  // namespace

PlanData begin_plan(const Mask& read, const Mask& model, const RowGrid& grid, int64_t batch, int heads, const Context& context) {
  PlanData data;
  data.seqlen_q = grid.seqlen_q;
  data.seqlen_k = grid.seqlen_k;
  data.batch = batch;
  data.heads_q = heads;
  plan::set_dense_reads(data, model, grid);
  data.mask = read;
  data.mask.spans = own(read.spans, data, context.memory);
  data.order_q = {own(grid.order_q.token, data, context.memory), grid.order_q.boxes};
  data.order_k = {own(grid.order_k.token, data, context.memory), grid.order_k.boxes};
  return data;
}

Plan plan_of_mask(const Mask& read, const Mask& model, const RowGrid& grid, int64_t batch, int heads, Context& context) {
  PlanData data = begin_plan(read, model, grid, batch, heads, context);
  const int64_t entries = plan::differs_by_batch(read, grid) ? std::max<int64_t>(batch, 1) : 1;
  const int groups = plan::differs_by_head(read, grid) ? heads : 1;
  ListsBuilder builder(grid.tile, entries, groups, grid.rows(), grid.edge);
  constexpr int64_t kRowsAnItem = 64;  // under orders a row costs its keys
  const int64_t parts = (grid.rows() + kRowsAnItem - 1) / kRowsAnItem;
  context.parallel_for(entries * groups * parts, [&](int64_t item, int) {
    const int64_t b = item / parts / groups, from = item % parts * kRowsAnItem;
    const int g = static_cast<int>(item / parts % groups);
    for (int64_t row = from; row < std::min(grid.rows(), from + kRowsAnItem); ++row) {
      const Visible visible = visible_keys(read, g, b, grid, row, grid.tile);
      builder.set(b, g, row, {runs_of(visible.whole), runs_of(visible.masked), {}});
    }
  });
  data.by_query = builder.build(context.memory, data);
  return make_plan(std::move(data));
}

}  // namespace tilewise::select
