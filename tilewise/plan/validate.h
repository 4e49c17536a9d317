// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <optional>
#include <string>

#include "tilewise/plan/plan.h"

TILEWISE_BEGIN_PUBLIC

/// The first thing that is wrong with the plan's structure, as one line of text; empty when nothing is. O(runs + slots).
/// Lists     dtypes and shapes; G divides Hq; edges; begin, count and capacity; runs within the axis, ascending, apart within a list and across the three;
///           grain; `rows` with at least one slot; rows that share `begin` share `count`, others do not overlap; nothing crosses into a pool.
/// Padding   orders hold every token once; a whole or picked run of by_query holds no padding slot.
/// Mask      one form, limits, classes.
/// Together  by_key names the pairs that by_query names (by a 64-bit fingerprint for each batch entry and head).
/// Rows without a key are not a fault. Errors: value (null plan), unsupported (arrays on a device).
TILEWISE_API std::optional<std::string> find_fault(const Plan& plan);

/// The same, and what may cost O(pairs / 64), or a look at each pair under orders and grids: every whole and picked pair satisfies the plan's own mask
/// (the rule that makes a transpose exact), and every pair that the plan lets through is one that `allowed`, the model's mask, lets through.
TILEWISE_API std::optional<std::string> find_fault(const Plan& plan, const Mask& allowed);

/// Throws Error::Kind::value with the first fault.
TILEWISE_API void validate(const Plan& plan);
TILEWISE_API void validate(const Plan& plan, const Mask& allowed);

TILEWISE_END_PUBLIC
