// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <span>

#include "tilewise/base/context.h"
#include "tilewise/plan/plan.h"

TILEWISE_BEGIN_PUBLIC

/// One plan for heads that were planned by different methods: head h reads what it reads in plans[plan_of_head[h]].
/// Rows are cut wherever those of a plan are, with at most the smallest tile, and the lists are put behind one another. Classes of masks are joined (equal ones
/// once, at most 16; bands beside spans are written as spans). Each head brings its own part of dense_reads. The result has by_query alone; of a plan
/// that has by_key alone it is made first.
/// Errors  value (a null plan, a head without a plan, different lengths, batch or heads, more than 16 classes), unsupported (orders or pools that the plans
///         do not share, neighbourhoods beside another form of mask), memory, cancelled.
TILEWISE_API Plan combine_heads(std::span<const Plan> plans, std::span<const int> plan_of_head, Context& context);

TILEWISE_END_PUBLIC
