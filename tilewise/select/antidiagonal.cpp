// SPDX-License-Identifier: Apache-2.0
#include "tilewise/select/antidiagonal.h"

#include <cmath>

#include "tilewise/select/cpu/antidiagonal.h"

namespace tilewise::select {

Scores antidiagonal_scores(const Inputs& inputs, const AntidiagonalParams& params, Context& context) {
  check(params.tile >= 1 && params.stride >= 1 && params.kdb >= 1 && params.tile % (static_cast<int64_t>(params.stride) * params.kdb) == 0,
        Error::Kind::value, "antidiagonal_scores: tile ", params.tile, " must be a multiple of stride ", params.stride, " times kdb ", params.kdb,
        "; e.g. tile 128, stride 16, kdb 1");
  check(std::isfinite(params.norm) && params.norm > 0, Error::Kind::value, "antidiagonal_scores: norm is ", params.norm,
        ", it must be finite and above 0");
  const bool causal = is_causal(inputs.mask, inputs.seqlen_k());
  check(causal || is_full(inputs.mask, inputs.seqlen_q(), inputs.seqlen_k()), Error::Kind::unsupported,
        "antidiagonal_scores: the mask is neither causal nor full in every head, and groups of tokens know no other; give Mask::causal() or "
        "Mask::full()");
  const RowGrid grid = score_rows(inputs, params.tile);
  Scores scores = make_scores(inputs, grid, params.tile, context);
  cpu::antidiagonal_scores(inputs, params, causal, scores, context);
  return scores;
}

}  // namespace tilewise::select
