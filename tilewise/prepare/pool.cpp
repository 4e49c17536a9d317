// SPDX-License-Identifier: Apache-2.0
#include "tilewise/prepare/pool.h"

#include <algorithm>

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

}  // namespace

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
