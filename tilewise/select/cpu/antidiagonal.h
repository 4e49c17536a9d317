// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "tilewise/select/antidiagonal.h"

namespace tilewise::select::cpu {

/// Writes every value of `scores`, on machine/cpu/gemm.h. Arguments have been checked.
void antidiagonal_scores(const Inputs& inputs, const AntidiagonalParams& params, bool is_causal, const Scores& scores, Context& context);

}  // namespace tilewise::select::cpu
