// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>

#include "tilewise/plan/pack.h"
#include "tilewise/plan/plan.h"

namespace tilewise::plan {

/// A number that equal sets of pairs (before the mask) have in common, whichever direction names them: the sum over runs of
/// (sum of hq over the slots of the row that read it) x (sum of hk over the run), mod 2^64. hq and hk are hashes of slots with different salts, so that
/// a plan and its own transpose differ; padding is 0. Two sets that differ collide with a probability of about 2^-59. O(runs + slots).
uint64_t fingerprint(const PlanData& plan, Direction direction, int64_t b, int head);

}  // namespace tilewise::plan
