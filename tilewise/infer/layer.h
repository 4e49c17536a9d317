// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "tilewise/attend/params.h"
#include "tilewise/infer/model.h"

TILEWISE_BEGIN_PUBLIC

/// Dense causal attention of every layer: what a model runs where it is not told otherwise.
TILEWISE_API AttentionFunction dense_attention();

TILEWISE_END_PUBLIC

namespace tilewise::infer {

/// Attention of one layer over a plan: attend_decode for a few new tokens, which reads each key once for all heads that share it, else attend_forward.
Ran attend_layer(const LayerAttention& layer, const Plan& plan, Context& context);

}  // namespace tilewise::infer
