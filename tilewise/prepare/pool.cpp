// SPDX-License-Identifier: Apache-2.0
#include "tilewise/prepare/pool.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "tilewise/base/error.h"
#include "tilewise/plan/rows.h"

namespace tilewise::prepare {
namespace {

using Kind = Error::Kind;

/// Which tokens a mean is made of.
struct Means {
  int tile;
  std::span<const int32_t> edge;
  const Order& order;
  int64_t seqlen;

  int64_t count() const { return edge.empty() ? (seqlen + tile - 1) / tile : static_cast<int64_t>(edge.size()) - 1; }
  int64_t first(int64_t t) const { return edge.empty() ? t * tile : edge[static_cast<size_t>(t)]; }
  int64_t last(int64_t t) const { return edge.empty() ? std::min<int64_t>(seqlen, (t + 1) * tile) : edge[static_cast<size_t>(t) + 1]; }
  bool is_padding(int64_t b, int64_t h, int64_t heads, int64_t slot) const {
    const TensorView& token = order.token;
    return token.has_value() && token.at<int32_t>(plan::batch_index(token, b), h * token.dim(1) / heads, slot) < 0;
  }
};

bool is_float(Dtype dtype) { return dtype == Dtype::f32 || dtype == Dtype::bf16 || dtype == Dtype::f16; }

/// `x` stands for tokens, `means` for what they are pooled to.
void check_pool(const char* function, const char* name_x, const TensorView& x, const char* name_means, const TensorView& means, int tile,
                std::span<const int32_t> edge, const Order& order) {
  check(x.rank() == 4, Kind::shape, function, ": ", name_x, " has shape ", x.shape(), ", takes [B, H, S, D]");
  check(is_float(x.dtype()), Kind::dtype, function, ": ", name_x, " is ", x.dtype(), ", takes f32, bf16 or f16; cast it first");
  check(!edge.empty() || tile >= 1, Kind::value, function, ": tile is ", tile, ", takes 1 or more tokens");
  if (!edge.empty()) {
    check(edge.front() == 0 && edge.back() == x.dim(2) && std::is_sorted(edge.begin(), edge.end()), Kind::value, function,
          ": the edges must rise from 0 to S = ", x.dim(2), "; they go from ", edge.front(), " to ", edge.back());
  }
  const int64_t count = Means{tile, edge, order, x.dim(2)}.count();
  check(means.shape() == (Shape{x.dim(0), x.dim(1), count, x.dim(3)}), Kind::shape, function, ": ", name_means, " has shape ", means.shape(),
        ", takes [", x.dim(0), ", ", x.dim(1), ", ", count, ", ", x.dim(3), "] for ", name_x, " ", x.shape());
  check(means.dtype() == Dtype::f32 || means.dtype() == x.dtype(), Kind::dtype, function, ": ", name_means, " is ", means.dtype(), ", takes f32 or ",
        x.dtype(), " as ", name_x);
  for (const auto& [name, view] : {std::pair{name_x, &x}, std::pair{name_means, &means}}) {
    check(view->dim(3) <= 1 || view->stride(3) == 1, Kind::shape, function, ": the last axis of ", name, " has stride ", view->stride(3),
          ", takes 1; copy the tensor so that it is contiguous");
    check(view->device().type == Device::Type::cpu, Kind::device, function, ": ", name, " is on ", view->device(), ", only the CPU is built");
    check(view->numel() == 0 || view->raw() != nullptr, Kind::value, function, ": ", name, " has a null pointer; give it memory");
  }
  const TensorView& token = order.token;
  if (!token.has_value()) return;
  check(token.dtype() == Dtype::i32 && token.rank() == 3 && (token.dim(0) == 1 || token.dim(0) == x.dim(0)) && token.dim(1) >= 1 &&
            x.dim(1) % token.dim(1) == 0 && token.dim(2) == x.dim(2),
        Kind::shape, function, ": the order's token is ", token.dtype(), " ", token.shape(), ", takes i32 [1 or ", x.dim(0), ", a divisor of ",
        x.dim(1), ", ", x.dim(2), "]");
}

template <class T>
T* row_of(const TensorView& view, int64_t b, int64_t h, int64_t s) {
  return static_cast<T*>(view.raw()) + view.offset(b, h, s);
}

/// Calls body(b, h, t) for every mean, a few of a head at a time.
template <class Body>
void for_each_mean(const TensorView& x, int64_t count, Context& context, const Body& body) {
  constexpr int64_t kMeans = 16;  // of an item
  const int64_t heads = x.dim(1), parts = (count + kMeans - 1) / kMeans;
  context.parallel_for(x.dim(0) * heads * parts, [&](int64_t item, int) {
    const int64_t part = item % parts, h = item / parts % heads, b = item / parts / heads;
    std::vector<float> sums(static_cast<size_t>(x.dim(3)));
    for (int64_t t = part * kMeans; t < std::min(count, (part + 1) * kMeans); ++t) body(b, h, t, sums);
  });
}

template <class From, class To>
void pool_as(const PoolParams& p, Context& context) {
  const Means means{p.tile, p.edge, p.order, p.x.dim(2)};
  for_each_mean(p.x, means.count(), context, [&](int64_t b, int64_t h, int64_t t, std::vector<float>& sums) {
    std::fill(sums.begin(), sums.end(), 0.0f);
    int64_t real = 0;
    for (int64_t s = means.first(t); s < means.last(t); ++s) {
      if (means.is_padding(b, h, p.x.dim(1), s)) continue;
      const From* const row = row_of<From>(p.x, b, h, s);
      for (size_t d = 0; d < sums.size(); ++d) sums[d] += static_cast<float>(row[d]);
      ++real;
    }
    const float weight = real > 0 ? 1.0f / static_cast<float>(real) : 0.0f;
    To* const out = row_of<To>(p.out, b, h, t);
    for (size_t d = 0; d < sums.size(); ++d) out[d] = static_cast<To>(sums[d] * weight);
  });
}

template <class To, class From>
void pool_backward_as(const PoolBackwardParams& p, Context& context) {
  const Means means{p.tile, p.edge, p.order, p.dx.dim(2)};
  for_each_mean(p.dx, means.count(), context, [&](int64_t b, int64_t h, int64_t t, std::vector<float>& share) {
    const int64_t first = means.first(t), last = means.last(t), heads = p.dx.dim(1);
    int64_t real = 0;
    for (int64_t s = first; s < last; ++s) real += means.is_padding(b, h, heads, s) ? 0 : 1;
    const float weight = real > 0 ? 1.0f / static_cast<float>(real) : 0.0f;
    const From* const dout = row_of<From>(p.dout, b, h, t);
    for (size_t d = 0; d < share.size(); ++d) share[d] = static_cast<float>(dout[d]) * weight;
    for (int64_t s = first; s < last; ++s) {
      const bool is_padding = means.is_padding(b, h, heads, s);
      To* const dx = row_of<To>(p.dx, b, h, s);
      for (size_t d = 0; d < share.size(); ++d) dx[d] = static_cast<To>(is_padding ? 0.0f : share[d]);
    }
  });
}

}  // namespace

Tensor mean_pool(const TensorView& tokens, int tile, std::span<const int32_t> edge, Context& context) {
  Tensor pooled;
  // What is wrong with them, pool says.
  if (tokens.rank() == 4 && (tile >= 1 || !edge.empty())) {
    const int64_t count = Means{tile, edge, {}, tokens.dim(2)}.count();
    pooled = Tensor(context.memory, Dtype::f32, {tokens.dim(0), tokens.dim(1), count, tokens.dim(3)});
  }
  pool({.x = tokens, .out = pooled.view, .tile = tile, .edge = edge}, context);
  return pooled;
}

}  // namespace tilewise::prepare

TILEWISE_BEGIN_PUBLIC

void pool(const PoolParams& params, Context& context) {
  prepare::check_pool("pool", "x", params.x, "out", params.out, params.tile, params.edge, params.order);
  const bool is_wide = params.out.dtype() == Dtype::f32;
  switch (params.x.dtype()) {
    case Dtype::bf16: return is_wide ? prepare::pool_as<bf16, float>(params, context) : prepare::pool_as<bf16, bf16>(params, context);
    case Dtype::f16: return is_wide ? prepare::pool_as<f16, float>(params, context) : prepare::pool_as<f16, f16>(params, context);
    default: return prepare::pool_as<float, float>(params, context);
  }
}

void pool_backward(const PoolBackwardParams& params, Context& context) {
  prepare::check_pool("pool_backward", "dx", params.dx, "dout", params.dout, params.tile, params.edge, params.order);
  const bool is_wide = params.dout.dtype() == Dtype::f32;
  switch (params.dx.dtype()) {
    case Dtype::bf16:
      return is_wide ? prepare::pool_backward_as<bf16, float>(params, context) : prepare::pool_backward_as<bf16, bf16>(params, context);
    case Dtype::f16: return is_wide ? prepare::pool_backward_as<f16, float>(params, context) : prepare::pool_backward_as<f16, f16>(params, context);
    default: return prepare::pool_backward_as<float, float>(params, context);
  }
}

TILEWISE_END_PUBLIC
