// SPDX-License-Identifier: Apache-2.0
#include "tilewise/prepare/pool.h"

#include <algorithm>
#include <vector>

#include "tilewise/plan/rows.h"

namespace tilewise::prepare {
namespace {

template <class T>
void pool_tile(const TensorView& tokens, int64_t b, int64_t h, int64_t first, int64_t last, float* out) {
  const int64_t dim = tokens.dim(3);
  std::fill(out, out + dim, 0.0f);
  for (int64_t s = first; s < last; ++s) {
    const T* token = static_cast<const T*>(tokens.raw()) + tokens.offset(b, h, s, 0);
    for (int64_t d = 0; d < dim; ++d) out[d] += static_cast<float>(token[d]);
  }
  const float weight = last > first ? 1.0f / static_cast<float>(last - first) : 0.0f;
  for (int64_t d = 0; d < dim; ++d) out[d] *= weight;
}

// The mean of the slots [first, last) that hold a token.
template <class T>
void pool_group(const TensorView& slots, int64_t b, int64_t j, int64_t first, int64_t last, const Order& order, std::vector<float>& sums, T* out) {
  std::fill(sums.begin(), sums.end(), 0.0f);
  const int64_t bi = order.token.has_value() ? plan::batch_index(order.token, b) : 0;
  const int64_t g = order.token.has_value() ? j * order.token.dim(1) / slots.dim(1) : 0;
  int64_t real = 0;
  for (int64_t s = first; s < last; ++s) {
    if (order.token.has_value() && order.token.at<int32_t>(bi, g, s) < 0) continue;
    const T* const row = static_cast<const T*>(slots.raw()) + slots.offset(b, j, s);
    for (size_t d = 0; d < sums.size(); ++d) sums[d] += static_cast<float>(row[d]);
    ++real;
  }
  const float weight = real > 0 ? 1.0f / static_cast<float>(real) : 0.0f;
  for (size_t d = 0; d < sums.size(); ++d) out[d] = static_cast<T>(sums[d] * weight);
}

template <class T>
void pool_all(const TensorView& slots, int group, const Order& order, const TensorView& pooled, Context& context) {
  constexpr int64_t kGroups = 64;  // of an item
  const int64_t count = pooled.dim(2), parts = (count + kGroups - 1) / kGroups;
  context.parallel_for(slots.dim(0) * slots.dim(1) * parts, [&](int64_t item, int) {
    const int64_t part = item % parts, j = item / parts % slots.dim(1), b = item / parts / slots.dim(1);
    std::vector<float> sums(static_cast<size_t>(slots.dim(3)));
    for (int64_t t = part * kGroups; t < std::min(count, (part + 1) * kGroups); ++t) {
      const int64_t first = t * group, last = std::min<int64_t>(slots.dim(2), first + group);
      pool_group(slots, b, j, first, last, order, sums, static_cast<T*>(pooled.raw()) + pooled.offset(b, j, t));
    }
  });
}

}  // namespace

void pool_slots(const TensorView& slots, int group, const Order& order, const TensorView& pooled, Context& context) {
  check(group >= 1, Error::Kind::value, "pool_slots: group is ", group, ", takes 1 or more slots");
  check(slots.rank() == 4 && pooled.rank() == 4 &&
            pooled.shape() == (Shape{slots.dim(0), slots.dim(1), (slots.dim(2) + group - 1) / group, slots.dim(3)}),
        Error::Kind::shape, "pool_slots: slots are ", slots.shape(), " and pooled ", pooled.shape(), ", takes [B, H, S, D] and [B, H, ceil(S / ",
        group, "), D]");
  for (const TensorView* view : {&slots, &pooled}) {
    check(view->dim(3) <= 1 || view->stride(3) == 1, Error::Kind::shape, "pool_slots: a last axis has stride ", view->stride(3), ", takes 1");
  }
  if (order.token.has_value()) {
    const TensorView& token = order.token;
    check(token.dtype() == Dtype::i32 && token.rank() == 3 && (token.dim(0) == 1 || token.dim(0) == slots.dim(0)) &&
              (slots.dim(1) == 0 || slots.dim(1) % token.dim(1) == 0) && token.dim(2) == slots.dim(2),
          Error::Kind::shape, "pool_slots: the order's token is ", token.dtype(), " ", token.shape(), ", takes i32 [1 or ", slots.dim(0),
          ", a divisor of ", slots.dim(1), ", ", slots.dim(2), "]");
  }
  check(pooled.dtype() == slots.dtype(), Error::Kind::dtype, "pool_slots: pooled is ", pooled.dtype(), ", takes ", slots.dtype(), " as slots");
  switch (slots.dtype()) {
    case Dtype::f32: return pool_all<float>(slots, group, order, pooled, context);
    case Dtype::bf16: return pool_all<bf16>(slots, group, order, pooled, context);
    case Dtype::f16: return pool_all<f16>(slots, group, order, pooled, context);
    default: fail(Error::Kind::dtype, "pool_slots: slots are ", slots.dtype(), ", takes f32, bf16 or f16; cast them first");
  }
}

Tensor mean_pool(const TensorView& tokens, int tile, std::span<const int32_t> edge, Context& context) {
  check(tokens.rank() == 4, Error::Kind::shape, "mean_pool: tokens are ", tokens.shape(), ", it takes [B, H, S, D]");
  check(tokens.dim(3) <= 1 || tokens.stride(3) == 1, Error::Kind::shape, "mean_pool: the last axis of tokens has stride ", tokens.stride(3),
        ", it must be contiguous");
  const Dtype dtype = tokens.dtype();
  check(dtype == Dtype::f32 || dtype == Dtype::bf16 || dtype == Dtype::f16, Error::Kind::dtype, "mean_pool: tokens are ", dtype,
        ", it takes f32, bf16 or f16; cast them first");
  check(tile >= 1, Error::Kind::value, "mean_pool: tile is ", tile, ", it takes 1 or more tokens");
  if (!edge.empty()) {
    check(edge.front() == 0 && edge.back() == tokens.dim(2) && std::is_sorted(edge.begin(), edge.end()), Error::Kind::value,
          "mean_pool: the edges must rise from 0 to S = ", tokens.dim(2), "; they go from ", edge.front(), " to ", edge.back());
  }
  const int64_t tiles = edge.empty() ? (tokens.dim(2) + tile - 1) / tile : static_cast<int64_t>(edge.size()) - 1;
  Tensor pooled(context.memory, Dtype::f32, {tokens.dim(0), tokens.dim(1), tiles, tokens.dim(3)});
  context.parallel_for(tokens.dim(0) * tokens.dim(1) * tiles, [&](int64_t item, int) {
    const int64_t t = item % tiles, h = item / tiles % tokens.dim(1), b = item / tiles / tokens.dim(1);
    const int64_t first = edge.empty() ? t * tile : edge[static_cast<size_t>(t)];
    const int64_t last = edge.empty() ? std::min<int64_t>(tokens.dim(2), first + tile) : edge[static_cast<size_t>(t) + 1];
    float* out = &pooled.view.at<float>(b, h, t, 0);
    if (dtype == Dtype::f32)
      pool_tile<float>(tokens, b, h, first, last, out);
    else if (dtype == Dtype::bf16)
      pool_tile<bf16>(tokens, b, h, first, last, out);
    else
      pool_tile<f16>(tokens, b, h, first, last, out);
  });
  return pooled;
}

}  // namespace tilewise::prepare
