// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "tests/fuzz/memory_file.h"
#include "tilewise/plan/bits.h"
#include "tilewise/plan/complete.h"
#include "tilewise/plan/content_hash.h"
#include "tilewise/plan/count.h"
#include "tilewise/plan/exchange/bsr.h"
#include "tilewise/plan/sets.h"
#include "tilewise/plan/validate.h"

namespace tilewise::fuzz {

/// A plan in which validate() finds no fault is safe to use: nothing below may read or write past an array, whatever else it says about the plan.
inline void use_plan(const Plan& plan) {
  const int64_t pairs = plan->batch * plan->heads_q * std::max<int64_t>(plan->seqlen_q, 1) * std::max<int64_t>(plan->seqlen_k, 1);
  if (plan->batch * plan->heads_q > 64 || plan->seqlen_q > 2000 || plan->seqlen_k > 2000 || pairs > (1 << 18)) return;
  content_hash(plan);
  const int64_t read = reads(plan);
  require(read >= 0 && allowed_pairs(plan) <= read);
  max_runs(plan);
  empty_rows(plan);
  to_bits(plan, true);
  const bool is_exact = !find_fault(plan, plan->mask).has_value();  // whole and picked pairs pass the plan's own test
  Context context;
  try {
    const Plan both = complete(plan, context, 32);
    require(reads(both) == read && content_hash(both) == content_hash(plan));
    if (is_exact) {
      const auto fault = find_fault(both, both->mask);
      if (fault) std::fprintf(stderr, "complete: %s\n", fault->c_str());
      require(!fault.has_value());
    }
    require(reads(retile(plan, context, 48, 16)) == read);
    require(reads(unite(plan, plan, context)) == read);
    bsr_of_plan({.plan = plan, .block_q = 16, .block_k = 8, .has_mask = true}, context);
  } catch (const Error& error) {
    // Orders and pools have no blocks; a pair that the plan's own mask forbids has no transpose.
    require(error.kind() == Error::Kind::unsupported || (error.kind() == Error::Kind::value && !is_exact));
  }
}

}  // namespace tilewise::fuzz
