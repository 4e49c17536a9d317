// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "tests/attend/dense_oracle.h"
#include "tests/attend/random_plan.h"
#include "tests/attend/test_tensor.h"
#include "tilewise/attend/params.h"
#include "tilewise/attend/reference/forward.h"
#include "tilewise/prepare/reorder.h"

// Random problems of every kind with what they are held against. Without GoogleTest, which the machine with the GPU lacks.
namespace tilewise::attend::testing {

struct ProblemOptions {
  PlanOptions plan = {};
  Dtype dtype = Dtype::f32;
  int64_t head_dim = 64, head_dim_v = 0;  // 0: head_dim
  bool is_v_broadcast = false;            // one V head for all
  Layout layout = Layout::contiguous;
  std::optional<float> softmax_scale = {};
  float softcap = 0;
  bool has_sink = false, has_out = true, has_lse = true;
  double sigma = 1;                       // of q and k; 4 makes nearly one-hot rows
  Edge edge = Edge::padded;               // of q, k and v
};

struct ForwardProblem {
  ProblemOptions options;
  RandomPlan plan;
  HostTensor q, k, v, out, lse, sink_logit;

  AttendParams params() const {
    AttendParams p{.q = q.view, .k = k.view, .plan = plan.plan, .softmax_scale = options.softmax_scale, .softcap = options.softcap};
    if (options.has_out) {
      p.v = v.view;
      p.out = out.view;
    }
    if (options.has_lse) p.lse = lse.view;
    if (options.has_sink) p.sink_logit = sink_logit.view;
    return p;
  }
};

inline ForwardProblem make_problem(Rng& rng, const ProblemOptions& o) {
  ForwardProblem f;
  f.options = o;
  f.plan = random_plan(rng, o.plan);
  const int64_t dim_v = o.head_dim_v == 0 ? o.head_dim : o.head_dim_v;
  const PlanOptions& p = o.plan;
  f.q = random_normal(rng, o.dtype, {p.batch, p.heads_q, p.seqlen_q, o.head_dim}, o.layout, o.sigma, o.edge);
  f.k = random_normal(rng, o.dtype, {p.batch, p.heads_kv, p.seqlen_k, o.head_dim}, o.layout, o.sigma, o.edge);
  f.v = random_normal(rng, o.dtype, {p.batch, o.is_v_broadcast ? 1 : p.heads_kv, p.seqlen_k, dim_v}, o.layout, 1, o.edge);
  f.out = HostTensor(o.dtype, {p.batch, p.heads_q, p.seqlen_q, dim_v}, o.layout);
  f.lse = HostTensor(Dtype::f32, {p.batch, p.heads_q, p.seqlen_q}, o.layout);
  f.sink_logit = random_normal(rng, Dtype::f32, {p.heads_q});
  return f;
}

inline std::string describe(const ProblemOptions& o) {
  std::ostringstream text;
  const PlanOptions& p = o.plan;
  text << "B " << p.batch << " Hq " << p.heads_q << " Hkv " << p.heads_kv << " Sq " << p.seqlen_q << " Sk " << p.seqlen_k << " D " << o.head_dim
       << " Dv " << (o.head_dim_v == 0 ? o.head_dim : o.head_dim_v) << " " << o.dtype << " tile " << p.tile << " groups " << p.groups << " mask "
       << static_cast<int>(p.mask) << " density " << p.density << " longest " << p.longest_run << " grain " << p.grain
       << (p.has_batched_lists ? " batched" : "") << (p.has_stop ? "" : " no-stop") << (p.has_picked ? " picked" : "") << (p.has_rows ? " rows" : "")
       << (p.has_edges ? " edges" : "") << (p.has_shared ? " shared" : "") << (p.is_spaced ? " spaced" : "") << (p.has_order_q ? " order_q" : "")
       << (p.has_order_k ? " order_k" : "") << " pools " << p.pools.size() << (p.is_by_key ? " by_key" : "")
       << (o.is_v_broadcast ? " v-broadcast" : "") << " layout " << static_cast<int>(o.layout) << " softcap " << o.softcap
       << (o.has_sink ? " sink" : "") << " sigma " << o.sigma;
  return text.str();
}

/// A random kind of problem. `has_everything`: spans, grids, pools, orders and by_key, too; else bands, token order and by_query alone.
inline ProblemOptions random_options(Rng& rng, bool has_everything) {
  ProblemOptions o;
  PlanOptions& p = o.plan;
  const auto one_of = [&rng](std::initializer_list<int64_t> values) {
    return *(values.begin() + uniform(rng, 0, static_cast<int64_t>(values.size()) - 1));
  };
  p.tile = static_cast<int>(one_of({16, 32, 64, 128, 256, 40}));
  const auto length = [&] {
    return chance(rng, 0.5) ? std::max<int64_t>(1, p.tile * one_of({1, 2, 1, 2}) + one_of({-1, 0, 1})) : uniform(rng, 1, 300);
  };
  p.batch = one_of({1, 1, 2, 3});
  p.heads_kv = static_cast<int>(one_of({1, 1, 2, 3}));
  p.heads_q = p.heads_kv * static_cast<int>(one_of({1, 1, 2, 4}));
  p.seqlen_q = length();
  p.seqlen_k = chance(rng, 0.4) ? p.seqlen_q : length();
  p.groups = static_cast<int>(one_of({1, p.heads_kv, p.heads_q}));
  p.has_batched_lists = chance(rng, 0.5);
  p.mask = static_cast<MaskKind>(one_of({0, 1, 1, 1, 2, 3, 4}));
  p.density = 0.1 + 0.8 * std::uniform_real_distribution<double>(0, 1)(rng);
  p.longest_run = static_cast<int>(one_of({1, 3, 20, 64, 200}));
  p.grain = static_cast<int>(one_of({1, 1, 4, 8, 16}));
  p.has_stop = chance(rng, 0.8);
  p.has_picked = chance(rng, 0.5);
  p.has_rows = chance(rng, 0.5);
  p.has_edges = chance(rng, 0.3);
  p.has_shared = chance(rng, 0.4);
  p.is_spaced = chance(rng, 0.3);
  if (has_everything) {
    p.has_order_q = chance(rng, 0.3);
    p.has_order_k = chance(rng, 0.3);
    p.is_by_key = chance(rng, 0.3);
    if (chance(rng, 0.3)) p.pools = chance(rng, 0.5) ? std::vector<int>{4} : std::vector<int>{2, 4, 16};
    if (chance(rng, 0.3)) p.mask = MaskKind::spans;
    if (chance(rng, 0.2)) {
      p.mask = MaskKind::grid;
      p.seqlen_k = p.seqlen_q;
    }
  }
  o.dtype = chance(rng, 0.5) ? Dtype::f32 : Dtype::bf16;
  o.head_dim = one_of({8, 16, 32, 64, 64, 72, 96, 128, 256});
  o.head_dim_v = one_of({0, 0, 8, 64, 128});
  o.is_v_broadcast = chance(rng, 0.2);
  o.layout = static_cast<Layout>(one_of({0, 1, 2}));
  if (chance(rng, 0.3)) o.softmax_scale = static_cast<float>(one_of({1, 3, 20})) / 20.0f;
  o.softcap = chance(rng, 0.2) ? static_cast<float>(one_of({1, 5, 30})) : 0.0f;
  o.has_sink = chance(rng, 0.3);
  o.has_out = chance(rng, 0.9);
  o.has_lse = !o.has_out || chance(rng, 0.8);
  o.sigma = chance(rng, 0.2) ? 4 : 1;
  return o;
}

/// A bound on |got - f64|: twice the largest error that dense attention makes in the same dtype, plus a floor of the dtype's rounding of the largest
/// value.
inline double bound_of(const std::vector<double>& in_dtype, const std::vector<double>& exact, Dtype dtype) {
  const double unit = dtype == Dtype::bf16 ? 0x1p-8 : dtype == Dtype::f16 ? 0x1p-11 : 0x1p-22;
  return 2 * largest_difference(in_dtype, exact) + unit * largest_magnitude(exact) + (dtype == Dtype::f32 ? 1e-6 : 1e-5);
}

/// The f64 answer to a problem, from attend/reference on the inputs converted to f64.
inline DenseResult exact_forward(const ForwardProblem& problem) {
  ForwardProblem wide = problem;
  wide.q = converted(problem.q.view, Dtype::f64);
  wide.k = converted(problem.k.view, Dtype::f64);
  wide.v = converted(problem.v.view, Dtype::f64);
  wide.out = HostTensor(Dtype::f64, problem.out.view.shape());
  wide.lse = HostTensor(Dtype::f32, problem.lse.view.shape());
  wide.options.has_lse = true;
  Context context;
  reference::forward(wide.params(), context);
  DenseResult result;
  if (problem.options.has_out) result.out = values_of(wide.out.view);
  result.lse = values_of(wide.lse.view);
  return result;
}

/// `tokens` in the slots of an order, with NaN where a slot is padding.
inline HostTensor slots_of(const HostTensor& tokens, const Order& order, Layout layout, Context& context) {
  const Tensor slots = prepare::to_slots(tokens.view, order, context);
  HostTensor poisoned = converted(slots.view, tokens.view.dtype(), layout);
  for (int64_t b = 0; b < slots.view.dim(0) && order.token.has_value(); ++b) {
    for (int64_t h = 0; h < slots.view.dim(1); ++h) {
      for (int64_t s = 0; s < slots.view.dim(2); ++s) {
        if (order.token.at<int32_t>(order.token.dim(0) == 1 ? 0 : b, h * order.token.dim(1) / slots.view.dim(1), s) >= 0) continue;
        for (int64_t d = 0; d < slots.view.dim(3); ++d) poisoned.set(std::numeric_limits<double>::quiet_NaN(), b, h, s, d);
      }
    }
  }
  return poisoned;
}

struct MeasureProblem {
  ForwardProblem forward;  // q, k and plan of it
  HostTensor lse, key_bias, sum, max, count;
  MeasureParams params;
};

/// A random measurement over the problem's plan; `over` as given.
inline MeasureProblem make_measure(Rng& rng, ForwardProblem forward, MeasureOver over, const Shape& shape, int tile_q, int tile_k) {
  MeasureProblem m;
  m.forward = std::move(forward);
  const PlanOptions& p = m.forward.options.plan;
  // Near the true lse, as callers give it: exp(s - lse) stays within f32.
  m.lse = random_normal(rng, Dtype::f32, {p.batch, p.heads_q, p.seqlen_q}, m.forward.options.layout);
  ForwardProblem own = m.forward;
  own.options.has_lse = true;
  own.lse = HostTensor(Dtype::f32, m.lse.view.shape(), m.forward.options.layout);
  Context context;
  reference::forward(own.params(), context);
  for_each_offset(m.lse.view, [&](int64_t offset) {
    const double exact = to_double(own.lse.view, offset);
    if (std::isfinite(exact)) from_double(m.lse.view, offset, to_double(m.lse.view, offset) + exact);
  });
  m.key_bias = random_normal(rng, Dtype::f32, {p.batch, p.heads_q, p.seqlen_k}, m.forward.options.layout);
  m.params = {.q = m.forward.q.view, .k = m.forward.k.view, .plan = m.forward.plan.plan, .over = over, .tile_q = tile_q, .tile_k = tile_k};
  m.params.softmax_scale = m.forward.options.softmax_scale;
  m.params.softcap = m.forward.options.softcap;
  if (chance(rng, 0.5)) m.params.lse = m.lse.view;
  if (chance(rng, 0.3) && p.pools.empty()) m.params.key_bias = m.key_bias.view;
  m.sum = HostTensor(Dtype::f32, shape, m.forward.options.layout);
  m.max = HostTensor(Dtype::f32, shape, m.forward.options.layout);
  m.count = HostTensor(Dtype::f32, shape, m.forward.options.layout);
  const int64_t which = uniform(rng, 1, 7);
  if ((which & 1) != 0) m.params.sum = m.sum.view;
  if ((which & 2) != 0) m.params.max = m.max.view;
  if ((which & 4) != 0) m.params.count = m.count.view;
  return m;
}

}  // namespace tilewise::attend::testing
