// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <string_view>

#include "tilewise/base/context.h"
#include "tilewise/plan/plan.h"
#include "tilewise/select/budget.h"
#include "tilewise/select/scores.h"

namespace tilewise::select {

/// The plan that reads, in each row, the tiles within the budget, cut to what the mask lets the row see: runs of tokens, neighbours joined, `whole` where every
/// pair is allowed and `masked` elsewhere. Deterministic for any thread count. A row whose scores are not finite keeps all that it sees.
/// Errors  value (a number outside its range, or neither one nor one per head); memory; cancelled.
TILEWISE_API Plan plan(const Scores& scores, const Budget& budget, Context& context);

/// The plan that reads all that `read` lets the rows see. Its density is held against `model`, the model's own mask, which `read` must not exceed.
/// Lists are shared by heads and batch entries that see the same. Under the grid's orders rows and runs are slots, the mask is asked on the tokens in them.
TILEWISE_API Plan plan_of_mask(const Mask& read, const Mask& model, const RowGrid& grid, int64_t batch, int heads, Context& context);

/// Errors: value (a number outside its range, or neither one nor one per head).
void check_budget(const Budget& budget, int heads);

/// A plan without lists: lengths, heads, dense_reads and copies of mask and orders that own their arrays. What every builder begins with.
PlanData begin_plan(const Mask& read, const Mask& model, const RowGrid& grid, int64_t batch, int heads, const Context& context);

}  // namespace tilewise::select
