// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "tilewise/base/context.h"
#include "tilewise/base/tensor.h"
#include "tilewise/plan/plan.h"

// Between tokens and the slots of an order. A tensor of H heads and an order of G groups (its token is [B|1, G|1, slots]) meet in J heads, which H and G
// divide: head j of the slots is head j * H / J of the tokens in the order of group j * G / J.
namespace tilewise::prepare {

/// slots[b, j, s] = tokens[b, j * H / J, token of slot s], 0 where the slot is padding.
/// Shapes  tokens [B, H, S, D] or [B, H, S] (lse), slots [B, J, slots, D] or [B, J, slots]. Dtypes  any, alike. The last axis of D is contiguous.
/// Edges   an absent order copies the tokens as they stand. Tokens that no slot names are not read.
/// Errors  shape; dtype; value (a slot names a token that is not there), before the first write.
TILEWISE_API void to_slots(const TensorView& tokens, const Order& order, const TensorView& slots, Context& context);
/// The same into a new tensor with the fewest heads that H and G divide.
TILEWISE_API Tensor to_slots(const TensorView& tokens, const Order& order, Context& context);
/// tokens[b, h, token of slot s] = slots[b, h, s]: the inverse of to_slots for J = H, and its gradient, since an order holds every token once.
/// Tokens that no slot names stay as they were; padding is not read.
TILEWISE_API void to_tokens(const TensorView& slots, const Order& order, const TensorView& tokens, Context& context);

}  // namespace tilewise::prepare
