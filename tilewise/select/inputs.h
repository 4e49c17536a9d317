// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <optional>
#include <string_view>

#include "tilewise/plan/plan.h"
#include "tilewise/plan/visible.h"

// select/ stands below methods/, so it takes tensors and a mask, not a method's Problem.
namespace tilewise::select {

// What a row sees is the plan's knowledge; selection speaks of it all the time.
using plan::differs_by_batch;
using plan::differs_by_head;
using plan::Interval;
using plan::is_causal;
using plan::is_full;
using plan::RowGrid;
using plan::Visible;
using plan::visible_keys;

/// What scores are made from: tensors in token order and the mask that they are made for.
struct Inputs {
  TensorView q = {}, k = {};  // [B, Hq, Sq, D], [B, Hkv, Sk, D]; f32, bf16 or f16; D contiguous, other strides any
  Mask mask = {};
  float softmax_scale = 1;    // finite and > 0
  float softcap = 0;          // 0: none

  int64_t batch() const { return q.dim(0); }
  int heads_q() const { return static_cast<int>(q.dim(1)); }
  int heads_kv() const { return static_cast<int>(k.dim(1)); }
  int64_t seqlen_q() const { return q.dim(2); }
  int64_t seqlen_k() const { return k.dim(2); }
  int64_t head_dim() const { return q.dim(3); }
};

/// Everything that selection relies on. `where` begins the message.
/// Errors: shape, dtype, device; value (scale, softcap, a mask with two forms, a class that does not exist, a band beyond 2^40).
TILEWISE_API void check_inputs(std::string_view where, const Inputs& inputs);

/// 1 / sqrt(D), unless it is given.
TILEWISE_API float scale_or_default(const std::optional<float>& softmax_scale, int64_t head_dim);

}  // namespace tilewise::select
