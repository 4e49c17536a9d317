// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <span>

#include "tilewise/base/context.h"
#include "tilewise/base/tensor.h"
#include "tilewise/plan/plan.h"

TILEWISE_BEGIN_PUBLIC

struct PoolParams {
  TensorView x = {};  // [B, H, S, D] f32, bf16 or f16
  TensorView out = {};  // written: [B, H, T, D] f32 or in the dtype of x; T = ceil(S / tile), or edge.size() - 1
  int tile = 64;  // tokens of a mean; the last may be ragged
  std::span<const int32_t> edge = {};  // or the first token of each mean and S behind them; `tile` is not asked then
  /// x is in the slots of an order, [B|1, G, S] with G a divisor of H: padding is neither read nor counted. So a plan's pools are made.
  Order order = {};
};

/// out[b, h, t] = mean of the tokens [t * tile, (t + 1) * tile) of x, or [edge[t], edge[t + 1]).
/// Dtypes  sums are f32 in ascending order and rounded once, so the bits do not depend on threads.
/// Edges   a mean of no token is 0.
/// Errors  shape (rank, sizes, a last axis that is not contiguous), dtype, device, value (tile below 1, edges that do not rise from 0 to S), before the first write.
TILEWISE_API void pool(const PoolParams& params, Context& context);

struct PoolBackwardParams {
  TensorView dout = {};  // [B, H, T, D], gradient in the means, f32 or in the dtype of dx
  TensorView dx = {};  // written: [B, H, S, D] f32, bf16 or f16; every token, padding 0
  int tile = 64;  // these as they went in
  std::span<const int32_t> edge = {};
  Order order = {};
};
/// The gradient in x: dout of its mean, divided by the number of tokens that it has. Errors: as pool.
TILEWISE_API void pool_backward(const PoolBackwardParams& params, Context& context);

TILEWISE_END_PUBLIC

namespace tilewise::prepare {

/// pool() into a new f32 tensor. Errors: as pool, memory.
TILEWISE_API Tensor mean_pool(const TensorView& tokens, int tile, std::span<const int32_t> edge, Context& context);

}  // namespace tilewise::prepare
