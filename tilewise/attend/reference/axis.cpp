// SPDX-License-Identifier: Apache-2.0
#include "tilewise/attend/reference/axis.h"

#include <algorithm>
#include <cmath>

#include "tilewise/plan/rows.h"

namespace tilewise::attend::reference {

double load(const TensorView& view, int64_t index) {
  switch (view.dtype()) {
    case Dtype::f32: return static_cast<double>(static_cast<const float*>(view.raw())[index]);
    case Dtype::f64: return static_cast<const double*>(view.raw())[index];
    case Dtype::bf16: return static_cast<double>(static_cast<float>(static_cast<const bf16*>(view.raw())[index]));
    case Dtype::f16: return static_cast<double>(static_cast<float>(static_cast<const f16*>(view.raw())[index]));
    default: fail(Error::Kind::dtype, "attend::reference: cannot read ", view.dtype(), " as a number, takes f32, f64, bf16 or f16");
  }
}

void store(const TensorView& view, int64_t index, double value) {
  switch (view.dtype()) {
    case Dtype::f32: static_cast<float*>(view.raw())[index] = static_cast<float>(value); return;
    case Dtype::f64: static_cast<double*>(view.raw())[index] = value; return;
    case Dtype::bf16: static_cast<bf16*>(view.raw())[index] = bf16(static_cast<float>(value)); return;
    case Dtype::f16: static_cast<f16*>(view.raw())[index] = f16(static_cast<float>(value)); return;
    default: fail(Error::Kind::dtype, "attend::reference: cannot write ", view.dtype(), ", takes f32, f64, bf16 or f16");
  }
}

std::vector<int64_t> tokens_of(const Order& order, int64_t seqlen, int64_t b, int head, int heads_q) {
  std::vector<int64_t> tokens;
  if (!order.token.has_value()) {
    tokens.resize(static_cast<size_t>(seqlen));
    for (size_t slot = 0; slot < tokens.size(); ++slot) tokens[slot] = static_cast<int64_t>(slot);
    return tokens;
  }
  const int64_t bi = plan::batch_index(order.token, b);
  const int64_t group = plan::group_index(order.token, head, heads_q);
  tokens.resize(static_cast<size_t>(order.token.dim(2)));
  for (size_t slot = 0; slot < tokens.size(); ++slot) {
    tokens[slot] = order.token.at<int32_t>(bi, group, static_cast<int64_t>(slot));
  }
  return tokens;
}

KeyAxis key_axis(const PlanData& plan, const TensorView& k, const TensorView& v, int64_t b, int head, int heads_q, bool in_slots) {
  KeyAxis axis;
  axis.token = tokens_of(plan.order_k, plan.seqlen_k, b, head, heads_q);
  axis.slots_k = axis.slots();
  const auto place = [&](int64_t slot) { return in_slots ? slot : axis.token[static_cast<size_t>(slot)]; };
  for (int64_t slot = 0; slot < axis.slots_k; ++slot) {
    axis.members.emplace_back();
    if (axis.token[static_cast<size_t>(slot)] >= 0) axis.members.back().push_back({place(slot), 1.0});
  }
  for (const int group : plan.pools) {
    for (int64_t first = 0; first < axis.slots_k; first += group) {
      std::vector<KeyAxis::Member> members;
      int64_t largest = -1;
      for (int64_t slot = first; slot < std::min<int64_t>(first + group, axis.slots_k); ++slot) {
        const int64_t token = axis.token[static_cast<size_t>(slot)];
        if (token < 0) continue;
        members.push_back({place(slot), 0.0});
        largest = std::max(largest, token);
      }
      for (KeyAxis::Member& member : members) member.share = 1.0 / static_cast<double>(members.size());
      axis.token.push_back(largest);
      axis.members.push_back(std::move(members));
    }
  }
  const int64_t dim = k.dim(3), dim_v = v.has_value() ? v.dim(3) : 0;
  const int64_t hk = head_kv(head, heads_q, k.dim(1));
  const int64_t hv = v.has_value() ? head_kv(head, heads_q, v.dim(1)) : 0;
  axis.bias.assign(axis.token.size(), 0.0);
  axis.k.assign(axis.token.size() * static_cast<size_t>(dim), 0.0);
  axis.v.assign(axis.token.size() * static_cast<size_t>(dim_v), 0.0);
  for (size_t slot = 0; slot < axis.token.size(); ++slot) {
    const std::vector<KeyAxis::Member>& members = axis.members[slot];
    if (members.size() > 1) axis.bias[slot] = std::log(static_cast<double>(members.size()));
    for (const KeyAxis::Member& member : members) {
      for (int64_t d = 0; d < dim; ++d)
        axis.k[slot * static_cast<size_t>(dim) + static_cast<size_t>(d)] += member.share * get(k, b, hk, member.place, d);
      for (int64_t d = 0; d < dim_v; ++d)
        axis.v[slot * static_cast<size_t>(dim_v) + static_cast<size_t>(d)] += member.share * get(v, b, hv, member.place, d);
    }
  }
  return axis;
}

}  // namespace tilewise::attend::reference
