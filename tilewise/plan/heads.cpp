// SPDX-License-Identifier: Apache-2.0
#include "tilewise/plan/heads.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "tilewise/plan/complete.h"
#include "tilewise/plan/join.h"
#include "tilewise/plan/pack.h"
#include "tilewise/plan/recut.h"
#include "tilewise/plan/rows.h"

TILEWISE_BEGIN_PUBLIC

namespace {

using namespace tilewise::plan;

/// One list of one direction, put together head by head.
RunList join(std::span<const Plan> plans, std::span<const int> plan_of_head, RunList Lists::* member, int64_t num_rows, Context& context,
             PlanData& out) {
  const PlanData& first = *plans[0];
  const int heads = first.heads_q;
  const int64_t batch = first.batch;
  std::vector<int64_t> base(plans.size() + 1, 0);
  bool has_any = false, has_stop = false, has_rows = false;
  int64_t words = 0;
  for (size_t i = 0; i < plans.size(); ++i) {
    const RunList& list = plans[i]->by_query.*member;
    base[i + 1] = base[i] + (list.has_runs() ? list.start.numel() : 0);
    has_any = has_any || list.has_runs();
    has_stop = has_stop || (list.has_runs() && (member != &Lists::picked));
    has_rows = has_rows || list.rows.has_value();
    if (list.rows.has_value()) words = list.rows.dim(1);
  }
  RunList joined;
  if (!has_any) return joined;
  joined.begin = keep(out, Tensor(context.memory, Dtype::i64, {batch, heads, num_rows}));
  joined.count = keep(out, Tensor(context.memory, Dtype::i32, {batch, heads, num_rows}));
  joined.start = keep(out, Tensor(context.memory, Dtype::i32, {base.back()}));
  if (has_stop) joined.stop = keep(out, Tensor(context.memory, Dtype::i32, {base.back()}));
  if (has_rows) joined.rows = keep(out, Tensor(context.memory, Dtype::u64, {base.back(), words}));
  for (size_t i = 0; i < plans.size(); ++i) {
    const RunList& list = plans[i]->by_query.*member;
    if (!list.has_runs()) continue;
    auto* start = joined.start.data<int32_t>() + base[i];
    for (int64_t run = 0; run < list.start.numel(); ++run) {
      start[run] = list.start.at<int32_t>(run);
      if (has_stop) {
        const int64_t end = list.stop.has_value() ? list.stop.at<int32_t>(run)
                                                  : std::min<int64_t>(part_end(*plans[i], start[run]), static_cast<int64_t>(start[run]) + list.grain);
        joined.stop.at<int32_t>(base[i] + run) = static_cast<int32_t>(end);
      }
      for (int64_t w = 0; has_rows && w < words; ++w) {
        joined.rows.at<uint64_t>(base[i] + run, w) = list.rows.has_value() ? list.rows.at<uint64_t>(run, w) : ~uint64_t{0};
      }
    }
  }
  for (int64_t b = 0; b < batch; ++b) {
    for (int head = 0; head < heads; ++head) {
      const auto from = static_cast<size_t>(plan_of_head[static_cast<size_t>(head)]);
      const RunList& list = plans[from]->by_query.*member;
      for (int64_t row = 0; row < num_rows; ++row) {
        int64_t begin = 0;
        int32_t count = 0;
        if (list.has_runs()) {
          begin = base[from] + list.begin.at<int64_t>(batch_index(list.begin, b), group_index(list.begin, head, heads), row);
          count = list.count.at<int32_t>(batch_index(list.count, b), group_index(list.count, head, heads), row);
        }
        joined.begin.at<int64_t>(b, head, row) = begin;
        joined.count.at<int32_t>(b, head, row) = count;
      }
    }
  }
  return joined;
}

}  // namespace

Plan combine_heads(std::span<const Plan> plans, std::span<const int> plan_of_head, Context& context) {
  check_alike("combine_heads", plans);
  const int heads = plans[0]->heads_q;
  check(static_cast<int>(plan_of_head.size()) == heads, Error::Kind::value, "combine_heads: plan_of_head names ", plan_of_head.size(),
        " heads, the plans have ", heads);
  for (size_t head = 0; head < plan_of_head.size(); ++head) {
    check(plan_of_head[head] >= 0 && plan_of_head[head] < static_cast<int>(plans.size()), Error::Kind::value, "combine_heads: head ", head,
          " takes plan ", plan_of_head[head], " of ", plans.size());
  }
  PlanData data;
  data.seqlen_q = plans[0]->seqlen_q;
  data.seqlen_k = plans[0]->seqlen_k;
  data.batch = plans[0]->batch;
  data.heads_q = heads;
  data.order_q = plans[0]->order_q;
  data.order_k = plans[0]->order_k;
  data.pools = plans[0]->pools;

  // Rows that begin wherever a row of some plan does; each then lies within one row of every plan.
  std::vector<Plan> fine;
  std::vector<const Lists*> lists;
  int tile = 256;
  for (const Plan& plan : plans) {
    fine.push_back(plan->by_query.has_runs() ? plan : complete(plan, context));
    lists.push_back(&fine.back()->by_query);
    tile = std::min(tile, fine.back()->by_query.tile);
  }
  const int64_t slots = slots_q(data);
  const std::vector<int32_t> edge = common_edges(lists, slots);
  for (Plan& plan : fine) {
    PlanData cut = share(plan);
    cut.by_query = recut(*plan, Direction::by_query, edge, tile, cut, context);
    plan = std::make_shared<const PlanData>(std::move(cut));
  }
  data.shared = fine;
  data.by_query.tile = tile;
  data.by_query.edge = fine[0]->by_query.edge;

  std::vector<const PlanData*> from;
  for (const int plan : plan_of_head) from.push_back(fine[static_cast<size_t>(plan)].get());
  data.mask = join_masks("combine_heads", from, context.memory, data);
  for (int head = 0; head < heads; ++head) {
    const PlanData& plan = *from[static_cast<size_t>(head)];
    // Of equal shares, each takes what keeps the sum over all heads: no pair is lost to rounding.
    const int64_t share = plan.dense_reads / heads, rest = plan.dense_reads % heads;
    const int64_t equal = share + (head + 1) * rest / heads - head * rest / heads;
    data.dense_reads_of_head.push_back(plan.dense_reads_of_head.empty() ? equal : plan.dense_reads_of_head[static_cast<size_t>(head)]);
    data.dense_reads += data.dense_reads_of_head.back();
  }
  const int64_t num_rows = plan::num_rows(data.by_query, slots);
  data.by_query.whole = join(fine, plan_of_head, &Lists::whole, num_rows, context, data);
  data.by_query.masked = join(fine, plan_of_head, &Lists::masked, num_rows, context, data);
  data.by_query.picked = join(fine, plan_of_head, &Lists::picked, num_rows, context, data);
  if (std::equal(data.dense_reads_of_head.begin() + 1, data.dense_reads_of_head.end(), data.dense_reads_of_head.begin())) {
    data.dense_reads_of_head.clear();
  }
  return std::make_shared<const PlanData>(std::move(data));
}

TILEWISE_END_PUBLIC
