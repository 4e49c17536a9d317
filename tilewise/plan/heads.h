// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <span>

#include "tilewise/base/context.h"
#include "tilewise/plan/plan.h"

TILEWISE_BEGIN_PUBLIC

/// One plan for heads that were planned by different methods: head h reads what it reads in plans[plan_of_head[h]].
/// Lists are refined to the smallest tile among the plans and put behind one another; classes of bands are joined (equal bands once, at most 16);
/// dense_reads adds up each plan's share of heads. The result has by_query alone.
/// Errors  value (a null plan, a head without a plan, different lengths, batch or heads, more than 16 classes), unsupported (spans, grids, orders or
///         pools that the plans do not share, rows with different edges), memory, cancelled.
TILEWISE_API Plan combine_heads(std::span<const Plan> plans, std::span<const int> plan_of_head, Context& context);

TILEWISE_END_PUBLIC
