// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

#include "tests/attend/random_problem.h"
#include "tilewise/attend/check.h"

// A problem of every kind from one number: shapes, plan, mask, orders, pools, dtype, strides and options, biased to where code breaks.
namespace tilewise::attend::testing {

/// 1 to 16 query heads a K/V head; lengths of 0, 1, a tile or two and one more or less; rows empty, of one run, or with everything kept.
inline ProblemOptions random_case_options(Rng& rng) {
  ProblemOptions o;
  PlanOptions& p = o.plan;
  const auto one_of = [&rng](std::initializer_list<int64_t> values) {
    return *(values.begin() + uniform(rng, 0, static_cast<int64_t>(values.size()) - 1));
  };
  p.tile = static_cast<int>(one_of({16, 16, 32, 48, 64, 64, 128, 200, 256}));
  const auto length = [&]() -> int64_t {
    switch (uniform(rng, 0, 9)) {
      case 0: return chance(rng, 0.3) ? 0 : 1;
      case 1: return uniform(rng, 1, 20);
      case 2: return uniform(rng, 1, 400);
      default: return std::min<int64_t>(400, p.tile * one_of({1, 1, 2, 3})) + one_of({-1, 0, 1});
    }
  };
  p.batch = one_of({1, 1, 1, 2, 3});
  p.heads_kv = static_cast<int>(one_of({1, 1, 2, 3}));
  p.heads_q = p.heads_kv * static_cast<int>(one_of({1, 1, 2, 3, 4, 7, 8, 16}));
  p.seqlen_q = length();
  p.seqlen_k = chance(rng, 0.4) ? p.seqlen_q : length();
  p.groups = static_cast<int>(one_of({1, p.heads_kv, p.heads_q}));
  p.has_batched_lists = chance(rng, 0.5);
  p.mask = static_cast<MaskKind>(one_of({0, 1, 1, 2, 3, 4, 5, 5, 6, 6}));
  if (p.mask == MaskKind::grid && (p.seqlen_k == 0 || chance(rng, 0.7))) p.seqlen_q = p.seqlen_k = std::max<int64_t>(1, p.seqlen_k);
  p.density = chance(rng, 0.15) ? 1 : 0.02 + 0.8 * std::uniform_real_distribution<double>(0, 1)(rng);
  p.longest_run = static_cast<int>(one_of({1, 3, 20, 64, 200, 1000}));
  p.grain = static_cast<int>(one_of({1, 1, 1, 4, 8, 16, 64}));
  p.has_stop = chance(rng, 0.8);
  p.has_picked = chance(rng, 0.5);
  p.has_rows = chance(rng, 0.5);
  p.has_edges = chance(rng, 0.3);
  p.has_shared = chance(rng, 0.4);
  p.is_spaced = chance(rng, 0.3);
  p.has_one_run = chance(rng, 0.12);
  if (chance(rng, 0.15)) p.empty_rows = chance(rng, 0.2) ? 1 : 0.6;
  p.has_order_q = chance(rng, 0.35);
  p.has_order_k = chance(rng, 0.35);
  if (chance(rng, 0.25)) p.pools = chance(rng, 0.5) ? std::vector<int>{static_cast<int>(one_of({2, 4, 7, 64}))} : std::vector<int>{2, 5, 16};
  p.is_by_key = chance(rng, 0.15);
  o.dtype = static_cast<Dtype>(one_of({static_cast<int>(Dtype::f32), static_cast<int>(Dtype::bf16), static_cast<int>(Dtype::f16)}));
  o.head_dim = one_of({8, 16, 24, 32, 64, 64, 72, 128, 256});
  o.head_dim_v = one_of({0, 0, 8, 40, 64, 128});
  o.is_v_broadcast = chance(rng, 0.2);
  o.layout = static_cast<Layout>(one_of({0, 1, 2}));
  o.edge = Edge::guarded;
  if (chance(rng, 0.3)) o.softmax_scale = static_cast<float>(one_of({1, 3, 20})) / 20.0f;
  o.softcap = chance(rng, 0.2) ? static_cast<float>(one_of({1, 5, 30})) : 0.0f;
  o.has_sink = chance(rng, 0.3);
  o.has_out = chance(rng, 0.9);
  o.has_lse = !o.has_out || chance(rng, 0.8);
  o.sigma = chance(rng, 0.2) ? 4 : 1;
  // The f64 definition takes about a nanosecond a product: fewer heads and channels where rows are long.
  const auto products = [&] {
    return p.batch * p.heads_q * p.seqlen_q * p.seqlen_k * (o.head_dim + (o.head_dim_v == 0 ? o.head_dim : o.head_dim_v));
  };
  constexpr int64_t kMost = 8'000'000;
  while (products() > kMost && (o.head_dim > 32 || o.head_dim_v > 32)) {
    o.head_dim = std::min<int64_t>(o.head_dim, std::max<int64_t>(32, o.head_dim / 16 * 8));
    o.head_dim_v = std::min<int64_t>(o.head_dim_v, std::max<int64_t>(32, o.head_dim_v / 16 * 8));
  }
  if (products() > kMost) p.batch = 1;
  while (products() > kMost && p.heads_kv > 1) {
    p.heads_q = p.heads_q / p.heads_kv;
    p.groups = std::min(p.groups, p.heads_q);
    p.heads_kv = 1;
  }
  if (p.groups != 1 && p.heads_q % p.groups != 0) p.groups = p.heads_q;
  while (products() > kMost && p.mask != MaskKind::grid) {
    (p.seqlen_q > p.seqlen_k ? p.seqlen_q : p.seqlen_k) /= 2;
  }
  return o;
}

/// Writes NaN into every key and value that no run of any reader names, not even through a pooled key: what such a key holds changes nothing.
inline void poison_untouched(const ForwardProblem& problem) {
  const RandomPlan& plan = problem.plan;
  const PlanOptions& p = problem.options.plan;
  const int64_t heads_v = problem.v.view.dim(1);
  const auto place = [&](int64_t heads, int64_t b, int64_t head, int64_t token) {
    return static_cast<size_t>((b * heads + head) * p.seqlen_k + token);
  };
  std::vector<uint8_t> used_k(static_cast<size_t>(p.batch * p.heads_kv * p.seqlen_k), 0),
      used_v(static_cast<size_t>(p.batch * heads_v * p.seqlen_k), 0);
  for (int64_t b = 0; b < p.batch; ++b) {
    for (int64_t h = 0; h < p.heads_q; ++h) {
      const std::vector<int64_t>& tokens = plan.tokens_k[static_cast<size_t>(b * p.heads_q + h)];
      const auto use = [&](int64_t first, int64_t last) {
        for (int64_t s = first; s < std::min(last, plan.slots_k); ++s) {
          const int64_t token = tokens[static_cast<size_t>(s)];
          if (token < 0) continue;
          used_k[place(p.heads_kv, b, h * p.heads_kv / p.heads_q, token)] = 1;
          used_v[place(heads_v, b, h * heads_v / p.heads_q, token)] = 1;
        }
      };
      const auto is_touched = [&](int64_t slot) { return plan.touched[static_cast<size_t>((b * p.heads_q + h) * plan.slots + slot)] != 0; };
      for (int64_t s = 0; s < plan.slots_k; ++s) {
        if (is_touched(s)) use(s, s + 1);
      }
      int64_t at = plan.slots_k;
      for (const int group : p.pools) {
        for (int64_t first = 0; first < plan.slots_k; first += group, ++at) {
          if (is_touched(at)) use(first, first + group);
        }
      }
    }
  }
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const auto poison = [&](const HostTensor& tensor, const std::vector<uint8_t>& used) {
    for (int64_t b = 0; b < tensor.view.dim(0); ++b) {
      for (int64_t h = 0; h < tensor.view.dim(1); ++h) {
        for (int64_t t = 0; t < p.seqlen_k; ++t) {
          if (used[place(tensor.view.dim(1), b, h, t)] != 0) continue;
          for (int64_t d = 0; d < tensor.view.dim(3); ++d) tensor.set(nan, b, h, t, d);
        }
      }
    }
  };
  poison(problem.k, used_k);
  poison(problem.v, used_v);
}

/// A measurement over the problem's plan, of a kind that the plan allows.
inline MeasureProblem random_case_measure(Rng& rng, ForwardProblem forward) {
  const PlanOptions& p = forward.options.plan;
  std::vector<MeasureOver> overs{MeasureOver::tile, MeasureOver::query_tile, MeasureOver::query};
  if (!p.is_by_key) overs.push_back(MeasureOver::query_run);
  if (p.pools.empty()) overs.insert(overs.end(), {MeasureOver::key, MeasureOver::offset});
  const MeasureOver over = overs[static_cast<size_t>(uniform(rng, 0, static_cast<int64_t>(overs.size()) - 1))];
  const int tile = forward.plan.plan->by_query.tile;
  int tile_q = 0;
  if (chance(rng, 0.6)) {
    do {
      tile_q = static_cast<int>(uniform(rng, 1, tile));
    } while (tile % tile_q != 0);
  }
  const int tile_k = chance(rng, 0.6) ? static_cast<int>(uniform(rng, 1, 150)) : 0;
  const Shape shape =
      measure_shape({.q = forward.q.view, .k = forward.k.view, .plan = forward.plan.plan, .over = over, .tile_q = tile_q, .tile_k = tile_k});
  return make_measure(rng, std::move(forward), over, shape, tile_q, tile_k);
}

}  // namespace tilewise::attend::testing
