// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <vector>

#include "tilewise/attend/cpu/backward_block.h"
#include "tilewise/attend/schedule.h"
#include "tilewise/plan/axis.h"

// From a plan to the rows that meet a block of lanes. Whatever the mask, an order or a pool makes of a pair becomes a bit here. Plain C++.
namespace tilewise::attend::cpu {

struct CutRows {
  std::vector<RowSegment> segments;
  std::vector<LaneBits> row_bits;
};

/// Replaces `cut` by the queries of `head` that meet the keys of `block`, ascending: runs of by_key, each pair of masked ones asked of the mask, padding
/// left out. `queries` and `keys` are the plan's axes for the head. Returns the pairs read, before the mask.
int64_t cut_queries(const PlanData& plan, int head, const LaneBlock& block, const plan::Axis& queries, const plan::Axis& keys, CutRows& cut);

/// Replaces `cut` by the picked keys that the queries of `block` read, by by_query. Returns the pairs read.
int64_t cut_picked(const PlanData& plan, const LaneBlock& block, const plan::Axis& queries, const plan::Axis& keys, CutRows& cut);

}  // namespace tilewise::attend::cpu
