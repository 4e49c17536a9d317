// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "tilewise/base/context.h"
#include "tilewise/base/tensor.h"

namespace tilewise::select {

/// A tensor as f32: the tensor itself where it is f32, else a contiguous copy.
struct TILEWISE_API AsFloat {
  Tensor copy = {};
  TensorView view = {};

  /// `tensor` is [B, H, S, D], f32, bf16 or f16, D contiguous. Errors: memory.
  AsFloat(const TensorView& tensor, Context& context);
  /// Keeps a tensor that is f32 already.
  explicit AsFloat(Tensor tensor) : copy(std::move(tensor)), view(copy.view) {}
  const float* row(int64_t b, int64_t h, int64_t s) const { return static_cast<const float*>(view.raw()) + view.offset(b, h, s, 0); }
};

}  // namespace tilewise::select
