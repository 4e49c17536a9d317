// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>

#include "tilewise/plan/plan.h"

namespace tilewise::attend::reference {

/// Whether the plan's mask lets head `head` of batch entry `b` see the pair of query token `query` and key token `key` (neither is padding).
/// Written from the definitions, apart from plan/mask.h, which kernels use: what both agree on is what tests compare.
TILEWISE_API bool mask_sees(const PlanData& plan, int64_t b, int head, int64_t query, int64_t key);

}  // namespace tilewise::attend::reference
