// SPDX-License-Identifier: Apache-2.0
#include "tilewise/plan/make.h"

#include <vector>

#include "tilewise/plan/builder.h"
#include "tilewise/plan/mask.h"
#include "tilewise/plan/rows.h"
#include "tilewise/plan/visible.h"

TILEWISE_BEGIN_PUBLIC
namespace {

std::vector<Run> runs_of(const std::vector<plan::Interval>& intervals) {
  std::vector<Run> runs;
  for (const plan::Interval& interval : intervals) runs.push_back({static_cast<int32_t>(interval.first), static_cast<int32_t>(interval.last), {}});
  return runs;
}

}  // namespace

Plan make_plan(PlanData&& data) { return std::make_shared<const PlanData>(std::move(data)); }

Plan dense_plan(const DensePlanParams& params, const std::shared_ptr<Memory>& memory) {
  check(params.seqlen_q >= 0 && params.seqlen_k >= 0 && params.seqlen_q <= INT32_MAX && params.seqlen_k <= INT32_MAX, Error::Kind::value,
        "dense_plan: seqlen_q ", params.seqlen_q, " and seqlen_k ", params.seqlen_k, ", takes 0 to 2^31 - 1");
  check(params.tile >= 16 && params.tile <= 256, Error::Kind::value, "dense_plan: tile is ", params.tile, ", takes 16 to 256");
  check(params.batch >= 1 && params.heads_q >= 1, Error::Kind::value, "dense_plan: batch ", params.batch, " and heads_q ", params.heads_q,
        ", takes at least 1 each");
  check(!params.mask.bands.empty(), Error::Kind::unsupported, "dense_plan: takes a mask of bands; spans and grids are planned by a method");
  if (const auto fault = plan::mask_fault(params.mask, params.batch, params.heads_q, params.seqlen_q, params.seqlen_k)) {
    fail(Error::Kind::value, "dense_plan: ", *fault);
  }
  PlanData data;
  data.seqlen_q = params.seqlen_q;
  data.seqlen_k = params.seqlen_k;
  data.batch = params.batch;
  data.heads_q = params.heads_q;
  data.mask = params.mask;

  const plan::RowGrid grid = plan::RowGrid::plain(params.seqlen_q, params.seqlen_k, params.tile);
  plan::set_dense_reads(data, params.mask, grid);
  const int groups = plan::differs_by_head(params.mask) ? params.heads_q : 1;
  ListsBuilder builder(params.tile, 1, groups, grid.rows());
  std::vector<int> head_of_class(16, -1);
  for (int head = 0; head < groups; ++head) {
    int& same = head_of_class[static_cast<size_t>(plan::head_class(data.mask, head))];
    for (int64_t row = 0; row < grid.rows(); ++row) {
      if (same >= 0) {
        builder.share(0, head, row, 0, same, row);
        continue;
      }
      const plan::Visible visible = plan::visible_keys(params.mask, head, 0, grid, row, params.tile);
      builder.set(0, head, row, {runs_of(visible.whole), runs_of(visible.masked), {}});
    }
    if (same < 0) same = head;
  }
  data.by_query = builder.build(memory, data);
  return make_plan(std::move(data));
}

TILEWISE_END_PUBLIC
