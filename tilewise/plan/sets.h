// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "tilewise/base/context.h"
#include "tilewise/plan/plan.h"

TILEWISE_BEGIN_PUBLIC

/// The plan that reads what either of two plans reads, and the one that reads what both do: exact in tokens and `rows` bits, so that to_bits() of the result is
/// the union (the intersection) of theirs, and so are the pairs before the mask, which reads() counts.
/// Rows    are cut wherever those of a plan are; the tile is the smaller one. Lists and batch broadcast as those of the plans do.
/// Lists   disjoint and canonical: ascending, touching runs of equal readers joined, equal lists stored once. A pair that one plan reads untested stays untested
///         where its row can say so; a row whose slots read a run differently has it in `masked`, whose test such a pair passes by the plan's own mask.
/// Mask    a head that both plans read must be tested alike in both; of other heads, that of the plan which reads them.
/// Sizes   dense_reads is the larger of the two (plans of one mask and tile have the same).
/// Result  has by_query alone, or by_key alone where both plans do.
/// Errors  value (a null plan; different lengths, batch or heads; more than 16 mask classes; an untested pair that the plan's own mask forbids), unsupported
///         (different orders or pools; a head that both read under different masks; forms of mask that do not mix), memory, cancelled.
TILEWISE_API Plan unite(const Plan& a, const Plan& b, Context& context);
TILEWISE_API Plan intersect(const Plan& a, const Plan& b, Context& context);

TILEWISE_END_PUBLIC
