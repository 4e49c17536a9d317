// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "tilewise/attend/cpu/block.h"
#include "tilewise/base/context.h"
#include "tilewise/plan/plan.h"

// From a plan to blocks: which queries run together, and which keys they read. Plain C++.
namespace tilewise::attend::cpu {

/// Up to kBlockLanes neighbouring queries of one row of by_query, or of several rows that share their lists.
struct QueryBlock {
  int64_t b;
  int head;
  int64_t row;
  int32_t first;   // query slot
  int32_t lanes;
  int32_t offset;  // slots of the row before `first`, a multiple of kBlockLanes
  int64_t keys;    // before the mask: the work
  int64_t picked;  // of these, keys of the picked list
};

/// What both refusals share: dtype, head dims, and the parts of a plan that no kernel here takes yet.
std::optional<std::string> refusal_of_plan(const Plan& plan);
std::optional<std::string> refusal_of_operand(const char* name, const TensorView& view);

/// All blocks of a plan. Heads stay together (their K and V stay in the cache), longest first within a head.
std::vector<QueryBlock> cut_blocks(const PlanData& plan, int64_t batch, int heads);

/// Fills `band` for the block's lanes. Lanes behind the block's see nothing.
void set_band(const PlanData& plan, const QueryBlock& block, LaneBand& band);

/// Replaces `segments` by what the block reads: runs of whole, then masked, then picked. Keys that the mask denies to every lane are left out, and those
/// that it grants to every lane are not tested. Returns the pairs read, before the mask.
/// `by_run`: segments keep the order of run starts over the three lists, and `cell` is the run's place in it; else cell is 0.
int64_t cut_segments(const PlanData& plan, int heads, const QueryBlock& block, const LaneBand& band, bool by_run, std::vector<Segment>& segments);

}  // namespace tilewise::attend::cpu
