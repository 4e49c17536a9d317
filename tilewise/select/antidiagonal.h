// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <string_view>

#include "tilewise/select/scores.h"

namespace tilewise::select {

/// Which S of the S x S products of a group of queries and a group of keys are taken: q in group order p(t) with k in order t.
enum class Selector : uint8_t {
  inverse,        // p(t) = S - 1 - t: the antidiagonal
  slash,          // p(t) = t: the diagonal
  random,         // a permutation drawn from the seed
  double_inverse,  // the antidiagonal, with k[t] + k[t + 1 mod S] for k[t]
  triple_inverse,  // and + k[t + 2 mod S]
};

struct AntidiagonalParams {
  int tile = 128;    // tokens per tile, both axes; a multiple of stride * kdb
  int stride = 16;   // S: tokens per group
  Selector selector = Selector::inverse;
  float norm = 1;    // one more divisor of the logits, > 0
  int kdb = 1;       // only query groups whose number is a multiple of it are scored
  uint64_t seed = 0;  // of Selector::random
};

/// A[m, j] = sum over the query groups of row m and the key groups of tile j of softmax over key groups of X, where
/// X[i, c] = softmax_scale / (S * norm) * sum over t of q[iS + p(t)] . k[cS + t]. Tokens that are missing from a group count as zeros.
/// Causal  group c is seen by group i iff c <= i, on token numbers; rows are cut at multiples of `tile` (RowGrid::on_key_tiles).
/// Full    rows and groups begin at slot 0.
/// Orders  groups are S slots, from slot 0; causal: group c is seen by group i iff some query of i sees some key of c. Padding counts as zeros; a group of
///         padding alone is seen by nobody.
/// Dtypes  f32, bf16, f16 in; f32 arithmetic. One pass: per row a (maximum, sum) for each key tile, never the matrix X.
/// Errors  value (params), unsupported (a mask that is neither causal nor full in every head), memory.
/// Source  XAttention, arXiv 2503.16428, Algorithm 1; selectors, norm and kdb from the released code.
TILEWISE_API Scores antidiagonal_scores(const Inputs& inputs, const AntidiagonalParams& params, Context& context);

/// Errors: value (params), unsupported (the mask), as antidiagonal_scores(). `where` begins the message.
void check_antidiagonal(std::string_view where, const Inputs& inputs, const AntidiagonalParams& params);

}  // namespace tilewise::select
