// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <memory>
#include <vector>

#include "tilewise/attend/prepare.h"

namespace tilewise {
inline namespace v0 {

/// Up to 128 neighbouring slots that a kernel holds in lanes.
struct LaneBlock {
  int32_t b, head;  // head of key slots for blocks of keys, of q for blocks of queries
  int64_t row;      // of by_key, of by_query
  int32_t first, lanes;
  int32_t offset;   // slots of the row before `first`, a multiple of 64
  int64_t work;     // rows that it meets, before the mask
};

struct ScheduleData {
  Plan plan;     // what it was made for
  int heads_kv = 0;
  int heads = 0;  // of key slots: of k, or more where an order of keys has more groups
  Plan by_key;   // its by_key holds the pairs of `plan` but those that by_query.picked names
  // By (b, head of key slots), and there in the order in which the blocks add to the sums that they share.
  std::vector<LaneBlock> key_blocks;
  std::vector<LaneBlock> picked_blocks;  // queries that read picked keys
  std::vector<int64_t> first_key_block, first_picked_block;  // [B * heads + 1]
  // Of a plan on a GPU, which has these alone: the orders of work of attend/sm90; the plan in both directions, of attend/cuda.
  std::shared_ptr<const void> on_device, both_directions;
};

}  // namespace v0
}  // namespace tilewise
