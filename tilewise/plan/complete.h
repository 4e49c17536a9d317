// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "tilewise/base/context.h"
#include "tilewise/plan/plan.h"

TILEWISE_BEGIN_PUBLIC

/// The plan with both directions: the missing one is transposed from the other, exactly, with rows of `tile` slots (0: as the direction at hand).
/// A key that only some queries of a row read becomes a `rows` bit; untested pairs may become tested ones, since they satisfy the plan's own mask.
/// A plan that has both comes back as it is. The content hash stays. The result shares the arrays of `plan`; new rows of equal readers share a list.
/// Work O(runs + rows + what is written), up to a logarithm; pair by pair only where an order or a grid asks.
/// Errors  value (null plan; tile outside 16 to 256; an untested pair that the plan's own mask forbids), memory, cancelled.
TILEWISE_API Plan complete(const Plan& plan, Context& context, int tile = 0);

/// The plan with rows of at most `tile_q` query slots and `tile_k` key slots (0: unchanged). Finer rows share the lists they are cut from; coarser
/// ones read the union, with a `rows` bit a slot where their parts differ. The same pairs, exactly; packed rows (`edge`) are cut or joined as they lie.
/// Errors  value (null plan; tile outside 16 to 256; as complete() where coarser rows make untested pairs tested), memory, cancelled.
TILEWISE_API Plan retile(const Plan& plan, Context& context, int tile_q, int tile_k = 0);
/// retile() of by_query, one way only. Errors: as retile; value, when `tile` is on the wrong side of the plan's.
TILEWISE_API Plan refine(const Plan& plan, Context& context, int tile);
TILEWISE_API Plan coarsen(const Plan& plan, Context& context, int tile);

TILEWISE_END_PUBLIC
