// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "tests/attend/dense_oracle.h"

// How far gradients computed in a dtype may be from exact ones.
namespace tilewise::attend::testing {

/// Gradients, in the order of the axes.
struct Gradients {
  std::vector<double> dq, dk, dv, dsink;
  double largest_logit = 0;  // magnitude, of backward_in_dtype
};

/// Gradients as a plain f32 implementation computes them on the given dtype: products and sums one after another in f32, P and dS rounded to the dtype
/// before they meet q, k and dout, pooled keys too, each gradient rounded once.
inline Gradients gradients_in_dtype(const RandomPlan& plan, const AttendBackwardParams& params) {
  const AttendParams& p = params.forward;
  const Dtype dtype = p.q.dtype();
  const auto rounded = [dtype](float x) {
    return dtype == Dtype::bf16 ? static_cast<float>(bf16(x)) : dtype == Dtype::f16 ? static_cast<float>(f16(x)) : x;
  };
  const auto floats = [](const std::vector<double>& row) { return std::vector<float>(row.begin(), row.end()); };
  const auto dot = [](const std::vector<float>& a, const std::vector<float>& b) {
    float sum = 0;
    for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
    return sum;
  };
  const float scale = p.softmax_scale ? *p.softmax_scale : 1.0f / std::sqrt(static_cast<float>(p.q.dim(3)));
  std::vector<float> dq(static_cast<size_t>(p.q.numel()), 0.0f), dk(static_cast<size_t>(p.k.numel()), 0.0f),
      dv(static_cast<size_t>(p.v.numel()), 0.0f), dsink(static_cast<size_t>(p.q.dim(1)), 0.0f);
  double largest_logit = 0;
  const int64_t heads = p.q.dim(1), seqlen_q = p.q.dim(2), seqlen_k = p.k.dim(2);
  const auto dim = static_cast<size_t>(p.q.dim(3)), dim_v = static_cast<size_t>(p.v.dim(3));
  for (int64_t b = 0; b < p.q.dim(0); ++b) {
    for (int64_t h = 0; h < heads; ++h) {
      const dense::Keys keys = dense::keys_of(plan, p, b, h);
      std::vector<std::vector<float>> k, v;
      const auto pooled = [&](const std::vector<double>& row) {
        std::vector<float> result = floats(row);
        for (float& x : result) x = rounded(x);
        return result;
      };
      for (const std::vector<double>& row : keys.k) k.push_back(pooled(row));
      for (const std::vector<double>& row : keys.v) v.push_back(pooled(row));
      const int64_t hk = h / (heads / p.k.dim(1)), hv = h / (heads / p.v.dim(1));
      for (int64_t i = 0; i < seqlen_q; ++i) {
        const auto lse = static_cast<float>(to_double(p.lse, p.lse.offset(b, h, i)));
        if (lse == -std::numeric_limits<float>::infinity()) continue;
        const std::vector<float> q = floats(dense::row_of(p.q, b, h, i)), g = floats(dense::row_of(params.dout, b, h, i));
        float delta = dot(g, floats(dense::row_of(p.out, b, h, i)));
        if (params.dlse.has_value()) delta -= static_cast<float>(to_double(params.dlse, params.dlse.offset(b, h, i)));
        if (p.sink_logit.has_value()) {
          dsink[static_cast<size_t>(h)] -= std::exp(static_cast<float>(to_double(p.sink_logit, p.sink_logit.offset(h))) - lse) * delta;
        }
        for (size_t j = 0; j < k.size(); ++j) {
          if (!plan.has(b, h, i, static_cast<int64_t>(j))) continue;
          float s = scale * dot(q, k[j]), slope = 1;
          if (p.softcap != 0) {
            const float t = std::tanh(s / p.softcap);
            s = p.softcap * t;
            slope = 1 - t * t;
          }
          largest_logit = std::max(largest_logit, static_cast<double>(std::fabs(s)));
          const float weight = std::exp(s + std::log(static_cast<float>(keys.tokens[j].size())) - lse);
          const float ds = rounded(weight * (dot(g, v[j]) - delta) * slope), w = rounded(weight);
          const float share = 1 / static_cast<float>(keys.tokens[j].size());
          for (size_t d = 0; d < dim; ++d) dq[static_cast<size_t>((b * heads + h) * seqlen_q + i) * dim + d] += ds * scale * k[j][d];
          for (const int64_t t : keys.tokens[j]) {
            for (size_t d = 0; d < dim; ++d) dk[static_cast<size_t>((b * p.k.dim(1) + hk) * seqlen_k + t) * dim + d] += ds * scale * share * q[d];
            for (size_t d = 0; d < dim_v; ++d) dv[static_cast<size_t>((b * p.v.dim(1) + hv) * seqlen_k + t) * dim_v + d] += w * share * g[d];
          }
        }
      }
    }
  }
  Gradients result;
  result.largest_logit = largest_logit;
  for (const float x : dq) result.dq.push_back(static_cast<double>(rounded(x)));
  for (const float x : dk) result.dk.push_back(static_cast<double>(rounded(x)));
  for (const float x : dv) result.dv.push_back(static_cast<double>(rounded(x)));
  for (const float x : dsink) result.dsink.push_back(static_cast<double>(x));
  return result;
}

/// The largest length of a row.
inline double largest_norm(const TensorView& view) {
  double largest = 0;
  for (int64_t b = 0; b < view.dim(0); ++b) {
    for (int64_t h = 0; h < view.dim(1); ++h) {
      for (int64_t s = 0; s < view.dim(2); ++s) {
        const std::vector<double> row = dense::row_of(view, b, h, s);
        const double norm = std::sqrt(dense::dot(row, row));
        if (norm > largest) largest = norm;  // rows of NaN are nobody's
      }
    }
  }
  return largest;
}

}  // namespace tilewise::attend::testing
