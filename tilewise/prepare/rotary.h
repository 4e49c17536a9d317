// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "tilewise/base/context.h"
#include "tilewise/base/tensor.h"

TILEWISE_BEGIN_PUBLIC

struct RotaryParams {
  TensorView x = {};           // [B, H, S, D] f32, bf16 or f16, D even
  TensorView out = {};         // written: shape and dtype of x; may be x itself, else they do not overlap
  double theta = 10'000;       // base of the angles, > 0
  int64_t first_position = 0;  // of token 0, >= 0
  bool is_inverse = false;     // turns back: the gradient in x of a rotary whose gradient in out is x
};

/// Rotary position embedding in the rotate-half convention: with angle t = position * theta^(-2 i / D), channels i and i + D / 2 become
/// (x_i cos t - x_{i + D/2} sin t, x_{i + D/2} cos t + x_i sin t).
/// Gradient  a rotation's is the rotation back: rotary({.x = dout, .out = dx, ..., .is_inverse = true}).
/// Dtypes  f32, bf16 or f16, turned in f32 and rounded once; angles are f64, their sine and cosine are rounded to f32 once.
/// Edges   the last axis is contiguous, other strides are free; S may be 0.
/// Errors  shape (rank, odd D, out unlike x), dtype, device, value (theta, position), unsupported (last axis not contiguous).
/// Source  RoFormer, arXiv 2104.09864, with the channel order of Hugging Face's Llama.
TILEWISE_API void rotary(const RotaryParams& params, Context& context);

TILEWISE_END_PUBLIC

namespace tilewise::prepare {

/// theta^(-2 i / D) for i < D / 2: the angle that a channel pair turns by from one position to the next.
TILEWISE_API std::vector<double> rotary_frequencies(int64_t head_dim, double theta);

/// Cosine and sine of the angles of positions [first, first + count), both times `scale`, made once for all layers of a model.
class TILEWISE_API RotaryTable {
 public:
  RotaryTable(std::span<const double> frequencies, double scale, int64_t first, int64_t count, Context& context);
  int64_t first() const { return first_; }
  int64_t count() const { return count_; }
  /// D floats: D / 2 cosines, then D / 2 sines. `position` is in [first, first + count).
  const float* row(int64_t position) const { return table_.view.data<float>() + (position - first_) * head_dim_; }

 private:
  int64_t head_dim_, first_, count_;
  Tensor table_;
};

/// Turns D channels by the angles of one row of a table. `out` may be `x`.
inline void rotate_half(const float* x, const float* angles, int64_t head_dim, float* out) {
  const int64_t half = head_dim / 2;
  for (int64_t i = 0; i < half; ++i) {
    const float a = x[i], b = x[i + half], c = angles[i], s = angles[i + half];
    out[i] = a * c - b * s;
    out[i + half] = b * c + a * s;
  }
}

}  // namespace tilewise::prepare
