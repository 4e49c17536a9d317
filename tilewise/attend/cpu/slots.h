// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "tilewise/base/context.h"
#include "tilewise/plan/axis.h"
#include "tilewise/plan/plan.h"

// From tokens to slots: what lies between the caller's tensors and kernels that read neighbouring rows. Keys are gathered whole (many blocks read each of
// them), queries block by block. Gradients go back by prepare/reorder.h and prepare/pool.h.
namespace tilewise::attend::cpu {

/// The slots of one axis for every batch entry and head: one plan::Axis for each order that they have.
class SlotAxes {
 public:
  static SlotAxes of_queries(const PlanData& plan);
  /// With the pools behind the slots.
  static SlotAxes of_keys(const PlanData& plan);

  const plan::Axis& of(int64_t b, int head) const { return axes_[index(b, head)]; }
  /// Slots are tokens, one for one, whatever the head.
  bool is_plain() const { return axes_.empty() || axes_[0].is_plain(); }
  /// Number of (batch entry, group of heads) with an order of its own, and which of them a head has.
  size_t size() const { return axes_.size(); }
  size_t index(int64_t b, int head) const {
    return static_cast<size_t>((batch_ == 1 ? 0 : b) * groups_ + static_cast<int64_t>(head) * groups_ / heads_q_);
  }
  const plan::Axis& operator[](size_t i) const { return axes_[i]; }

 private:
  SlotAxes(const PlanData& plan, const Order& order, bool is_keys);

  int64_t batch_ = 1, groups_ = 1, heads_q_ = 1;
  std::vector<plan::Axis> axes_;
};

/// Keys and values where kernels read them: row s is slot s of the key axis, pooled keys behind the slots.
struct KeySlots {
  /// [B, J, slots, D], [B, J, slots, Dv]: the caller's tensors where slots are tokens, else copies. Query head h reads head h * J / Hq; J is a multiple of
  /// the heads of the caller's tensor and of the order's groups. Padding is 0 in copies of tokens, else whatever the caller has there.
  TensorView k, v;
  Tensor own_k, own_v;
  /// What pooled keys add to the logit (ln of their real tokens), 0 before them; empty without pools. One array of `slots` numbers for each SlotAxes index.
  std::vector<std::vector<float>> bias;

  static int64_t head_of(const TensorView& view, int head, int heads_q) { return static_cast<int64_t>(head) * view.dim(1) / heads_q; }
};

/// Gathers k and v (which may be absent) by the plan's order of keys and appends its pooled keys. `in_slots`: k and v are in slots already.
/// Costs nothing where slots are tokens and there is no pool; else reads k and v once, writes them once, and holds the copies in context.memory.
KeySlots key_slots(const PlanData& plan, const SlotAxes& keys, const TensorView& k, const TensorView& v, bool in_slots, Context& context);

}  // namespace tilewise::attend::cpu
