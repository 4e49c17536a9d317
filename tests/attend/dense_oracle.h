// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "tests/attend/random_plan.h"
#include "tilewise/attend/params.h"

// Attention as textbooks write it: the whole matrix of logits, -inf where a pair is left out, a softmax per row. It reads the pairs that the plan's
// maker
// noted down and calls nothing of the library, so it is a second opinion on attend/reference.
namespace tilewise::attend::testing {

struct DenseResult {
  std::vector<double> out, lse;  // [B, Hq, Sq, Dv], [B, Hq, Sq]
  std::vector<double> dq, dk, dv, dsink;  // filled by dense_gradients
  double largest_logit = 0;  // magnitude, of dense_in_dtype
};

namespace dense {

// Keys and values of one head, pools behind them; `tokens` of each are the rows that it is the mean of.
struct Keys {
  std::vector<std::vector<int64_t>> tokens;
  std::vector<std::vector<double>> k, v;
};

inline Keys keys_of(const RandomPlan& plan, const AttendParams& p, int64_t b, int64_t h) {
  Keys keys;
  const std::vector<int64_t>& order = plan.tokens_k[static_cast<size_t>(b * plan.plan->heads_q + h)];
  std::vector<int64_t> groups{1};
  for (const int group : plan.plan->pools) groups.push_back(group);
  for (const int64_t group : groups) {
    for (int64_t first = 0; first < plan.slots_k; first += group) {
      keys.tokens.emplace_back();
      for (int64_t s = first; s < first + group && s < plan.slots_k; ++s) {
        if (order[static_cast<size_t>(s)] >= 0) keys.tokens.back().push_back(order[static_cast<size_t>(s)]);
      }
    }
  }
  const auto mean = [&](const TensorView& x, const std::vector<int64_t>& tokens) {
    std::vector<double> row(static_cast<size_t>(x.dim(3)), 0);
    const int64_t head = h / (plan.plan->heads_q / x.dim(1));
    for (const int64_t token : tokens) {
      for (size_t d = 0; d < row.size(); ++d)
        row[d] += to_double(x, x.offset(b, head, token, static_cast<int64_t>(d))) / static_cast<double>(tokens.size());
    }
    return row;
  };
  for (const std::vector<int64_t>& tokens : keys.tokens) {
    keys.k.push_back(mean(p.k, tokens));
    keys.v.push_back(p.v.has_value() ? mean(p.v, tokens) : std::vector<double>{});
  }
  return keys;
}

inline std::vector<double> row_of(const TensorView& x, int64_t b, int64_t h, int64_t s) {
  std::vector<double> row(static_cast<size_t>(x.dim(3)));
  for (size_t d = 0; d < row.size(); ++d) row[d] = to_double(x, x.offset(b, h, s, static_cast<int64_t>(d)));
  return row;
}

inline double dot(const std::vector<double>& a, const std::vector<double>& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

}  // namespace dense

/// One head's logits of a query over all key slots, -inf where the plan has no pair; `slope`, when given, gets d logit / d (scale * q.k).
inline std::vector<double> dense_logits(const RandomPlan& plan, const AttendParams& p, const dense::Keys& keys, int64_t b, int64_t h, int64_t query,
                                        std::vector<double>* slope = nullptr) {
  std::vector<double> s(keys.k.size(), -std::numeric_limits<double>::infinity());
  if (slope != nullptr) slope->assign(keys.k.size(), 0);
  const double scale = p.softmax_scale ? static_cast<double>(*p.softmax_scale) : std::pow(static_cast<double>(p.q.dim(3)), -0.5);
  const double softcap = static_cast<double>(p.softcap);
  const std::vector<double> q = dense::row_of(p.q, b, h, query);
  for (size_t j = 0; j < s.size(); ++j) {
    if (!plan.has(b, h, query, static_cast<int64_t>(j))) continue;
    double x = scale * dense::dot(q, keys.k[j]);
    double derivative = 1;
    if (softcap != 0) {
      const double t = std::tanh(x / softcap);
      x = softcap * t;
      derivative = 1 - t * t;
    }
    s[j] = x + std::log(static_cast<double>(keys.tokens[j].size()));
    if (slope != nullptr) (*slope)[j] = derivative * scale;
  }
  return s;
}

inline DenseResult dense_forward(const RandomPlan& plan, const AttendParams& p) {
  DenseResult result;
  const double minus_infinity = -std::numeric_limits<double>::infinity();
  for (int64_t b = 0; b < p.q.dim(0); ++b) {
    for (int64_t h = 0; h < p.q.dim(1); ++h) {
      const dense::Keys keys = dense::keys_of(plan, p, b, h);
      for (int64_t i = 0; i < p.q.dim(2); ++i) {
        std::vector<double> s = dense_logits(plan, p, keys, b, h, i);
        if (p.sink_logit.has_value()) s.push_back(to_double(p.sink_logit, p.sink_logit.offset(h)));
        double largest = minus_infinity, total = 0;
        for (const double x : s) largest = std::max(largest, x);
        for (const double x : s) total += largest == minus_infinity ? 0 : std::exp(x - largest);
        const double lse = total == 0 ? minus_infinity : largest + std::log(total);
        result.lse.push_back(lse);
        if (!p.v.has_value()) continue;
        std::vector<double> out(static_cast<size_t>(p.v.dim(3)), 0);
        for (size_t j = 0; j < keys.v.size(); ++j) {
          const double weight = s[j] == minus_infinity ? 0 : std::exp(s[j] - lse);
          for (size_t d = 0; d < out.size() && weight != 0; ++d) out[d] += weight * keys.v[j][d];
        }
        result.out.insert(result.out.end(), out.begin(), out.end());
      }
    }
  }
  return result;
}

/// Gradients of sum(out * dout) + sum(lse * dlse) by the chain rule through the softmax's Jacobian. dlse may be absent.
inline DenseResult dense_gradients(const RandomPlan& plan, const AttendParams& p, const TensorView& dout, const TensorView& dlse) {
  DenseResult result = dense_forward(plan, p);
  result.dq.assign(static_cast<size_t>(p.q.numel()), 0);
  result.dk.assign(static_cast<size_t>(p.k.numel()), 0);
  result.dv.assign(static_cast<size_t>(p.v.numel()), 0);
  result.dsink.assign(static_cast<size_t>(p.q.dim(1)), 0);
  const int64_t heads = p.q.dim(1), seqlen_q = p.q.dim(2), seqlen_k = p.k.dim(2), dim = p.q.dim(3), dim_v = p.v.dim(3);
  for (int64_t b = 0; b < p.q.dim(0); ++b) {
    for (int64_t h = 0; h < heads; ++h) {
      const dense::Keys keys = dense::keys_of(plan, p, b, h);
      const int64_t hk = h / (heads / p.k.dim(1)), hv = h / (heads / p.v.dim(1));
      for (int64_t i = 0; i < seqlen_q; ++i) {
        std::vector<double> slope;
        std::vector<double> s = dense_logits(plan, p, keys, b, h, i, &slope);
        const double lse = result.lse[static_cast<size_t>((b * heads + h) * seqlen_q + i)];
        if (!std::isfinite(lse)) continue;
        const std::vector<double> q = dense::row_of(p.q, b, h, i), g = dense::row_of(dout, b, h, i);
        const double glse = dlse.has_value() ? to_double(dlse, dlse.offset(b, h, i)) : 0;
        const double p_sink = p.sink_logit.has_value() ? std::exp(to_double(p.sink_logit, p.sink_logit.offset(h)) - lse) : 0;
        std::vector<double> weight(s.size()), dweight(s.size());
        double mean = 0;  // sum of weight * dweight; the sink's dweight is 0, since it adds no value
        for (size_t j = 0; j < s.size(); ++j) {
          weight[j] = std::exp(s[j] - lse);
          dweight[j] = dense::dot(g, keys.v[j]);
          mean += weight[j] * dweight[j];
        }
        result.dsink[static_cast<size_t>(h)] += p_sink * (glse - mean);
        for (size_t j = 0; j < s.size(); ++j) {
          if (weight[j] == 0) continue;
          const double ds = weight[j] * (dweight[j] - mean + glse) * slope[j];
          const double share = 1 / static_cast<double>(keys.tokens[j].size());
          for (int64_t d = 0; d < dim; ++d) {
            result.dq[static_cast<size_t>(((b * heads + h) * seqlen_q + i) * dim + d)] += ds * keys.k[j][static_cast<size_t>(d)];
            for (const int64_t t : keys.tokens[j]) {
              result.dk[static_cast<size_t>(((b * p.k.dim(1) + hk) * seqlen_k + t) * dim + d)] += ds * share * q[static_cast<size_t>(d)];
            }
          }
          for (int64_t d = 0; d < dim_v; ++d) {
            for (const int64_t t : keys.tokens[j]) {
              result.dv[static_cast<size_t>(((b * p.v.dim(1) + hv) * seqlen_k + t) * dim_v + d)] += weight[j] * share * g[static_cast<size_t>(d)];
            }
          }
        }
      }
    }
  }
  return result;
}

/// Dense attention as a plain f32 implementation computes it on the given dtype: f32 products and sums one after another, probabilities rounded to
/// the dtype
/// before they meet v, pooled keys rounded to the dtype, out rounded once. Its distance from f64 is the yardstick of the bounds in attend_testing.h.
inline DenseResult dense_in_dtype(const RandomPlan& plan, const AttendParams& p) {
  DenseResult result;
  const Dtype dtype = p.q.dtype();
  const auto rounded = [dtype](float x) {
    return dtype == Dtype::bf16 ? static_cast<float>(bf16(x)) : dtype == Dtype::f16 ? static_cast<float>(f16(x)) : x;
  };
  const float minus_infinity = -std::numeric_limits<float>::infinity();
  const float scale = p.softmax_scale ? *p.softmax_scale : 1.0f / std::sqrt(static_cast<float>(p.q.dim(3)));
  for (int64_t b = 0; b < p.q.dim(0); ++b) {
    for (int64_t h = 0; h < p.q.dim(1); ++h) {
      const dense::Keys keys = dense::keys_of(plan, p, b, h);
      for (int64_t i = 0; i < p.q.dim(2); ++i) {
        const std::vector<double> q = dense::row_of(p.q, b, h, i);
        std::vector<float> s(keys.k.size(), minus_infinity);
        float largest = p.sink_logit.has_value() ? static_cast<float>(to_double(p.sink_logit, p.sink_logit.offset(h))) : minus_infinity;
        const float sink = largest;
        for (size_t j = 0; j < s.size(); ++j) {
          if (!plan.has(b, h, i, static_cast<int64_t>(j))) continue;
          float sum = 0;
          for (size_t d = 0; d < q.size(); ++d) sum += static_cast<float>(q[d]) * rounded(static_cast<float>(keys.k[j][d]));
          s[j] = scale * sum;
          if (p.softcap != 0) s[j] = p.softcap * std::tanh(s[j] / p.softcap);
          s[j] += std::log(static_cast<float>(keys.tokens[j].size()));
          largest = std::max(largest, s[j]);
          result.largest_logit = std::max(result.largest_logit, static_cast<double>(std::fabs(s[j])));
        }
        const float shift = largest == minus_infinity ? 0 : largest;
        float total = sink == minus_infinity ? 0 : std::exp(sink - shift);
        std::vector<float> out(p.v.has_value() ? static_cast<size_t>(p.v.dim(3)) : 0, 0.0f);
        for (size_t j = 0; j < s.size(); ++j) {
          const float weight = s[j] == minus_infinity ? 0 : std::exp(s[j] - shift);
          if (weight == 0) continue;
          total += weight;
          for (size_t d = 0; d < out.size(); ++d) out[d] += rounded(weight) * rounded(static_cast<float>(keys.v[j][d]));
        }
        result.lse.push_back(static_cast<double>(total == 0 ? minus_infinity : shift + std::log(total)));
        for (const float x : out) result.out.push_back(static_cast<double>(rounded(total == 0 ? 0.0f : x / total)));
      }
    }
  }
  return result;
}

}  // namespace tilewise::attend::testing
