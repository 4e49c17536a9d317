// SPDX-License-Identifier: Apache-2.0
#include "tilewise/attend/reference/forward.h"

#include <atomic>
#include <cmath>
#include <limits>
#include <vector>

#include "tilewise/attend/check.h"
#include "tilewise/attend/reference/axis.h"
#include "tilewise/attend/reference/logit.h"
#include "tilewise/attend/reference/pairs.h"

namespace tilewise::attend::reference {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// One head of one batch entry, and one query of it at a time.
struct Head {
  const AttendParams& params;
  const Sizes& sizes;
  const std::vector<int64_t>& tokens_q;
  const KeyAxis& keys;
  int64_t b;
  int head;

  void attend(int64_t query_slot, std::span<const Pair> pairs, std::vector<double>& scratch) const {
    const int64_t place = params.in_slots ? query_slot : tokens_q[static_cast<size_t>(query_slot)];  // row of q, out and lse
    const double scale = scale_of(params.softmax_scale, sizes.head_dim);
    const double softcap = static_cast<double>(params.softcap);
    const size_t dim = static_cast<size_t>(sizes.head_dim), dim_v = static_cast<size_t>(sizes.head_dim_v);
    scratch.assign(dim + pairs.size() + dim_v, 0.0);
    double* const q = scratch.data();
    double* const s = q + dim;
    double* const out = s + pairs.size();
    for (size_t d = 0; d < dim; ++d) q[d] = get(params.q, b, head, place, static_cast<int64_t>(d));

    const bool has_sink = params.sink_logit.has_value();
    double row_max = has_sink ? get(params.sink_logit, head) : -kInfinity;
    const double sink = row_max;
    for (size_t i = 0; i < pairs.size(); ++i) {
      const size_t key = static_cast<size_t>(pairs[i].key_slot);
      s[i] = cap(scale * dot(q, keys.k.data() + key * dim, sizes.head_dim), softcap) + keys.bias[key];
      if (s[i] > row_max) row_max = s[i];
    }
    // A row whose every logit is -inf has no weight to share out: it counts as a row without a key.
    const double shift = row_max == -kInfinity ? 0 : row_max;
    double row_sum = has_sink ? std::exp(sink - shift) : 0;
    for (size_t i = 0; i < pairs.size(); ++i) {
      const double p = std::exp(s[i] - shift);
      row_sum += p;
      const double* const v = keys.v.data() + static_cast<size_t>(pairs[i].key_slot) * dim_v;
      for (size_t d = 0; d < dim_v; ++d) out[d] += p * v[d];
    }
    for (size_t d = 0; d < dim_v; ++d) set(params.out, row_sum == 0 ? 0.0 : out[d] / row_sum, b, head, place, static_cast<int64_t>(d));
    if (params.lse.has_value()) set(params.lse, row_sum == 0 ? -kInfinity : shift + std::log(row_sum), b, head, place);
  }
};

}  // namespace

Ran forward(const AttendParams& params, Context& context) {
  const Sizes sizes = check_forward(params, context);
  check_entries("attend_forward", params.plan);
  const PlanData& plan = *params.plan;
  std::atomic<int64_t> pairs_read{0};
  std::vector<std::vector<double>> scratch(static_cast<size_t>(context.concurrency()));
  for (int64_t b = 0; b < sizes.batch; ++b) {
    for (int head = 0; head < sizes.heads_q; ++head) {
      const std::vector<int64_t> tokens_q = tokens_of(plan.order_q, sizes.seqlen_q, b, head, sizes.heads_q);
      const KeyAxis keys = key_axis(plan, params.k, params.v, b, head, sizes.heads_q, params.in_slots);
      const HeadPairs pairs(plan, b, head, tokens_q, keys.token);
      const Head one{params, sizes, tokens_q, keys, b, head};
      context.parallel_for(pairs.items(), [&](int64_t item, int worker) {
        pairs_read += pairs.for_each_query(
            item, [&](int64_t slot, std::span<const Pair> of_query) { one.attend(slot, of_query, scratch[static_cast<size_t>(worker)]); });
      });
    }
  }
  return {.backend = "reference", .target = "f64", .pairs_read = pairs_read.load()};
}

}  // namespace tilewise::attend::reference
