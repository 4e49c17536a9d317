// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <optional>
#include <string>

#include "tilewise/attend/params.h"

namespace tilewise::attend::cpu {

/// Why this backend does not take a gradient that passed its checks; nullopt: it does.
/// Takes f32, bf16 and f16, head_dim and Dv multiples of 8 up to 256, every mask, both directions of a plan.
TILEWISE_API std::optional<std::string> refusal(const AttendBackwardParams& params);

/// attend_backward on machine/cpu/simd.h: five products a pair, 64 keys held while the queries that read them pass by; picked keys are walked from
/// their queries. Sums are f32, rounded once. bf16 rounds P and dS to bf16 where the target has the dot instruction (avx512bf16) and computes in f32
/// elsewhere, f16 always in f32. Bits depend on the target, not on the executor. A key that no query reads is not computed with.
/// Memory: f32 sums (of dq, and of dk and dv where they are not done at once: picked keys, one head of v for all, gradients in one tensor) and copies of
/// 16-bit operands as the products read them, of the heads that run together: 8 MiB, up to 256 where threads would idle, or what one head of k takes.
TILEWISE_API Ran backward(const AttendBackwardParams& params, Context& context);

}  // namespace tilewise::attend::cpu
