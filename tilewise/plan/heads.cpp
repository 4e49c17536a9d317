// SPDX-License-Identifier: Apache-2.0
#include "tilewise/plan/heads.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "tilewise/plan/complete.h"
#include "tilewise/plan/pack.h"
#include "tilewise/plan/rows.h"

TILEWISE_BEGIN_PUBLIC

namespace {

using namespace tilewise::plan;

constexpr size_t kMaxClasses = 16;

bool are_equal(const TensorView& a, const TensorView& b) {
  if (a.has_value() != b.has_value()) return false;
  if (!a.has_value() || a.raw() == b.raw()) return true;
  if (a.shape() != b.shape() || !a.is_contiguous() || !b.is_contiguous()) return false;
  const auto* x = static_cast<const int32_t*>(a.raw());
  return std::equal(x, x + a.numel(), static_cast<const int32_t*>(b.raw()));
}

void check_parts(std::span<const Plan> plans, std::span<const int> plan_of_head) {
  check(!plans.empty(), Error::Kind::value, "combine_heads: there is no plan");
  for (const Plan& plan : plans) check(plan != nullptr, Error::Kind::value, "combine_heads: a plan is null");
  const PlanData& first = *plans[0];
  check(static_cast<int>(plan_of_head.size()) == first.heads_q, Error::Kind::value, "combine_heads: plan_of_head names ", plan_of_head.size(),
        " heads, the plans have ", first.heads_q);
  for (size_t head = 0; head < plan_of_head.size(); ++head) {
    check(plan_of_head[head] >= 0 && plan_of_head[head] < static_cast<int>(plans.size()), Error::Kind::value, "combine_heads: head ", head,
          " takes plan ", plan_of_head[head], " of ", plans.size());
  }
  for (const Plan& plan : plans) {
    check(plan->seqlen_q == first.seqlen_q && plan->seqlen_k == first.seqlen_k && plan->batch == first.batch && plan->heads_q == first.heads_q,
          Error::Kind::value, "combine_heads: plans differ in size: ", plan->batch, " x ", plan->heads_q, " heads, ", plan->seqlen_q, " x ",
          plan->seqlen_k, " tokens beside ", first.batch, " x ", first.heads_q, ", ", first.seqlen_q, " x ", first.seqlen_k);
    check(!plan->mask.bands.empty(), Error::Kind::unsupported, "combine_heads: only plans whose mask is made of bands can be combined");
    check(plan->pools == first.pools && are_equal(plan->order_q.token, first.order_q.token) && are_equal(plan->order_k.token, first.order_k.token),
          Error::Kind::unsupported, "combine_heads: the plans differ in orders or pools; one launch has one of each");
  }
}

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
  check_parts(plans, plan_of_head);
  int tile = plans[0]->by_query.tile;
  for (const Plan& plan : plans) {
    check(plan->by_query.has_runs() || !plan->by_key.has_runs(), Error::Kind::unsupported,
          "combine_heads: a plan has by_key alone; complete() it first");
    tile = std::min(tile, plan->by_query.tile);
  }
  std::vector<Plan> fine;
  for (const Plan& plan : plans) fine.push_back(retile(plan, context, tile));

  const PlanData& first = *fine[0];
  const int64_t num_rows = plan::num_rows(first.by_query, slots_q(first));
  for (const Plan& plan : fine) {
    check(plan->by_query.tile == tile && are_equal(plan->by_query.edge, first.by_query.edge), Error::Kind::unsupported,
          "combine_heads: the plans cut their rows differently (`edge`), so no list of rows fits all");
  }
  PlanData data;
  data.seqlen_q = first.seqlen_q;
  data.seqlen_k = first.seqlen_k;
  data.batch = first.batch;
  data.heads_q = first.heads_q;
  data.order_q = first.order_q;
  data.order_k = first.order_k;
  data.pools = first.pools;
  data.shared = fine;

  for (int head = 0; head < data.heads_q; ++head) {
    const PlanData& from = *fine[static_cast<size_t>(plan_of_head[static_cast<size_t>(head)])];
    data.dense_reads += from.dense_reads / data.heads_q;
    const Mask::Band& band = from.mask.bands[static_cast<size_t>(head_class(from.mask, head))];
    const auto at = std::find(data.mask.bands.begin(), data.mask.bands.end(), band);
    data.mask.head_class.push_back(static_cast<uint8_t>(at - data.mask.bands.begin()));
    if (at == data.mask.bands.end()) data.mask.bands.push_back(band);
  }
  check(data.mask.bands.size() <= kMaxClasses, Error::Kind::value, "combine_heads: the heads use ", data.mask.bands.size(),
        " different bands, one launch takes ", kMaxClasses);
  data.by_query.tile = tile;
  data.by_query.edge = first.by_query.edge;
  data.by_query.whole = join(fine, plan_of_head, &Lists::whole, num_rows, context, data);
  data.by_query.masked = join(fine, plan_of_head, &Lists::masked, num_rows, context, data);
  data.by_query.picked = join(fine, plan_of_head, &Lists::picked, num_rows, context, data);
  return std::make_shared<const PlanData>(std::move(data));
}

TILEWISE_END_PUBLIC
