// SPDX-License-Identifier: Apache-2.0
#include "tilewise/attend/cpu/slots.h"

#include <cmath>
#include <numeric>

#include "tilewise/plan/groups.h"
#include "tilewise/plan/rows.h"
#include "tilewise/prepare/pool.h"
#include "tilewise/prepare/reorder.h"

namespace tilewise::attend::cpu {
namespace {

// The rows of one tensor in slots with those of its pools behind them.
Tensor with_pools(const PlanData& plan, const TensorView& tokens, bool in_slots, Context& context) {
  const Order& order = plan.order_k;
  const Order none;
  if (plan.pools.empty()) return prepare::to_slots(tokens, order, context);
  const int64_t heads = std::lcm(tokens.dim(1), order.token.has_value() ? order.token.dim(1) : int64_t{1});
  const int64_t slots = plan::slots_k(plan);
  Tensor all(context.memory, tokens.dtype(), {tokens.dim(0), heads, plan::slots_k_with_pools(plan), tokens.dim(3)});
  const TensorView proper = all.view.slice(2, 0, slots);
  prepare::to_slots(tokens, in_slots ? none : order, proper, context);
  int64_t first = slots;
  for (const int group : plan.pools) {
    const int64_t count = (slots + group - 1) / group;
    pool({.x = proper, .out = all.view.slice(2, first, count), .tile = group, .order = order}, context);
    first += count;
  }
  return all;
}

// Of one axis, ln(real tokens) of every pooled key.
std::vector<float> bias_of(const PlanData& plan, const plan::Axis& keys) {
  const int64_t slots = plan::slots_k(plan);
  std::vector<float> bias(static_cast<size_t>(keys.slots()), 0.0f);
  auto at = static_cast<size_t>(slots);
  for (const int group : plan.pools) {
    for (int64_t first = 0; first < slots; first += group, ++at) {
      const int64_t real = keys.real(first, std::min<int64_t>(slots, first + group));
      if (real > 1) bias[at] = static_cast<float>(std::log(static_cast<double>(real)));
    }
  }
  return bias;
}

}  // namespace

SlotAxes::SlotAxes(const PlanData& plan, const Order& order, bool is_keys) : heads_q_(plan.heads_q) {
  if (order.token.has_value()) {
    batch_ = order.token.dim(0);
    groups_ = order.token.dim(1);
  }
  axes_.reserve(static_cast<size_t>(batch_ * groups_));
  for (int64_t b = 0; b < batch_; ++b) {
    for (int64_t g = 0; g < groups_; ++g) {
      const int head = plan::first_head(static_cast<int>(g), static_cast<int>(groups_), plan.heads_q);
      axes_.push_back(is_keys ? plan::Axis::of_keys(plan, b, head) : plan::Axis::of_queries(plan, b, head));
    }
  }
}

SlotAxes SlotAxes::of_queries(const PlanData& plan) { return {plan, plan.order_q, false}; }
SlotAxes SlotAxes::of_keys(const PlanData& plan) { return {plan, plan.order_k, true}; }

KeySlots key_slots(const PlanData& plan, const SlotAxes& keys, const TensorView& k, const TensorView& v, bool in_slots, Context& context) {
  KeySlots slots;
  slots.k = k;
  slots.v = v;
  if (plan.pools.empty() && (in_slots || !plan.order_k.token.has_value())) return slots;
  slots.own_k = with_pools(plan, k, in_slots, context);
  slots.k = slots.own_k.view;
  if (v.has_value()) {
    slots.own_v = with_pools(plan, v, in_slots, context);
    slots.v = slots.own_v.view;
  }
  if (plan.pools.empty()) return slots;
  for (size_t i = 0; i < keys.size(); ++i) slots.bias.push_back(bias_of(plan, keys[i]));
  return slots;
}

}  // namespace tilewise::attend::cpu
