// SPDX-License-Identifier: Apache-2.0
#include "tilewise/select/last_queries.h"

#include <algorithm>

#include "tilewise/attend/attend.h"
#include "tilewise/plan/make.h"
#include "tilewise/plan/visible.h"

namespace tilewise::select {

LastQuerySums last_query_sums(std::string_view where, const Inputs& inputs, int64_t count, Context& context) {
  check(count >= 1, Error::Kind::value, where, ": the estimate takes the last ", count, " queries; give at least 1");
  check(is_causal(inputs.mask, inputs.seqlen_k()), Error::Kind::unsupported, where,
        ": the mask is not plainly causal; the last queries tell what all others read only where each looks back, give Mask::causal()");
  const int64_t batch = inputs.batch(), heads = inputs.heads_q(), seqlen_k = inputs.seqlen_k();
  LastQuerySums sums;
  sums.queries = std::min(count, inputs.seqlen_q());
  sums.key = Tensor(context.memory, Dtype::f32, {batch, heads, seqlen_k});
  sums.offset = Tensor(context.memory, Dtype::f32, {batch, heads, seqlen_k});
  if (sums.queries == 0 || seqlen_k == 0) {
    sums.key.fill_zero();
    sums.offset.fill_zero();
    return sums;
  }
  const Plan plan = dense_plan({.seqlen_q = sums.queries, .seqlen_k = seqlen_k, .tile = 64}, context.memory);
  const TensorView last = inputs.q.slice(2, inputs.seqlen_q() - sums.queries, sums.queries);
  try {
    // A head is one block of queries: heads in parallel, each in one thread.
    context.parallel_for(batch * heads, [&](int64_t item, int) {
      const int64_t b = item / heads, h = item % heads;
      Context alone = context;
      alone.executor = serial_executor();
      const TensorView q = last.slice(0, b, 1).slice(1, h, 1), k = inputs.k.slice(0, b, 1).slice(1, h * inputs.heads_kv() / heads, 1);
      const Tensor lse(context.memory, Dtype::f32, {1, 1, sums.queries});
      attend_forward({.q = q, .k = k, .lse = lse.view, .plan = plan, .softmax_scale = inputs.softmax_scale, .softcap = inputs.softcap}, alone);
      for (const auto& [over, sum] : {std::pair{MeasureOver::key, &sums.key}, std::pair{MeasureOver::offset, &sums.offset}}) {
        measure({.q = q,
                 .k = k,
                 .plan = plan,
                 .lse = lse.view,
                 .over = over,
                 .softmax_scale = inputs.softmax_scale,
                 .softcap = inputs.softcap,
                 .sum = sum->view.slice(0, b, 1).slice(1, h, 1)},
                alone);
      }
    });
  } catch (const Error& error) {  // what attend does not take, this does not
    if (error.kind() != Error::Kind::unsupported) throw;
    fail(Error::Kind::unsupported, where, ": the attention of the last queries cannot be computed. ", error.what());
  }
  return sums;
}

}  // namespace tilewise::select
