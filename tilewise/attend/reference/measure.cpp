// SPDX-License-Identifier: Apache-2.0
#include "tilewise/attend/reference/measure.h"

#include <atomic>
#include <cmath>
#include <limits>
#include <vector>

#include "tilewise/attend/check.h"
#include "tilewise/attend/reference/axis.h"
#include "tilewise/attend/reference/logit.h"
#include "tilewise/attend/reference/pairs.h"

namespace tilewise::attend::reference {
namespace {

// The cells of one head of one batch entry.
struct Cells {
  std::vector<double> sum, max, count;

  explicit Cells(size_t size) : sum(size, 0.0), max(size, -std::numeric_limits<double>::infinity()), count(size, 0.0) {}

  void add(size_t cell, double value) {
    sum[cell] += value;
    if (std::isnan(value) || value > max[cell]) max[cell] = value;  // nothing is above a NaN, so it stays
    count[cell] += 1;
  }
};

// Where a pair is counted within its head's cells; -1: nowhere.
struct Place {
  const MeasureParams& params;
  int64_t tile_q, tile_k, width;  // width: cells of the last axis

  // `query` and `key` are tokens.
  int64_t operator()(int64_t query_slot, int64_t query, const Pair& pair, int64_t key) const {
    const int64_t row = params.in_slots ? query_slot : query;
    switch (params.over) {
      case MeasureOver::tile: return query_slot / tile_q * width + pair.key_slot / tile_k;
      case MeasureOver::query_tile: return row * width + pair.key_slot / tile_k;
      case MeasureOver::query_run: return row * width + pair.run;
      case MeasureOver::query: return row;
      case MeasureOver::key: return params.in_slots ? pair.key_slot : key;
      case MeasureOver::offset: return query + params.plan->seqlen_k - params.plan->seqlen_q - key;
    }
    return -1;
  }
};

int64_t measure_head(const MeasureParams& params, const Sizes& sizes, const Shape& shape, int64_t b, int head) {
  const PlanData& plan = *params.plan;
  const std::vector<int64_t> tokens_q = tokens_of(plan.order_q, plan.seqlen_q, b, head, sizes.heads_q);
  const KeyAxis keys = key_axis(plan, params.k, {}, b, head, sizes.heads_q, params.in_slots);
  const HeadPairs pairs(plan, b, head, tokens_q, keys.token);
  const double scale = scale_of(params.softmax_scale, sizes.head_dim), softcap = static_cast<double>(params.softcap);
  const size_t dim = static_cast<size_t>(sizes.head_dim);
  const int64_t rows = shape.rank == 4 ? shape[2] : 1, width = shape[shape.rank - 1];
  const Place place{params, measure_tile_q(params), measure_tile_k(params), width};
  Cells cells(static_cast<size_t>(rows * width));
  std::vector<double> q(dim);

  const auto add_query = [&](int64_t slot, std::span<const Pair> of_query) {
    const int64_t token = tokens_q[static_cast<size_t>(slot)], row = params.in_slots ? slot : token;
    for (size_t d = 0; d < dim; ++d) q[d] = get(params.q, b, head, row, static_cast<int64_t>(d));
    for (const Pair& pair : of_query) {
      const size_t key = static_cast<size_t>(pair.key_slot);
      double value = cap(scale * dot(q.data(), keys.k.data() + key * dim, sizes.head_dim), softcap) + keys.bias[key];
      if (params.key_bias.has_value()) value += get(params.key_bias, b, head, params.in_slots ? pair.key_slot : keys.token[key]);
      if (params.lse.has_value()) value = std::exp(value - get(params.lse, b, head, row));
      const int64_t cell = place(slot, token, pair, keys.token[key]);
      if (cell >= 0) cells.add(static_cast<size_t>(cell), value);  // a negative offset has no cell
    }
  };
  int64_t pairs_read = 0;
  for (int64_t item = 0; item < pairs.items(); ++item) pairs_read += pairs.for_each_query(item, add_query);

  const auto write = [&](const TensorView& view, const std::vector<double>& values) {
    if (!view.has_value()) return;
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t column = 0; column < width; ++column) {
        const double value = values[static_cast<size_t>(row * width + column)];
        shape.rank == 4 ? set(view, value, b, head, row, column) : set(view, value, b, head, column);
      }
    }
  };
  write(params.sum, cells.sum);
  write(params.max, cells.max);
  write(params.count, cells.count);
  return pairs_read;
}

}  // namespace

Ran measure(const MeasureParams& params, Context& context) {
  const Sizes sizes = check_measure(params, context);
  check_entries("measure", params.plan);
  const Shape shape = measure_shape(params);
  std::atomic<int64_t> pairs_read{0};
  context.parallel_for(sizes.batch * sizes.heads_q, [&](int64_t item, int) {
    pairs_read += measure_head(params, sizes, shape, item / sizes.heads_q, static_cast<int>(item % sizes.heads_q));
  });
  return {.backend = "reference", .target = "f64", .pairs_read = pairs_read.load()};
}

}  // namespace tilewise::attend::reference
