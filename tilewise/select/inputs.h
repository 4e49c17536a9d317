// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

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
  Order order_q = {}, order_k = {};  // absent: token order. Scores are made on slots then, of `tile` each

  int64_t batch() const { return q.dim(0); }
  int heads_q() const { return static_cast<int>(q.dim(1)); }
  int heads_kv() const { return static_cast<int>(k.dim(1)); }
  int64_t seqlen_q() const { return q.dim(2); }
  int64_t seqlen_k() const { return k.dim(2); }
  int64_t head_dim() const { return q.dim(3); }
  bool has_orders() const { return order_q.token.has_value() || order_k.token.has_value(); }
};

/// Everything that selection on `device` relies on; orders lie on the host. `where` begins the message.
/// Errors: shape, dtype, device; value (scale, softcap, a mask with two forms, a class that does not exist, a band beyond 2^40, an order that does not hold
/// every token once).
TILEWISE_API void check_inputs(std::string_view where, const Inputs& inputs, Device device = {});

/// Leaves out an order in which every slot holds the token of its number: the plan is the one of token order then.
TILEWISE_API void drop_identity_orders(Inputs& inputs);

/// Tokens of the queries in a row, ascending, as they count (plus Sk - Sq).
std::vector<int64_t> tokens_of_row(const RowGrid& grid, int64_t b, int head, int64_t row);

/// Rows of `tile` slots from slot 0, in the inputs' orders.
TILEWISE_API RowGrid plain_rows(const Inputs& inputs, int tile);
/// The rows that scores of this mask are made on: on the key tiles where it is causal and there is no order, else plain_rows.
TILEWISE_API RowGrid score_rows(const Inputs& inputs, int tile);

/// 1 / sqrt(D), unless it is given.
TILEWISE_API float scale_or_default(const std::optional<float>& softmax_scale, int64_t head_dim);

}  // namespace tilewise::select
