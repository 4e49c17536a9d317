// SPDX-License-Identifier: Apache-2.0
#include "tilewise/methods/a_shape.h"

#include <algorithm>

#include "tilewise/methods/problem.h"
#include "tilewise/select/plan.h"
#ifdef TILEWISE_WITH_CUDA
#include "tilewise/select/cuda/mask_plan.h"
#endif

namespace tilewise::method {
namespace {

/// What each query reads, as the keys [s0, s1) and [s2, s3): first tokens and window, or all up to itself.
Tensor spans_of(const AShapeOptions& options, const select::RowGrid& grid, const Context& context) {
  Tensor spans(context.memory, Dtype::i32, {1, 1, grid.seqlen_q, 4});
  for (int64_t q = 0; q < grid.seqlen_q; ++q) {
    const int64_t seen = std::clamp<int64_t>(q + grid.offset() + 1, 0, grid.seqlen_k);
    const bool is_dense = q >= grid.seqlen_q - options.dense_last;
    const int64_t window = is_dense ? 0 : std::max<int64_t>(0, seen - options.local);
    int32_t* span = &spans.view.at<int32_t>(0, 0, q, 0);
    span[0] = 0;
    span[1] = static_cast<int32_t>(std::min<int64_t>(options.init, window));
    span[2] = static_cast<int32_t>(window);
    span[3] = static_cast<int32_t>(seen);
  }
  return spans;
}

}  // namespace

Planned a_shape(const Problem& problem, const AShapeOptions& options, Context& context) {
  check_ranges("a_shape", options);
  const bool is_on_device = is_on_gpu(problem, context);
  const select::Inputs inputs = inputs_of("a_shape", problem, is_on_device ? context.device : Device{});
  check(select::is_causal(inputs.mask, inputs.seqlen_k()), Error::Kind::unsupported,
        "a_shape: the mask is not plainly causal; sink and window look back from a query, give Mask::causal()");
  const bool has_spans = options.dense_last > 0 && options.dense_last < inputs.seqlen_q();
  check(!is_on_device || !has_spans, Error::Kind::unsupported, "a_shape: dense_last ", options.dense_last,
        " makes a mask of spans, which is not built on a GPU; plan on the host and copy the plan, or give 0");
  const select::RowGrid grid = select::plain_rows(inputs, options.tile);
  Mask shape;
  Tensor spans;  // the plan copies it
  if (options.dense_last == 0) {
    shape.bands = {Mask::Band{options.local - 1, 0, options.init}};
  } else if (has_spans) {
    spans = spans_of(options, grid, context);
    shape.spans = spans.view;
  } else {
    shape = inputs.mask;
  }
  Planned planned;
#ifdef TILEWISE_WITH_CUDA
  if (is_on_device) {
    planned.plan = select::cuda::mask_plan(shape, inputs.mask, grid, inputs.batch(), inputs.heads_q(), context);
    return planned;
  }
#endif
  planned.plan = select::plan_of_mask(shape, inputs.mask, grid, inputs.batch(), inputs.heads_q(), context);
  return planned;
}

}  // namespace tilewise::method
