// SPDX-License-Identifier: Apache-2.0
#include "tilewise/select/antidiagonal.h"

#include <cmath>

#include "tilewise/select/cpu/antidiagonal.h"

namespace tilewise::select {

void check_antidiagonal(std::string_view where, const Inputs& inputs, const AntidiagonalParams& params) {
  check(params.tile >= 1 && params.stride >= 1 && params.kdb >= 1 && params.tile % (static_cast<int64_t>(params.stride) * params.kdb) == 0,
        Error::Kind::value, where, ": tile ", params.tile, " must be a multiple of stride ", params.stride, " times kdb ", params.kdb,
        "; e.g. tile 128, stride 16, kdb 1");
  check(std::isfinite(params.norm) && params.norm > 0, Error::Kind::value, where, ": norm is ", params.norm, ", it must be finite and above 0");
  check(is_causal(inputs.mask, inputs.seqlen_k()) || is_full(inputs.mask, inputs.seqlen_q(), inputs.seqlen_k()), Error::Kind::unsupported, where,
        ": the mask is neither causal nor full in every head, and groups of tokens know no other; give Mask::causal() or Mask::full()");
}

Scores antidiagonal_scores(const Inputs& inputs, const AntidiagonalParams& params, Context& context) {
  check_antidiagonal("antidiagonal_scores", inputs, params);
  const RowGrid grid = score_rows(inputs, params.tile);
  Scores scores = make_scores(inputs, grid, params.tile, context);
  cpu::antidiagonal_scores(inputs, params, is_causal(inputs.mask, inputs.seqlen_k()), scores, context);
  return scores;
}

}  // namespace tilewise::select
