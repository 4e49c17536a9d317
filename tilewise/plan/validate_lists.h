// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "tilewise/plan/pack.h"
#include "tilewise/plan/plan.h"

namespace tilewise::plan {

/// Throws Fault at the first thing wrong with one direction. Lengths, orders and pools of the plan have been checked.
void require_lists(const PlanData& plan, Direction direction);

}  // namespace tilewise::plan
