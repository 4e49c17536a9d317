// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <span>
#include <vector>

#include "tilewise/base/context.h"
#include "tilewise/base/tensor.h"

TILEWISE_BEGIN_PUBLIC

/// Results of attention over disjoint sets of keys, to be made into the result over all of them.
struct MergeParams {
  std::vector<TensorView> outs = {};  // of each part: [B, Hq, Sq, Dv], one dtype; all absent (an empty vector): lse alone
  std::vector<TensorView> lses = {};  // of each part: [B, Hq, Sq] f32; made without a sink logit
  TensorView out = {}, lse = {};      // written: [B, Hq, Sq, Dv] in the dtype of the parts, and [B, Hq, Sq] f32; an absent one is not written
  TensorView sink_logit = {};         // [Hq] f32, added here and once only, or absent
};

/// lse = ln(sum of exp(lse_i) + exp(sink)), out = sum of exp(lse_i - lse) out_i, summed in f64 in the order of the parts.
/// Dtypes  outs and out alike: f32, f64, bf16 or f16.
/// Edges   a part with lse -inf adds nothing, whatever its out holds; a row where every part has -inf gets out = 0 and lse = -inf (or the sink
///         logit).
///         out and lse may be those of a part: each element is read before it is written.
/// Errors  shape, dtype, device; value (no part, nothing to write).
TILEWISE_API void attend_merge(const MergeParams& params, Context& context);

TILEWISE_END_PUBLIC

namespace tilewise::attend {

/// weights[i] = exp(lses[i] - lse), where lse = ln(sum of exp(lses[i]) + exp(sink)) is returned; all weights are 0 where that is -inf.
double merge_weights(std::span<const double> lses, double sink, std::span<double> weights);

}  // namespace tilewise::attend
