// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <vector>

#include "tilewise/attend/check.h"
#include "tilewise/attend/params.h"

// The two axes of one head, laid out slot by slot in f64: what orders, padding and pools mean.
namespace tilewise::attend::reference {

/// Element `index` (in elements from the view's first) of a float tensor, as f64.
double load(const TensorView& view, int64_t index);
/// Rounds once to the tensor's dtype.
void store(const TensorView& view, int64_t index, double value);
/// load and store by position.
template <class... Index>
double get(const TensorView& view, Index... index) {
  return load(view, view.offset(index...));
}
template <class... Index>
void set(const TensorView& view, double value, Index... index) {
  store(view, view.offset(index...), value);
}

/// Token of each slot of an axis (-1: padding), from its order; slot s holds token s where there is none.
std::vector<int64_t> tokens_of(const Order& order, int64_t seqlen, int64_t b, int head, int heads_q);

/// Keys of one head: the slots of k, then every pool. A pooled key is the mean of the real tokens of its group of slots.
struct KeyAxis {
  struct Member {
    int64_t place;  // row of k and v: the token, or its slot where they are in slots
    double share;   // 1 / real tokens: how the key's gradient spreads
  };

  int64_t slots_k = 0;                        // slots before the pools
  std::vector<int64_t> token;                 // the token that the mask is asked about: a pooled key's largest; -1: padding
  std::vector<double> bias;                   // ln(real tokens), added to the logit after softcap
  std::vector<double> k, v;                   // [slots, D], [slots, Dv]; padding is zero
  std::vector<std::vector<Member>> members;   // the rows that a key is the mean of

  int64_t slots() const { return static_cast<int64_t>(token.size()); }
};

/// `v` may be absent. `in_slots`: row s of k and v is slot s, not token s.
KeyAxis key_axis(const PlanData& plan, const TensorView& k, const TensorView& v, int64_t b, int head, int heads_q, bool in_slots = false);

/// K/V head of a query head, and its head in v, which may broadcast.
inline int head_kv(int head, int heads_q, int64_t heads_kv) { return static_cast<int>(head * heads_kv / heads_q); }

}  // namespace tilewise::attend::reference
