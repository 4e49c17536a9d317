// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "tilewise/attend/params.h"
#include "tilewise/infer/model.h"

TILEWISE_BEGIN_PUBLIC

/// Dense causal attention of every layer: what a model runs where it is not told otherwise.
TILEWISE_API AttentionFunction dense_attention();

TILEWISE_END_PUBLIC

namespace tilewise::infer {

/// The plan where the host can read it: itself, or a copy of one whose arrays are on the context's GPU.
TILEWISE_API Plan plan_on_host(const Plan& plan, const Context& context);

/// Attention of one layer over a plan: attend_decode for a few new tokens, which reads each key once for all heads that share it, else (and on a
/// GPU that has no decode for the problem) attend_forward.
Ran attend_layer(const LayerAttention& layer, const Plan& plan, Context& context);

}  // namespace tilewise::infer
