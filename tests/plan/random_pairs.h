// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "tests/attend/random_plan.h"
#include "tilewise/attend/reference/axis.h"
#include "tilewise/attend/reference/pairs.h"
#include "tilewise/plan/plan.h"

// Random plans of every kind, and a plan's pairs read back by the reference, which shares no code with plan/.
namespace tilewise::testing {

/// The plan's pairs read back from one direction alone, laid out as RandomPlan::pairs; a pair met twice counts two.
inline std::vector<uint8_t> pairs_of(const Plan& plan, bool is_by_key, int64_t slots) {
  PlanData one;
  one.seqlen_q = plan->seqlen_q;
  one.seqlen_k = plan->seqlen_k;
  one.batch = plan->batch;
  one.heads_q = plan->heads_q;
  (is_by_key ? one.by_key : one.by_query) = is_by_key ? plan->by_key : plan->by_query;
  one.order_q = plan->order_q;
  one.order_k = plan->order_k;
  one.pools = plan->pools;
  one.mask = plan->mask;
  std::vector<uint8_t> pairs(static_cast<size_t>(plan->batch * plan->heads_q * plan->seqlen_q * slots), 0);
  std::vector<float> no_keys;
  for (int64_t b = 0; b < plan->batch; ++b) {
    for (int head = 0; head < plan->heads_q; ++head) {
      const auto tokens_q = attend::reference::tokens_of(plan->order_q, plan->seqlen_q, b, head, plan->heads_q);
      Tensor k(host_memory(), Dtype::f32, {plan->batch, plan->heads_q, plan->seqlen_k, 1});
      k.fill_zero();
      const attend::reference::KeyAxis keys = attend::reference::key_axis(*plan, k.view, {}, b, head, plan->heads_q);
      const attend::reference::HeadPairs walker(one, b, head, tokens_q, keys.token);
      for (int64_t item = 0; item < walker.items(); ++item) {
        walker.for_each_query(item, [&](int64_t slot, std::span<const attend::reference::Pair> found) {
          const int64_t query = tokens_q[static_cast<size_t>(slot)];
          for (const auto& pair : found) {
            ++pairs[static_cast<size_t>(((b * plan->heads_q + head) * plan->seqlen_q + query) * slots + pair.key_slot)];
          }
        });
      }
    }
  }
  return pairs;
}

inline attend::testing::PlanOptions random_options(attend::testing::Rng& rng) {
  using attend::testing::MaskKind;
  using attend::testing::uniform;
  attend::testing::PlanOptions o;
  const int64_t tiles[] = {16, 64, 128, 256};
  o.batch = uniform(rng, 1, 2);
  o.heads_kv = static_cast<int>(uniform(rng, 1, 2));
  o.heads_q = o.heads_kv * static_cast<int>(uniform(rng, 1, 2));
  o.seqlen_q = uniform(rng, 1, 150);
  o.seqlen_k = uniform(rng, 1, 150);
  o.tile = static_cast<int>(tiles[uniform(rng, 0, 3)]);
  o.groups = uniform(rng, 0, 1) == 0 ? 1 : o.heads_q;
  o.has_batched_lists = uniform(rng, 0, 1) == 0;
  o.mask = static_cast<MaskKind>(uniform(rng, 0, 6));
  o.has_picked = uniform(rng, 0, 1) == 0;
  o.has_rows = uniform(rng, 0, 1) == 0;
  o.has_edges = uniform(rng, 0, 2) == 0;
  o.has_shared = uniform(rng, 0, 2) == 0;
  o.is_spaced = uniform(rng, 0, 2) == 0;
  o.has_order_q = uniform(rng, 0, 2) == 0;
  o.has_order_k = uniform(rng, 0, 2) == 0;
  if (uniform(rng, 0, 3) == 0) o.pools = {4, 16};
  o.is_by_key = uniform(rng, 0, 2) == 0;
  return o;
}

}  // namespace tilewise::testing
