// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <memory>

#include "tilewise/plan/plan.h"

TILEWISE_BEGIN_PUBLIC

/// Makes the parts immutable. It trusts them: validate() what comes from outside.
TILEWISE_API Plan make_plan(PlanData&& data);

/// A dense plan reads every pair that its mask lets through, as few runs a row: what every method's density is measured against.
struct DensePlanParams {
  int64_t seqlen_q = 0, seqlen_k = 0;
  int tile = 128;              // 16 to 256 slots a row
  Mask mask = Mask::causal();  // bands
  int64_t batch = 1;           // what dense_reads counts; the lists are one for all
  int heads_q = 1;
};
/// by_query with its dense_reads set. Whole runs begin and end at multiples of the tile (or at the last key), so that the transpose needs no `rows`;
/// what they leave is masked. Heads of one class share their lists.
/// Errors  value (a length or tile out of range, a bad mask), unsupported (spans and grids: they are a method's to plan), memory.
TILEWISE_API Plan dense_plan(const DensePlanParams& params, const std::shared_ptr<Memory>& memory = host_memory());

TILEWISE_END_PUBLIC
