// SPDX-License-Identifier: Apache-2.0
#include "tilewise/attend/reference/backward.h"

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

// f64 sums of one batch entry; written to the caller's tensors when all are done.
struct Sums {
  TensorView dq, dk, dv;  // [B, Hq, Sq, D], [B, Hkv, Sk, D], [B, Hkv|1, Sk, Dv]
  std::vector<double>& dsink;  // [B * Hq]
};

// Adds one head's gradients. Heads that add to the same dk or dv run one after another, so bits do not depend on the executor.
int64_t add_head(const AttendBackwardParams& params, const Sizes& sizes, const Sums& sums, int64_t b, int head) {
  const AttendParams& f = params.forward;
  const PlanData& plan = *f.plan;
  const std::vector<int64_t> tokens_q = tokens_of(plan.order_q, sizes.seqlen_q, b, head, sizes.heads_q);
  const KeyAxis keys = key_axis(plan, f.k, f.v, b, head, sizes.heads_q, f.in_slots);
  const HeadPairs pairs(plan, b, head, tokens_q, keys.token);
  const double scale = scale_of(f.softmax_scale, sizes.head_dim), softcap = static_cast<double>(f.softcap);
  const size_t dim = static_cast<size_t>(sizes.head_dim), dim_v = static_cast<size_t>(sizes.head_dim_v);
  std::vector<double> dk(keys.k.size(), 0.0), dv(keys.v.size(), 0.0);
  std::vector<double> q(dim), dq(dim), dout(dim_v);
  double dsink = 0;
  int64_t pairs_read = 0;

  const auto add_query = [&](int64_t slot, std::span<const Pair> of_query) {
    const int64_t place = f.in_slots ? slot : tokens_q[static_cast<size_t>(slot)];  // row of q, out, lse and their gradients
    const double lse = get(f.lse, b, head, place);
    // No key and no sink: the outputs are constants.
    if (lse == -std::numeric_limits<double>::infinity()) return;
    double delta = params.dlse.has_value() ? -get(params.dlse, b, head, place) : 0;
    for (size_t d = 0; d < dim_v; ++d) {
      dout[d] = get(params.dout, b, head, place, static_cast<int64_t>(d));
      delta += dout[d] * get(f.out, b, head, place, static_cast<int64_t>(d));
    }
    if (f.sink_logit.has_value()) dsink -= std::exp(get(f.sink_logit, head) - lse) * delta;
    for (size_t d = 0; d < dim; ++d) {
      q[d] = get(f.q, b, head, place, static_cast<int64_t>(d));
      dq[d] = 0;
    }
    for (const Pair& pair : of_query) {
      const size_t key = static_cast<size_t>(pair.key_slot);
      const double* const k = keys.k.data() + key * dim;
      const double* const v = keys.v.data() + key * dim_v;
      const double capped = cap(scale * dot(q.data(), k, sizes.head_dim), softcap);
      const double p = std::exp(capped + keys.bias[key] - lse);
      const double ds = p * (dot(dout.data(), v, sizes.head_dim_v) - delta) * cap_slope(capped, softcap) * scale;
      for (size_t d = 0; d < dim; ++d) {
        dq[d] += ds * k[d];
        dk[key * dim + d] += ds * q[d];
      }
      for (size_t d = 0; d < dim_v; ++d) dv[key * dim_v + d] += p * dout[d];
    }
    for (size_t d = 0; d < dim; ++d) sums.dq.at<double>(b, head, place, static_cast<int64_t>(d)) = dq[d];
  };
  for (int64_t item = 0; item < pairs.items(); ++item) pairs_read += pairs.for_each_query(item, add_query);

  const int hk = head_kv(head, sizes.heads_q, sizes.heads_kv), hv = head_kv(head, sizes.heads_q, sizes.heads_v);
  for (size_t key = 0; key < keys.token.size(); ++key) {
    for (const KeyAxis::Member& member : keys.members[key]) {
      for (size_t d = 0; d < dim; ++d) sums.dk.at<double>(b, hk, member.place, static_cast<int64_t>(d)) += member.share * dk[key * dim + d];
      for (size_t d = 0; d < dim_v; ++d) sums.dv.at<double>(b, hv, member.place, static_cast<int64_t>(d)) += member.share * dv[key * dim_v + d];
    }
  }
  sums.dsink[static_cast<size_t>(b * sizes.heads_q + head)] = dsink;
  return pairs_read;
}

// Calls body(i, j, k, l) for every element of a [., ., ., .] view.
template <class Body>
void for_each_element(const Shape& shape, const Body& body) {
  for (int64_t i = 0; i < shape[0]; ++i) {
    for (int64_t j = 0; j < shape[1]; ++j) {
      for (int64_t k = 0; k < shape[2]; ++k) {
        for (int64_t l = 0; l < shape[3]; ++l) body(i, j, k, l);
      }
    }
  }
}

struct Gradient {
  TensorView sum, written;
};

// Rounds each gradient once; gradients that share one tensor are added first.
void write(std::vector<Gradient> gradients) {
  for (size_t i = 0; i < gradients.size(); ++i) {
    if (gradients[i].written.numel() == 0) continue;
    bool is_written_before = false;
    for (size_t j = 0; j < i; ++j) is_written_before = is_written_before || gradients[j].written.raw() == gradients[i].written.raw();
    if (is_written_before) continue;
    for_each_element(gradients[i].sum.shape(), [&](auto... at) {
      double sum = 0;
      for (const Gradient& g : gradients) {
        if (g.written.raw() == gradients[i].written.raw()) sum += g.sum.at<double>(at...);
      }
      set(gradients[i].written, sum, at...);
    });
  }
}

}  // namespace

Ran backward(const AttendBackwardParams& params, Context& context) {
  const Sizes sizes = check_backward(params, context);
  check_entries("attend_backward", params.forward.plan);
  const AttendParams& f = params.forward;
  const Tensor dq(context.memory, Dtype::f64, f.q.shape()), dk(context.memory, Dtype::f64, f.k.shape()), dv(context.memory, Dtype::f64, f.v.shape());
  for (const Tensor* sum : {&dq, &dk, &dv}) sum->fill_zero();
  std::vector<double> dsink(static_cast<size_t>(sizes.batch * sizes.heads_q), 0.0);
  const Sums sums{dq.view, dk.view, dv.view, dsink};

  // One item holds all the heads that add to one head of k, or to the one head of v.
  const int64_t parts = sizes.heads_v == sizes.heads_kv ? sizes.heads_kv : 1;
  const int heads_per_part = sizes.heads_q / static_cast<int>(parts);
  std::atomic<int64_t> pairs_read{0};
  context.parallel_for(sizes.batch * parts, [&](int64_t item, int) {
    const int first = static_cast<int>(item % parts) * heads_per_part;
    for (int head = first; head < first + heads_per_part; ++head) {
      context.check_cancel();
      pairs_read += add_head(params, sizes, sums, item / parts, head);
    }
  });

  write({{dq.view, params.dq}, {dk.view, params.dk}, {dv.view, params.dv}});
  if (params.dsink_logit.has_value()) {
    for (int64_t head = 0; head < sizes.heads_q; ++head) {
      double sum = 0;
      for (int64_t b = 0; b < sizes.batch; ++b) sum += dsink[static_cast<size_t>(b * sizes.heads_q + head)];
      set(params.dsink_logit, sum, head);
    }
  }
  return {.backend = "reference", .target = "f64", .pairs_read = pairs_read.load()};
}

}  // namespace tilewise::attend::reference
