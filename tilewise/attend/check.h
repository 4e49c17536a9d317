// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <optional>

#include "tilewise/attend/decode.h"
#include "tilewise/attend/params.h"

// Every check of arguments that does not depend on the backend. All of them come before the first write, so that a refused call leaves
// its outputs as they were. What only some backends can run (dtypes, head_dim, parts of a plan) is each backend's own `refusal`.
namespace tilewise::attend {

/// The sizes of a problem that has passed its checks.
struct Sizes {
  int64_t batch = 0, seqlen_q = 0, seqlen_k = 0, head_dim = 0;
  int64_t head_dim_v = 0;  // 0: no v
  int heads_q = 0, heads_kv = 0;
  int heads_v = 0;  // heads_kv, or 1 when v broadcasts; 0: no v
};

/// Errors: shape, dtype, device, value; each names function and argument, what it got, what it takes and a way on.
/// The arrays of the plan are checked for dtype, shape and place, not entry by entry: that is plan::validate().
Sizes check_forward(const AttendParams& params, const Context& context);
Sizes check_backward(const AttendBackwardParams& params, const Context& context);
Sizes check_measure(const MeasureParams& params, const Context& context);

class Checker;
/// What is left to check of a decode once `sizes` is known (seqlen_k: that of the plan): out, lse, sink_logit, scalars, plan.
void check_decode_parts(const Checker& c, const DecodeParams& params, const Plan& plan, const Sizes& sizes);

/// The softmax scale in use: the given one, or 1 / sqrt(head_dim).
double scale_of(const std::optional<float>& softmax_scale, int64_t head_dim);

/// Slots per tile of a measurement: the given numbers, or the tile of the plan's by_query.
int measure_tile_q(const MeasureParams& params);
int measure_tile_k(const MeasureParams& params);
/// The shape that sum, max and count have. Tiles of keys cut the slots of k with the pools behind them.
TILEWISE_API Shape measure_shape(const MeasureParams& params);
/// The largest number of runs (whole, masked and picked together) of a row of by_query.
int64_t most_runs(const PlanData& plan, int64_t batch, int heads_q);

}  // namespace tilewise::attend
