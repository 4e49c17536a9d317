// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>

#include "tilewise/base/context.h"
#include "tilewise/base/operand.h"

TILEWISE_BEGIN_PUBLIC

struct QuantiseParams {
  TensorView x = {};  // [B, H, S, D] f32, bf16 or f16
  /// Written: data i8 [B, H, S, D] or u8 [B, H, S, D / 2] (INT4); scale f32 [B, H, groups of tokens, groups of channels]; zero like scale, or absent: symmetric.
  Quantised out = {};
  /// The caller has set scale and zero (from calibration; they may have one entry for all B or H): only data is written, and codes saturate.
  bool has_given_scale = false;
};

/// Codes with the smallest scale that holds each group. Symmetric: scale = largest magnitude / 127 (7 for INT4), codes to +-127 (7). With zero: the smallest
/// value gets code -128 (-8), the largest 127 (7). Rounds to nearest, ties to even: |x - dequantised| <= scale / 2 and the rounding of f32.
/// Edges   a group of one value is exact; a group of zeros has scale 1; a NaN in a group makes its scale NaN, hence all of the group.
/// Errors  shape, dtype, value (a group below 0), device.
TILEWISE_API void quantise(const QuantiseParams& params, Context& context);

/// out = (data - zero) * scale, [B, H, S, D] f32, bf16 or f16. Errors: as quantise.
TILEWISE_API void dequantise(const Quantised& x, const TensorView& out, Context& context);

struct QuantiseBackwardParams {
  TensorView x = {};  // as it went in
  Quantised quantised = {};  // as it came out
  TensorView dout = {};  // [B, H, S, D], gradient in the dequantised numbers
  TensorView dx = {};  // written: like x, may be dout
};
/// The straight-through gradient: dx = dout where the code did not saturate, else 0.
/// Source  arXiv 1308.3432 (straight-through); saturation as in fake quantisation, arXiv 1712.05877.
TILEWISE_API void quantise_backward(const QuantiseBackwardParams& params, Context& context);

TILEWISE_END_PUBLIC

namespace tilewise::prepare {

struct CodeScale {
  float scale, zero;
};
/// Scale and zero (0 unless has_zero) of a group with these extremes.
TILEWISE_API CodeScale scale_of_range(float least, float most, bool is_int4, bool has_zero);
/// x / scale + zero, rounded, saturated; 0 for NaN.
TILEWISE_API int code_of(float x, CodeScale s, bool is_int4, bool has_zero);

}  // namespace tilewise::prepare
