// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "tilewise/base/context.h"
#include "tilewise/plan/pack.h"
#include "tilewise/plan/plan.h"

// Rows of several plans brought to one cut, so that they can be taken together row by row.
namespace tilewise::plan {

/// First slots of the rows that begin wherever a row of one of these lists begins; the last number is the end. {0} without slots.
std::vector<int32_t> common_edges(std::span<const Lists* const> lists, int64_t slots);
/// The edges, or none where row i is [i * tile, ...) anyway: as Lists::edge holds them.
std::vector<int32_t> unless_uniform(std::vector<int32_t> edge, int tile, int64_t slots);
/// One direction with the rows that `edge` names, each of which lies within a row of the plan and has at most `tile` slots. The same pairs.
Lists recut(const PlanData& data, Direction direction, const std::vector<int32_t>& edge, int tile, PlanData& out, Context& context);

}  // namespace tilewise::plan
