// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cstring>

#include "tilewise/plan/builder.h"
#include "tilewise/plan/make.h"
#include "tilewise/plan/mask.h"
#include "tilewise/plan/rows.h"
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

/// Tokens of the slots of one axis, as order holds them for batch entry b and a head.
struct Slots {
  const int32_t* token = nullptr;  // null: slot s holds token s
  int64_t count = 0;
  int64_t operator[](int64_t slot) const { return token == nullptr ? slot : token[slot]; }
};

Slots slots_of(const TensorView& order, int64_t b, int head, int heads, int64_t seqlen) {
  if (!order.has_value()) return {nullptr, seqlen};
  return {&order.at<int32_t>(plan::batch_index(order, b), plan::group_index(order, head, heads), 0), order.dim(2)};
}

void check_order(const char* name, const TensorView& order, int64_t seqlen, int64_t batch, int heads) {
  if (!order.has_value()) return;
  check(order.dtype() == Dtype::i32, Error::Kind::dtype, "plan_of_mask_in_orders: ", name, " is ", order.dtype(), ", it takes i32");
  check(order.rank() == 3 && (order.dim(0) == 1 || order.dim(0) == batch) && order.dim(1) >= 1 && heads % order.dim(1) == 0 &&
            order.dim(2) >= seqlen && order.dim(2) <= INT32_MAX,
        Error::Kind::shape, "plan_of_mask_in_orders: ", name, " is ", order.shape(), ", it takes [B or 1, G, slots] with B ", batch,
        ", G a divisor of ", heads, " heads and at least ", seqlen, " slots");
  for (int64_t b = 0; b < order.dim(0); ++b) {
    for (int64_t g = 0; g < order.dim(1); ++g) {
      std::vector<bool> seen(static_cast<size_t>(seqlen), false);
      int64_t held = 0;
      for (int64_t s = 0; s < order.dim(2); ++s) {
        const int64_t token = order.at<int32_t>(b, g, s);
        if (token == -1) continue;
        check(token >= 0 && token < seqlen && !seen[static_cast<size_t>(token)], Error::Kind::value, "plan_of_mask_in_orders: slot ", s, " of ", name,
              " holds token ", token, ", which is outside [0, ", seqlen, ") or repeated; each token has one slot, padding is -1");
        seen[static_cast<size_t>(token)] = true;
        ++held;
      }
      check(held == seqlen, Error::Kind::value, "plan_of_mask_in_orders: ", name, " holds ", held, " of ", seqlen, " tokens; it must hold all");
    }
  }
}

/// One row under orders: slots of keys by what the queries in it see, neighbours joined; `reads` counts pairs of real slots.
RowRuns ordered_row(const Mask& mask, int head, int64_t b, const std::vector<int64_t>& queries, const Slots& keys, int64_t offset, int64_t& reads) {
  RowRuns runs;
  bool has_padding = false;
  std::vector<int64_t> real;
  for (const int64_t query : queries) {
    if (query < 0)
      has_padding = true;
    else
      real.push_back(query);
  }
  if (real.empty()) return runs;
  for (int64_t slot = 0; slot < keys.count; ++slot) {
    const int64_t k = keys[slot];
    if (k < 0) continue;  // a padding slot is read by nobody
    int64_t seen_by = 0;
    if (mask.grids.empty()) {
      for (const int64_t query : real) seen_by += plan::allows(mask, head, b, query, k, offset) ? 1 : 0;
      if (seen_by == 0) continue;
    }
    reads += static_cast<int64_t>(real.size());
    // A row that holds a padding query is tested: `whole` promises that every slot of it may see the key.
    std::vector<Run>& list = seen_by == static_cast<int64_t>(real.size()) && !has_padding ? runs.whole : runs.masked;
    if (!list.empty() && list.back().stop == slot)
      ++list.back().stop;
    else
      list.push_back({static_cast<int32_t>(slot), static_cast<int32_t>(slot + 1), {}});
  }
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
  return data;
}

Plan plan_of_mask(const Mask& read, const Mask& model, const RowGrid& grid, int64_t batch, int heads, Context& context) {
  PlanData data = begin_plan(read, model, grid, batch, heads, context);
  const int64_t entries = differs_by_batch(read) ? std::max<int64_t>(batch, 1) : 1;
  const int groups = differs_by_head(read) ? heads : 1;
  ListsBuilder builder(grid.tile, entries, groups, grid.rows(), grid.edge);
  context.parallel_for(entries * groups, [&](int64_t item, int) {
    const int64_t b = item / groups;
    const int g = static_cast<int>(item % groups);
    for (int64_t row = 0; row < grid.rows(); ++row) {
      const Visible visible = visible_keys(read, g, b, grid, row, grid.tile);
      builder.set(b, g, row, {runs_of(visible.whole), runs_of(visible.masked), {}});
    }
  });
  data.by_query = builder.build(context.memory, data);
  return make_plan(std::move(data));
}

Plan plan_of_mask_in_orders(const Mask& mask, const Order& order_q, const Order& order_k, const RowGrid& grid, int64_t batch, int heads,
                            Context& context) {
  check_order("order_q", order_q.token, grid.seqlen_q, batch, heads);
  check_order("order_k", order_k.token, grid.seqlen_k, batch, heads);
  PlanData data = begin_plan(mask, mask, grid, batch, heads, context);
  data.order_q = {own(order_q.token, data, context.memory), order_q.boxes};
  data.order_k = {own(order_k.token, data, context.memory), order_k.boxes};
  const auto size = [](const TensorView& order, int axis) { return order.has_value() ? order.dim(axis) : 1; };
  const int64_t entries = std::max({size(order_q.token, 0), size(order_k.token, 0), differs_by_batch(mask) ? batch : int64_t{1}, int64_t{1}});
  // One list per head as soon as anything differs by head: group counts of the two orders need not divide one another.
  const int groups = size(order_q.token, 1) > 1 || size(order_k.token, 1) > 1 || differs_by_head(mask) ? heads : 1;
  const int64_t slots = order_q.token.has_value() ? order_q.token.dim(2) : grid.seqlen_q;
  const int64_t rows = (slots + grid.tile - 1) / grid.tile;

  ListsBuilder builder(grid.tile, entries, groups, rows);
  std::vector<int64_t> reads(static_cast<size_t>(entries * groups * rows), 0);
  context.parallel_for(entries * groups * rows, [&](int64_t item, int) {
    const int64_t b = item / (groups * rows), row = item % rows;
    const int g = static_cast<int>(item / rows % groups);
    const Slots queries = slots_of(order_q.token, b, g, heads, grid.seqlen_q);
    std::vector<int64_t> tokens;
    for (int64_t slot = row * grid.tile; slot < std::min(slots, (row + 1) * grid.tile); ++slot) tokens.push_back(queries[slot]);
    builder.set(
        b, g, row,
        ordered_row(mask, g, b, tokens, slots_of(order_k.token, b, g, heads, grid.seqlen_k), grid.offset(), reads[static_cast<size_t>(item)]));
  });
  data.by_query = builder.build(context.memory, data);
  data.dense_reads = 0;
  data.dense_reads_of_head.assign(static_cast<size_t>(groups), 0);
  const int64_t times = batch == 0 ? 0 : batch / entries;
  for (size_t item = 0; item < reads.size(); ++item) {
    data.dense_reads_of_head[item / static_cast<size_t>(rows) % static_cast<size_t>(groups)] += reads[item] * times;
    data.dense_reads += reads[item] * times * (heads / groups);
  }
  if (groups == 1) data.dense_reads_of_head.clear();
  return make_plan(std::move(data));
}

}  // namespace tilewise::select
