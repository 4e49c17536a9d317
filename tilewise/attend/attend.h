// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <string_view>
#include <vector>

#include "tilewise/attend/params.h"

TILEWISE_BEGIN_PUBLIC

/// out = softmax(softmax_scale * q k^T) v, over the keys that the plan's row reads. Shapes: AttendParams.
/// Dtypes  q, k, v, out alike: f32, bf16 or f16 (f64 on the reference). Scores, sums and lse are f32; lse is a natural log.
/// Edges   lengths may be ragged. A query row that sees no key gets out = 0 and lse = -inf (lse = sink logit where there is one).
/// Errors  shape, dtype or device mismatch; a null plan or one made for other lengths; what no backend takes (with each one's reason).
/// Runs    the first backend that takes the problem; never a dense fallback, and never the f64 reference unasked. TILEWISE_BACKEND in the environment
///         (cpu, sm90, cuda, reference) leaves that one alone to be tried (attend_backward and measure, too).
/// Source  FlashAttention-2, arXiv 2307.08691, Algorithm 1, with the loop over keys taken from the plan.
TILEWISE_API Ran attend_forward(const AttendParams& params, Context& context);

/// Gradients of attend_forward in out and lse. Rows without a key have zero gradients.
/// Dtypes  f32, bf16 or f16 (f64 on the reference); gradients are f32 sums, rounded once.
/// Edges   a plan may have either direction: the other is made inside (O(runs) up to a logarithm), or once for many calls by attend_prepare.
/// Errors  as attend_forward; a schedule made for another plan.
/// Source  FlashAttention-2, arXiv 2307.08691, Algorithm 2.
TILEWISE_API Ran attend_backward(const AttendBackwardParams& params, Context& context);

/// Reductions of logits or probabilities over the plan's pairs. Shapes: MeasureParams.
/// Errors  as attend_forward; a tile_q that does not divide the plan's tile; query_run of a plan without by_query; key, offset or key_bias of a
///         plan with pools.
TILEWISE_API Ran measure(const MeasureParams& params, Context& context);

/// Why each backend that was tried does not take a problem: "  cpu: ...", one line each; empty when one does.
TILEWISE_API std::string refusals(const AttendParams& params, const Context& context);

TILEWISE_END_PUBLIC
