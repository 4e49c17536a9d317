// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <string_view>

#include "tilewise/base/context.h"
#include "tilewise/base/tensor.h"
#include "tilewise/select/inputs.h"

namespace tilewise::select {

/// What the last queries of a sequence look at, summed over them.
struct LastQuerySums {
  int64_t queries = 0;     // min(count, Sq)
  Tensor key, offset;      // [B, Hq, Sk] f32: probability on each key, and at each distance: token of the query minus token of the key
};

/// The true probabilities of the last `count` queries (causal, softmax in f32), added up per key and per distance. Pairs that the mask hides count nothing;
/// a query that sees no key adds nothing. One attend for the log-sum-exp and two measures, head by head in parallel; bits do not depend on threads.
/// `where` begins the message of an error.
/// Errors  value (count below 1); unsupported (a mask that is not plainly causal, what no backend of attend takes), memory, cancelled.
/// Source  MInference, arXiv 2407.02490, vertical-slash heads: the estimate from the last 64 queries.
TILEWISE_API LastQuerySums last_query_sums(std::string_view where, const Inputs& inputs, int64_t count, Context& context);

}  // namespace tilewise::select
