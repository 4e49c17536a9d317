// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "tilewise/base/context.h"
#include "tilewise/plan/plan.h"

TILEWISE_BEGIN_PUBLIC

struct PlanOfBitsParams {
  TensorView bits = {};        // [B|1, Hq|1, Sq, Sk] bool: which keys each query reads
  int tile = 128;              // 16 to 256 slots a row
  Mask mask = Mask::full();    // the model's mask: the plan's own test and the denominator of its density
  int64_t batch = 0;           // 0: as bits; else what their B of 1 broadcasts to
  int heads_q = 0;             // the same for Hq
};
/// The plan that reads exactly these pairs, at any tile: to_bits() gives them back. Where a row reads of a run what the mask lets through, the run is masked
/// without `rows`; where it reads something else, each slot's reading is a `rows` bit. Reads bits once, O(pairs).
/// Errors  shape, dtype, device (of bits), value (a tile outside 16 to 256; a bad mask; a pair that the mask forbids), memory, cancelled.
TILEWISE_API Plan plan_of_bits(const PlanOfBitsParams& params, Context& context);

TILEWISE_END_PUBLIC
