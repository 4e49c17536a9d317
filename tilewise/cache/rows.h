// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>

#include "tilewise/base/tensor.h"

namespace tilewise::cache {

/// to[h', t'] = from[h, t] for rows of [1, H, tokens, D] with the last axis contiguous: f32 is rounded to the dtype of `to`, 16-bit floats go to
/// their own dtype or to f32. The caller has checked both.
void copy_row(const TensorView& from, int64_t from_head, int64_t from_token, const TensorView& to, int64_t to_head, int64_t to_token);

}  // namespace tilewise::cache
