// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <vector>

#include "tilewise/plan/plan.h"

namespace tilewise::study {

/// One head of a plan, summed over the batch. `allowed` is negative where the mask is not made of bands.
struct HeadCounts {
  int64_t reads = 0;    // as density counts them: masked runs whole, bits of `rows`
  int64_t allowed = 0;  // those that the mask allows
};

/// Per head of a plan in token order without pools, from by_query (by_key only where that is empty). Work: O(runs x slots of a masked row).
/// Errors: value (null plan), unsupported (orders, pools).
std::vector<HeadCounts> count_heads(const Plan& plan);

/// Keys in [start, stop) that the band lets query token `q` see.
int64_t count_band(const Mask::Band& band, int64_t q, int64_t start, int64_t stop);

}  // namespace tilewise::study
