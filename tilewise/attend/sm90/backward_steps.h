// SPDX-License-Identifier: Apache-2.0
// The order of work of the Hopper backward, made on the host. Plain C++.
#pragma once
#include <cstdint>
#include <vector>

#include "tilewise/attend/sm90/backward_item.h"
#include "tilewise/base/context.h"
#include "tilewise/plan/plan.h"

namespace tilewise::attend::sm90 {

/// Items of thread block i are [first_item[i], first_item[i + 1]), in the order in which it takes them. Dq of a query tile is added up in the order of
/// ranks, each thread block waiting for its turn: whatever an item waits for stands earlier in the order of the ranks, and so does what its own thread
/// block did before, so that thread blocks that run at once cannot wait in a circle.
struct BackwardSteps {
  int tile_q = 0;
  std::vector<BackwardItem> items;
  std::vector<int32_t> first_item;
  std::vector<uint64_t> steps;  // packed
  std::vector<uint64_t> patterns;  // [.][kKeyTile][tile_q / 64]: bit of a query at the key that it reads
};

/// `plan` on the host, with by_query and neither orders nor pools. `thread_blocks`: how many run at once.
/// Errors: unsupported, what the packed fields do not hold; memory; cancelled.
BackwardSteps make_backward_steps(const PlanData& plan, int heads_kv, int tile_q, int thread_blocks, const Context& context);

}  // namespace tilewise::attend::sm90
