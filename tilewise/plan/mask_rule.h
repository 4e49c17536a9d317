// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <vector>

#include "tilewise/plan/axis.h"
#include "tilewise/plan/mask.h"
#include "tilewise/plan/plan.h"

namespace tilewise::plan {

/// The rule that makes plans closed under complete(): every pair of whole and picked runs also satisfies the plan's own mask.
class MaskRule {
 public:
  /// `heads` are heads that read the lists, one for each class of the mask.
  MaskRule(const PlanData& plan, int64_t b, std::vector<int> heads);

  /// Throws Error::Kind::value unless all heads may see the pairs of query slots [q0, q1) (those with a bit in `bits`, counted from q0; null: all)
  /// with key slots [k0, k1). Padding is left out.
  void check_rectangle(const Axis& queries, int64_t q0, int64_t q1, const uint64_t* bits, const Axis& keys, int64_t k0, int64_t k1) const;
  /// The same where `bits` choose key slots, counted from k0.
  void check_rectangle_by_key(const Axis& queries, int64_t q0, int64_t q1, const Axis& keys, int64_t k0, int64_t k1, const uint64_t* bits) const;

 private:
  void check_tokens(int head, int64_t q0, int64_t q1, int64_t k0, int64_t k1) const;

  const PlanData& plan_;
  int64_t b_;
  std::vector<int> heads_;  // empty: the mask is full, nothing can fail
};

/// Whether head `head` may see the pair of query token `query` and key token `key`.
inline bool sees(const PlanData& plan, int64_t b, int head, int64_t query, int64_t key) {
  return allows(plan.mask, head, b, query, key, plan.seqlen_k - plan.seqlen_q);
}
/// Whether every pair of the tokens [q0, q1) x [k0, k1) is allowed. O(1) for bands, O(q1 - q0) for spans, pair by pair for grids.
bool sees_all(const PlanData& plan, int64_t b, int head, int64_t q0, int64_t q1, int64_t k0, int64_t k1);
/// How many of the key tokens [k0, k1) a query sees. O(1) for bands and spans.
int64_t count_seen(const PlanData& plan, int64_t b, int head, int64_t query, int64_t k0, int64_t k1);

/// One head of each mask class among those of group g of `groups` (for spans that differ, of each class as well).
std::vector<int> mask_heads(const PlanData& plan, int g, int groups);

}  // namespace tilewise::plan
