// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <optional>
#include <string>

#include "tilewise/attend/params.h"

namespace tilewise::attend::cpu {

/// Why this backend does not take a problem that passed its checks; nullopt: it does.
/// Takes f32, bf16 and f16, head_dim and Dv multiples of 8 up to 256, and every part of a plan (one with by_key alone is transposed at each call).
TILEWISE_API std::optional<std::string> refusal(const AttendParams& params);

/// attend_forward on machine/cpu/simd.h. Scores, sums and lse are f32; bf16 rounds probabilities to bf16 where the target has the dot instruction
/// (avx512bf16) and computes in f32 elsewhere, f16 always. Bits depend on the target, not on the executor. A key outside a row's runs is not computed with.
/// An order of keys or a pool costs one copy of k and v, in context.memory; an order of queries one of each block's rows, in the cache. Pooled keys are
/// rounded once to the dtype.
TILEWISE_API Ran forward(const AttendParams& params, Context& context);

}  // namespace tilewise::attend::cpu
