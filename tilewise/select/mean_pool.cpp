// SPDX-License-Identifier: Apache-2.0
#include "tilewise/select/mean_pool.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "tilewise/machine/cpu/gemm.h"
#include "tilewise/prepare/pool.h"
#include "tilewise/prepare/reorder.h"
#include "tilewise/select/as_float.h"

namespace tilewise::select {
namespace {

/// In place: logits of the tiles that the row sees into probabilities, 0 for the others.
void softmax_row(float* values, int64_t tiles, const Visible& visible, int tile, float scale, float softcap) {
  std::vector<uint8_t> is_seen(static_cast<size_t>(tiles), 0);
  for (const std::vector<Interval>* parts : {&visible.whole, &visible.masked}) {
    for (const Interval& part : *parts) {
      for (int64_t j = part.first / tile; j * tile < part.last; ++j) is_seen[static_cast<size_t>(j)] = 1;
    }
  }
  float most = -HUGE_VALF;
  for (int64_t j = 0; j < tiles; ++j) {
    if (is_seen[static_cast<size_t>(j)] == 0) continue;
    float logit = values[j] * scale;
    if (softcap > 0) logit = softcap * std::tanh(logit / softcap);
    values[j] = logit;
    most = std::max(most, logit);
  }
  float sum = 0;
  for (int64_t j = 0; j < tiles; ++j) {
    values[j] = is_seen[static_cast<size_t>(j)] != 0 ? std::exp(values[j] - most) : 0.0f;
    sum += values[j];
  }
  for (int64_t j = 0; j < tiles && sum > 0; ++j) values[j] /= sum;
}

}  // namespace

Tensor tile_means(const TensorView& tokens, const Order& order, int tile, std::span<const int32_t> edge, Context& context) {
  if (!order.token.has_value()) return prepare::mean_pool(tokens, tile, edge, context);
  const AsFloat wide(tokens, context);
  const Tensor slots = prepare::to_slots(wide.view, order, context);
  Tensor means(context.memory, Dtype::f32, {slots.view.dim(0), slots.view.dim(1), (slots.view.dim(2) + tile - 1) / tile, slots.view.dim(3)});
  pool({.x = slots.view, .out = means.view, .tile = tile, .order = order}, context);
  return means;
}

Scores mean_pool_products(const Inputs& inputs, int tile, Context& context) {
  check(tile >= 1, Error::Kind::value, "mean_pool_products: tile is ", tile, ", it takes 1 or more tokens");
  const RowGrid grid = score_rows(inputs, tile);
  Scores scores = make_scores(inputs, grid, tile, context);
  const Tensor pooled_q = tile_means(inputs.q, inputs.order_q, tile, grid.edge, context);
  const Tensor pooled_k = tile_means(inputs.k, inputs.order_k, tile, {}, context);

  using machine::cpu::kLanes;
  const int64_t rows = grid.rows(), tiles = scores.key_tiles(), dim = inputs.head_dim(), blocks = (rows + kLanes - 1) / kLanes;
  const int group = inputs.heads_q() / static_cast<int>(pooled_k.view.dim(1));  // an order of its own for each head has split them
  context.parallel_for(scores.batch * scores.heads * blocks, [&](int64_t item, int) {
    const int64_t b = item / (scores.heads * blocks), block = item % blocks;
    const int h = static_cast<int>(item / blocks % scores.heads);
    const int count = static_cast<int>(std::min<int64_t>(kLanes, rows - block * kLanes));
    std::vector<float> packed(static_cast<size_t>(dim * kLanes));
    machine::cpu::pack_lanes(&pooled_q.view.at<float>(b, h, block * kLanes, 0), dim, count, dim, packed.data());
    std::vector<float> strip(static_cast<size_t>(64 + machine::cpu::kRowMultiple) * kLanes);
    for (int64_t first = 0; first < tiles; first += 64) {
      const int keys = static_cast<int>(std::min<int64_t>(64, tiles - first));
      const float* pointers[64];
      for (int i = 0; i < keys; ++i) pointers[i] = &pooled_k.view.at<float>(b, h / group, first + i, 0);
      machine::cpu::multiply(pointers, keys, dim, packed.data(), strip.data(), false, count);
      for (int lane = 0; lane < count; ++lane) {
        float* values = scores.row(b, h, block * kLanes + lane) + first;
        for (int i = 0; i < keys; ++i) values[i] = strip[static_cast<size_t>(int64_t{i} * kLanes + lane)];
      }
    }
  });
  return scores;
}

Scores mean_pool_scores(const Inputs& inputs, int tile, Context& context) {
  Scores scores = mean_pool_products(inputs, tile, context);
  const RowGrid& grid = scores.grid;
  context.parallel_for(scores.batch * scores.heads, [&](int64_t item, int) {
    const int64_t b = item / scores.heads;
    const int h = static_cast<int>(item % scores.heads);
    for (int64_t row = 0; row < grid.rows(); ++row) {
      softmax_row(scores.row(b, h, row), scores.key_tiles(), visible_keys(inputs.mask, h, b, grid, row, tile), tile, inputs.softmax_scale,
                  inputs.softcap);
    }
  });
  return scores;
}

}  // namespace tilewise::select
