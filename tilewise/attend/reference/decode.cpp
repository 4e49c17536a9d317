// SPDX-License-Identifier: Apache-2.0
#include "tilewise/attend/reference/decode.h"

#include <atomic>
#include <cmath>
#include <limits>
#include <span>
#include <vector>

#include "tilewise/attend/reference/axis.h"
#include "tilewise/attend/reference/logit.h"
#include "tilewise/attend/reference/pairs.h"

namespace tilewise::attend::reference {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// One row of keys or values.
void read_row(const Store& store, int64_t b, int64_t head, int64_t token, std::vector<double>& row) {
  const Place place = place_of(store, b, head, token);
  row.resize(static_cast<size_t>(store.channels));
  for (int64_t d = 0; d < store.channels; ++d) {
    double& x = row[static_cast<size_t>(d)];
    if (!store.is_quantised) {
      x = get(store.data, place.entry, place.head, place.row, d);
      continue;
    }
    const double scale = load(store.scale, scale_offset(store, store.scale, place, d));
    const double zero = store.zero.has_value() ? load(store.zero, scale_offset(store, store.zero, place, d)) : 0.0;
    x = (code_at(store, place, d) - zero) * scale;
  }
}

// One query of one head.
void attend(const DecodeProblem& problem, int64_t b, int head, int64_t query, std::span<const Pair> pairs) {
  const DecodeParams& p = problem.params;
  const Sizes& sizes = problem.sizes;
  const int64_t kv = head_kv(head, sizes.heads_q, sizes.heads_kv);
  const double scale = scale_of(p.softmax_scale, sizes.head_dim);
  std::vector<double> q, row, s, out(static_cast<size_t>(sizes.head_dim_v), 0.0);
  for (int64_t d = 0; d < sizes.head_dim; ++d) q.push_back(get(p.q, b, head, query, d));
  double shift = p.sink_logit.has_value() ? get(p.sink_logit, head) : -kInfinity;
  for (const Pair& pair : pairs) {
    read_row(problem.k, b, kv, pair.key_slot, row);
    s.push_back(cap(dot(q.data(), row.data(), sizes.head_dim) * scale, static_cast<double>(p.softcap)));
    if (s.back() > shift) shift = s.back();
  }
  if (shift == -kInfinity) shift = 0;
  double sum = p.sink_logit.has_value() ? std::exp(get(p.sink_logit, head) - shift) : 0;
  for (size_t i = 0; i < pairs.size(); ++i) {
    const double weight = std::exp(s[i] - shift);
    sum += weight;
    if (!problem.v.has_value()) continue;
    read_row(problem.v, b, kv, pairs[i].key_slot, row);
    for (size_t d = 0; d < out.size(); ++d) out[d] += weight * row[d];
  }
  for (size_t d = 0; d < out.size(); ++d) set(p.out, sum == 0 ? 0.0 : out[d] / sum, b, head, query, static_cast<int64_t>(d));
  if (p.lse.has_value()) set(p.lse, sum == 0 ? -kInfinity : shift + std::log(sum), b, head, query);
}

}  // namespace

Ran decode(const DecodeProblem& problem, Context& context) {
  const Sizes& sizes = problem.sizes;
  std::atomic<int64_t> pairs_read{0};
  for (int64_t b = 0; b < sizes.batch; ++b) {
    const int64_t length = problem.lengths[static_cast<size_t>(b)];
    // The plan as one made for this sequence alone: its queries are the last tokens of `length`, and what lies behind is padding.
    PlanData plan;
    plan.seqlen_q = sizes.seqlen_q;
    plan.seqlen_k = length;
    plan.batch = problem.params.plan->batch;
    plan.heads_q = sizes.heads_q;
    plan.by_query = problem.params.plan->by_query;
    plan.mask = problem.params.plan->mask;
    std::vector<int64_t> tokens_q(static_cast<size_t>(sizes.seqlen_q)), tokens_k(static_cast<size_t>(sizes.seqlen_k), -1);
    for (size_t i = 0; i < tokens_q.size(); ++i) tokens_q[i] = static_cast<int64_t>(i);
    for (size_t i = 0; i < static_cast<size_t>(length); ++i) tokens_k[i] = static_cast<int64_t>(i);
    for (int head = 0; head < sizes.heads_q; ++head) {
      const HeadPairs pairs(plan, b, head, tokens_q, tokens_k);
      context.parallel_for(pairs.items(), [&](int64_t item, int) {
        pairs_read += pairs.for_each_query(item, [&](int64_t query, std::span<const Pair> of_query) { attend(problem, b, head, query, of_query); });
      });
    }
  }
  return {.backend = "reference", .target = "f64", .pairs_read = pairs_read.load()};
}

}  // namespace tilewise::attend::reference
