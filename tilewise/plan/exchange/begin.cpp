// SPDX-License-Identifier: Apache-2.0
#include "tilewise/plan/exchange/begin.h"

#include <utility>

#include "tilewise/plan/mask.h"
#include "tilewise/plan/pack.h"

namespace tilewise::plan {

PlanData begin_plan(const char* function, const Sizes& sizes, const Mask& mask, const std::shared_ptr<Memory>& memory) {
  check(sizes.seqlen_q >= 0 && sizes.seqlen_k >= 0 && sizes.seqlen_q <= INT32_MAX && sizes.seqlen_k <= INT32_MAX, Error::Kind::value, function,
        ": seqlen_q is ", sizes.seqlen_q, " and seqlen_k ", sizes.seqlen_k, ", takes 0 to 2^31 - 1");
  check(sizes.batch >= 1 && sizes.heads_q >= 1 && sizes.batch <= (1 << 24) && sizes.heads_q <= (1 << 24), Error::Kind::value, function, ": batch is ",
        sizes.batch, " and heads_q ", sizes.heads_q, ", takes 1 to 2^24 each");
  check(sizes.tile >= 16 && sizes.tile <= 256, Error::Kind::value, function, ": tile is ", sizes.tile, ", takes 16 to 256");
  const int heads = static_cast<int>(sizes.heads_q);
  if (const auto fault = mask_fault(mask, sizes.batch, heads, sizes.seqlen_q, sizes.seqlen_k)) fail(Error::Kind::value, function, ": ", *fault);
  PlanData data;
  data.seqlen_q = sizes.seqlen_q;
  data.seqlen_k = sizes.seqlen_k;
  data.batch = sizes.batch;
  data.heads_q = heads;
  data.by_query.tile = sizes.tile;
  data.mask = mask;
  if (mask.spans.has_value()) {
    Tensor spans(memory, Dtype::i32, mask.spans.shape());
    for (int64_t c = 0; c < mask.spans.dim(0); ++c) {
      for (int64_t b = 0; b < mask.spans.dim(1); ++b) {
        for (int64_t q = 0; q < mask.spans.dim(2); ++q) {
          for (int64_t i = 0; i < 4; ++i) spans.view.at<int32_t>(c, b, q, i) = mask.spans.at<int32_t>(c, b, q, i);
        }
      }
    }
    data.mask.spans = keep(data, std::move(spans));
  }
  set_dense_reads(data, data.mask, RowGrid::plain(sizes.seqlen_q, sizes.seqlen_k, sizes.tile));
  return data;
}

}  // namespace tilewise::plan
