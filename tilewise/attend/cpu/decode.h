// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <optional>
#include <string>

#include "tilewise/attend/decode_problem.h"

namespace tilewise::attend::cpu {

/// Why this backend does not take a decode that passed its checks; nullopt: it does.
/// Takes f32, bf16 and f16 queries, every Operand, any number of channels up to 1,024, masks of bands.
TILEWISE_API std::optional<std::string> refusal(const DecodeProblem& problem);

/// attend_decode on machine/cpu/simd.h. Everything is summed in f32 (bf16 keys by the dot instruction where the target has it); integers are made numbers in
/// registers. Bits depend on the target, not on the executor nor on the other sequences.
TILEWISE_API Ran decode(const DecodeProblem& problem, Context& context);

}  // namespace tilewise::attend::cpu
