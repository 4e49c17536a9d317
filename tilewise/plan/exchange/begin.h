// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <memory>

#include "tilewise/base/memory.h"
#include "tilewise/plan/plan.h"
#include "tilewise/plan/visible.h"

namespace tilewise::plan {

struct Sizes {
  int64_t seqlen_q, seqlen_k, batch, heads_q;
  int tile;
};
/// A plan without runs: sizes, tile of by_query, a copy of the mask that owns its arrays, dense_reads. What every conversion from another format begins with.
/// Errors: value (a size, tile or mask out of range), memory; they begin with `function`.
PlanData begin_plan(const char* function, const Sizes& sizes, const Mask& mask, const std::shared_ptr<Memory>& memory);

}  // namespace tilewise::plan
