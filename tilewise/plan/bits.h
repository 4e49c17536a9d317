// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <memory>

#include "tilewise/base/memory.h"
#include "tilewise/plan/plan.h"

TILEWISE_BEGIN_PUBLIC

/// bool [B, Hq, Sq, Sk] in tokens: which pairs the plan lets through, the mask applied. Pooled keys are not tokens: they are left out, or with `pooled`
/// stand for every token they hold. Errors: value (null plan), memory, shape (too large for memory at all).
TILEWISE_API Tensor to_bits(const Plan& plan, bool pooled = false, const std::shared_ptr<Memory>& memory = host_memory());

/// bool [B, Hq, Tq, Tk] in slots: in which tiles of tile_q x tile_k the plan reads a pair of real slots, before the mask. The keys of pools follow those of k
/// in the last tiles. Errors: value (null plan; a tile below 1), memory.
TILEWISE_API Tensor to_tiles(const Plan& plan, int tile_q, int tile_k, const std::shared_ptr<Memory>& memory = host_memory());

TILEWISE_END_PUBLIC
