// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <string>

#include "tilewise/plan/plan.h"

TILEWISE_BEGIN_PUBLIC

/// 64 bits of what the plan says, the same wherever and however its arrays lie: touching runs with equal readers are joined, shared lists are read out for
/// every head and row, bits past a row's end do not count. Of two directions by_query is read, and by_key where that is empty or was made from by_key
/// (PlanData::is_by_key), so completing a plan keeps its hash; another tile, order, mask, pool or dense_reads is another plan. The same on every machine. Errors: value (null plan).
TILEWISE_API uint64_t content_hash(const Plan& plan);
/// The same as 16 hexadecimal digits, as files and reports write it.
TILEWISE_API std::string content_hash_text(const Plan& plan);

TILEWISE_END_PUBLIC
