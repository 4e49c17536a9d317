// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <span>

#include "tilewise/base/memory.h"
#include "tilewise/plan/plan.h"

namespace tilewise::plan {

/// Throws unless the plans (not null) have equal sizes, orders and pools and each has a mask. Errors: value, unsupported; they begin with `function`.
void check_alike(const char* function, std::span<const Plan> plans);

/// Whether both plans test head `head` alike: equal bands, spans or neighbourhoods. Sizes are equal.
bool has_equal_mask(const PlanData& a, const PlanData& b, int head);

/// One mask for heads that come from several plans of equal sizes: head h is tested as in *plan_of_head[h]. Classes that are equal are kept once, in the order
/// in which heads use them. Bands and spans mix (bands are written as spans), neighbourhoods do not. `out` owns new arrays.
/// Errors  unsupported (neighbourhoods beside another form or from another first token), value (more than 16 classes); both begin with `function`.
Mask join_masks(const char* function, std::span<const PlanData* const> plan_of_head, const std::shared_ptr<Memory>& memory, PlanData& out);

}  // namespace tilewise::plan
