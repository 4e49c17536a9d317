// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "tilewise/cache/paged.h"
#include "tilewise/prepare/quantise.h"

// What a paged cache should hold, kept in the plainest way.
namespace tilewise::testing {

using Rng = std::mt19937_64;

inline int64_t draw(Rng& rng, int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(rng); }

inline Tensor random_rows(Rng& rng, int heads, int64_t tokens, int channels) {
  Tensor rows(host_memory(), Dtype::f32, {1, heads, tokens, channels});
  std::normal_distribution<float> normal;
  for (int64_t i = 0; i < rows.view.numel(); ++i) rows.view.data<float>()[i] = normal(rng) * (draw(rng, 0, 20) == 0 ? 4.0f : 1.0f);
  return rows;
}

/// Rows [first, last) of a head as the store would give them back if they had a page to themselves, [last - first, D].
inline std::vector<float> kept(const PagedStore& store, int layer, int page_size, const std::vector<std::vector<float>>& rows, int64_t first,
                               int64_t last) {
  const auto channels = static_cast<int64_t>(rows[0].size()), count = last - first;
  Tensor x(host_memory(), Dtype::f32, {1, 1, count, channels}), out(host_memory(), Dtype::f32, {1, 1, count, channels});
  for (int64_t t = 0; t < count; ++t)
    std::copy(rows[static_cast<size_t>(first + t)].begin(), rows[static_cast<size_t>(first + t)].end(), &x.view.at<float>(0, 0, t));
  const float* const from = x.view.data<float>();
  std::vector<float> result(static_cast<size_t>(count * channels));
  switch (store.dtype) {
    case Dtype::f32: return {from, from + count * channels};
    case Dtype::bf16:
      for (size_t i = 0; i < result.size(); ++i) result[i] = static_cast<float>(bf16(from[i]));
      return result;
    case Dtype::f16:
      for (size_t i = 0; i < result.size(); ++i) result[i] = static_cast<float>(f16(from[i]));
      return result;
    default: break;
  }
  const bool is_int4 = store.dtype == Dtype::u8, is_given = !store.scales.empty();
  const int64_t tokens = is_given ? count : store.group.tokens == 0 ? page_size : store.group.tokens;
  const int64_t group_channels = store.group.channels == 0 ? channels : store.group.channels;
  Tensor data(host_memory(), store.dtype, {1, 1, count, is_int4 ? channels / 2 : channels});
  const Shape scales{1, 1, (count + tokens - 1) / tokens, (channels + group_channels - 1) / group_channels};
  Tensor scale(host_memory(), Dtype::f32, scales), zero;
  if (store.has_zero) zero = Tensor(host_memory(), Dtype::f32, scales);
  if (is_given) scale.view.data<float>()[0] = store.scales[static_cast<size_t>(layer)];
  Context context;
  const Quantised q{.data = data.view, .scale = scale.view, .zero = zero.view, .group = {static_cast<int>(tokens), store.group.channels}};
  quantise({.x = x.view, .out = q, .has_given_scale = is_given}, context);
  dequantise(q, out.view, context);
  return {out.view.data<float>(), out.view.data<float>() + count * channels};
}

/// A channel of a token of a batch, as attention would read it.
inline float read_number(const Paged& paged, int64_t b, int64_t head, int64_t token, int64_t d) {
  const auto* const plain = std::get_if<TensorView>(&paged.pool);
  const TensorView& data = plain != nullptr ? *plain : std::get<Quantised>(paged.pool).data;
  const int64_t page = paged.table.at<int32_t>(b, head, token / data.dim(2)), row = token % data.dim(2);
  if (plain != nullptr) {
    switch (data.dtype()) {
      case Dtype::bf16: return static_cast<float>(data.at<bf16>(page, 0, row, d));
      case Dtype::f16: return static_cast<float>(data.at<f16>(page, 0, row, d));
      default: return data.at<float>(page, 0, row, d);
    }
  }
  const Quantised& q = std::get<Quantised>(paged.pool);
  const int64_t tokens = q.group.tokens == 0 ? data.dim(2) : q.group.tokens, channels = q.group.channels == 0 ? q.channels() : q.group.channels;
  const int64_t entry = q.scale.dim(0) == 1 ? 0 : page;
  float code = 0;
  if (q.is_int4()) {
    const int byte = data.at<uint8_t>(page, 0, row, d / 2);
    code = static_cast<float>((d % 2 == 0 ? byte & 15 : byte >> 4) - 8);
  } else {
    code = data.at<int8_t>(page, 0, row, d);
  }
  const float zero = q.zero.has_value() ? q.zero.at<float>(entry, 0, row / tokens, d / channels) : 0.0f;
  return (code - zero) * q.scale.at<float>(entry, 0, row / tokens, d / channels);
}

}  // namespace tilewise::testing
