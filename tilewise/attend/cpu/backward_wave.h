// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

#include "tilewise/attend/check.h"
#include "tilewise/attend/cpu/backward_block.h"
#include "tilewise/attend/cpu/slots.h"
#include "tilewise/attend/schedule.h"

// What the backward holds beside the caller's tensors, and the way from tokens to slots and back. A *domain* is a head of k in slots (for each batch entry)
// with the heads of q that read it: its blocks add to the same sums. Domains run in *waves*, which use the same memory one after another.
namespace tilewise::attend::cpu {

struct BackwardCall {
  const AttendBackwardParams& params;
  const Sizes& sizes;
  const ScheduleData& schedule;
  const BackwardTable& table;
  Context& context;
  SlotAxes queries, keys;
  KeySlots slots;  // k and v in slots
  std::vector<std::vector<float>> bias;  // of pooled keys, * log2(e); empty without pools, else one array for each index of `keys`
  Dtype dtype;  // that is computed in
  int group;  // heads of q in a domain
  int64_t slots_q, slots_k;
  bool is_direct;  // rows of dk and dv are done with their block of keys: nothing is added to them later
  float scale;

  int64_t domains() const { return sizes.batch * schedule.heads; }
  int64_t b_of(int64_t domain) const { return domain / schedule.heads; }
  int64_t head_of(int64_t domain) const { return domain % schedule.heads; }
  // Whether rows of q, out and their gradients are gathered by an order.
  bool is_q_gathered() const { return params.forward.plan->order_q.token.has_value() && !params.forward.in_slots; }
  // Where the caller has the query of a slot; -1: padding.
  int64_t place_q(int64_t b, int64_t head, int64_t slot) const { return place(queries.of(b, static_cast<int>(head)), slot); }
  int64_t place(const plan::Axis& axis, int64_t slot) const {
    const int64_t token = axis.token(slot);
    return token >= 0 && params.forward.in_slots ? slot : token;
  }
};

// An operand as the kernels read it, by slots: memory that is there, or a copy in the computing dtype.
struct Operand {
  TensorView source;
  bool is_of_q = false;
  int heads = 1;  // in each domain
  Tensor copy;  // [domains, heads, slots, D], or absent

  int64_t stride() const { return copy.view.has_value() ? copy.view.stride(2) : source.stride(2); }
  // Row 0 of the `local`th head of a domain that is the `at`th of its wave.
  const std::byte* rows(const BackwardCall& call, int64_t domain, int64_t at, int64_t local) const;
};

// What the domains [first, last) need while they run. Tensors have room for the largest wave.
struct Wave {
  int64_t first = 0, last = 0;
  Operand q, k, v, dout;
  Tensor shift, delta;  // [domains, group, slots_q]: -lse * log2(e) and dout . out - dlse
  Tensor dq, dk, dv;  // f32 sums, [domains, group, slots_q, sum_stride(D)], [domains, slots_k, ...]; dk and dv where sums are kept
  Tensor dk_total, dv_total;  // [Sk, ...]: of one head of k and one of v, over pools and the domains that it is in
  std::vector<double> dsink;  // [B * Hq]

  int64_t domains() const { return last - first; }
};

template <class... Index>
float* sums_at(const Tensor& sums, Index... index) {
  return static_cast<float*>(sums.view.raw()) + sums.view.offset(index...);
}

/// How many domains a wave has. The bits do not depend on it.
int64_t domains_of_wave(const BackwardCall& call);
/// Memory for waves of so many.
Wave make_wave(const BackwardCall& call, int64_t domains);
/// Fills what the blocks of wave.first to wave.last read, and clears what they add to. `scratch`: one vector for each worker.
void start_wave(const BackwardCall& call, Wave& wave, std::vector<std::vector<float>>& scratch);
/// Writes the gradients of a wave whose blocks are done.
void write_wave(const BackwardCall& call, const Wave& wave, std::vector<std::vector<float>>& scratch);
/// Rows of f32 sums (sum_stride(channels) apart) to rows of a gradient, rounded once.
void write_gradient(const BackwardCall& call, const float* sums, int64_t rows, int64_t channels, float scale, const TensorView& to, int64_t b,
                    int64_t head, int64_t first);

}  // namespace tilewise::attend::cpu
