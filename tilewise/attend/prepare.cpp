// SPDX-License-Identifier: Apache-2.0
#include "tilewise/attend/prepare.h"

#include <algorithm>
#include <memory>
#include <numeric>
#include <utility>

#include "tilewise/attend/schedule.h"
#ifdef TILEWISE_WITH_CUDA
#include "tilewise/attend/cuda/backward.h"
#include "tilewise/attend/sm90/backward.h"
#endif
#include "tilewise/plan/complete.h"
#include "tilewise/plan/pack.h"
#include "tilewise/plan/rows.h"

namespace tilewise {
inline namespace v0 {

namespace {

constexpr int kLanes = 128, kHalf = 64;  // what a kernel holds, and at least

bool has_picked_keys(const PlanData& plan) {
  const RunList& picked = plan.by_query.picked;
  if (!picked.has_runs() || picked.start.numel() == 0) return false;
  const TensorView& count = picked.count;
  for (int64_t b = 0; b < count.dim(0); ++b) {
    for (int64_t g = 0; g < count.dim(1); ++g) {
      for (int64_t row = 0; row < count.dim(2); ++row) {
        if (count.at<int32_t>(b, g, row) > 0) return true;
      }
    }
  }
  return false;
}

// The plan whose by_key the backward walks. Picked keys are walked from their queries: as bits of by_key they would cost 8 to 29 times the products.
Plan transposed(const Plan& plan, bool has_picked, Context& context) {
  Plan result = plan;
  if (has_picked) {
    PlanData rest = plan::share(plan);
    rest.by_query.picked = {};
    rest.by_key = {};
    result = std::make_shared<const PlanData>(std::move(rest));
  }
  if (!result->by_key.has_runs()) return complete(result, context, kLanes);
  return result->by_key.tile < kLanes ? retile(result, context, 0, kLanes) : result;
}

// Rows that meet lanes [0, 64) and [64, 128) of a block, and those that meet any, over some lists. Before the mask.
struct Work {
  int64_t first = 0, second = 0, any = 0;

  void add(const plan::Runs& runs, int grain, int64_t axis_end, int64_t offset, bool has_second) {
    for (int i = 0; i < runs.count; ++i) {
      const int64_t rows = plan::run_stop(runs, i, grain, axis_end) - runs.start[i];
      const uint64_t* const words = runs.rows == nullptr ? nullptr : runs.rows + static_cast<int64_t>(i) * runs.words + offset / kHalf;
      const bool meets_first = words == nullptr || words[0] != 0, meets_second = has_second && (words == nullptr || words[1] != 0);
      first += meets_first ? rows : 0;
      second += meets_second ? rows : 0;
      any += meets_first || meets_second ? rows : 0;
    }
  }
  // A row costs all the lanes that are held; held at once, lanes take about 0.9 of the time of halves, whose rows come twice.
  bool is_better_at_once() const { return 2 * any * 9 <= (first + second) * 10; }
};

void sort_blocks(std::vector<LaneBlock>& blocks, int64_t first) {
  std::sort(blocks.begin() + first, blocks.end(), [](const LaneBlock& x, const LaneBlock& y) {
    const int64_t work_x = x.work * x.lanes, work_y = y.work * y.lanes;
    if (work_x != work_y) return work_x > work_y;
    return x.head != y.head ? x.head < y.head : x.first < y.first;
  });
}

// The blocks of one row. `work_of(offset, has_second)` says what the lanes from `offset` on meet.
template <class WorkOf>
void add_blocks(std::vector<LaneBlock>& blocks, int64_t b, int head, int64_t row, int64_t first, int64_t last, const WorkOf& work_of) {
  const auto add = [&](int64_t slot, int64_t lanes, int64_t work) {
    blocks.push_back({.b = static_cast<int32_t>(b),
                      .head = head,
                      .row = row,
                      .first = static_cast<int32_t>(slot),
                      .lanes = static_cast<int32_t>(lanes),
                      .offset = static_cast<int32_t>(slot - first),
                      .work = work});
  };
  for (int64_t slot = first; slot < last; slot += kLanes) {
    const int64_t lanes = std::min<int64_t>(kLanes, last - slot);
    const Work work = work_of(slot - first, lanes > kHalf);
    if (lanes <= kHalf || work.is_better_at_once()) {
      add(slot, lanes, work.any);
    } else {
      add(slot, kHalf, work.first);
      add(slot + kHalf, lanes - kHalf, work.second);
    }
  }
}

}  // namespace

Schedule attend_prepare(const Plan& plan, int heads_kv, Context& context) {
  check(plan != nullptr, Error::Kind::value, "attend_prepare: the plan is null; make one with a method or load one");
  check(heads_kv >= 1 && plan->heads_q % heads_kv == 0, Error::Kind::value, "attend_prepare: heads_kv is ", heads_kv,
        ", takes a divisor of the plan's ", plan->heads_q, " query heads");
  for (const Lists* lists : {&plan->by_query, &plan->by_key}) {
    for (const RunList* list : {&lists->whole, &lists->masked, &lists->picked}) {
      check(!list->has_runs() || list->begin.device() == context.device, Error::Kind::device, "attend_prepare: the plan is on ", list->begin.device(),
            ", the context runs on ", context.device, "; move the plan or set Context::device");
    }
  }
  auto schedule = std::make_shared<ScheduleData>();
  schedule->plan = plan;
  schedule->heads_kv = heads_kv;
  if (context.device.type != Device::Type::cpu) {
#ifdef TILEWISE_WITH_CUDA
    schedule->on_device = attend::sm90::prepare_backward(plan, heads_kv, context);
    schedule->both_directions = attend::cuda::prepare_backward(plan, context);
    return schedule;
#else
    fail(Error::Kind::unsupported, "attend_prepare: the context runs on ", context.device,
         ", which this build has no backend for; prepare on the CPU");
#endif
  }
  const TensorView& order = plan->order_k.token;
  schedule->heads = order.has_value() ? std::lcm(heads_kv, static_cast<int>(order.dim(1))) : heads_kv;
  const bool has_picked = has_picked_keys(*plan);
  schedule->by_key = transposed(plan, has_picked, context);

  const Lists& keys = schedule->by_key->by_key;
  const Lists& queries = plan->by_query;
  const int heads = plan->heads_q, group = heads / schedule->heads;
  const int64_t slots_k = plan::slots_k_with_pools(*plan), slots_q = plan::slots_q(*plan);
  const int64_t rows_k = plan::num_rows(keys, slots_k), rows_q = plan::num_rows(queries, slots_q);
  for (int64_t b = 0; b < plan->batch; ++b) {
    for (int head = 0; head < schedule->heads; ++head) {
      context.check_cancel();
      const auto first = static_cast<int64_t>(schedule->key_blocks.size()), first_picked = static_cast<int64_t>(schedule->picked_blocks.size());
      schedule->first_key_block.push_back(first);
      schedule->first_picked_block.push_back(first_picked);
      for (int64_t row = 0; row < rows_k; ++row) {
        add_blocks(schedule->key_blocks, b, head, row, plan::row_first(keys, row), plan::row_last(keys, row, slots_k),
                   [&](int64_t offset, bool has_second) {
                     Work work;
                     for (int h = head * group; h < (head + 1) * group; ++h) {
                       for (const RunList* list : {&keys.whole, &keys.masked, &keys.picked}) {
                         work.add(plan::runs_of(*list, b, h, heads, row), list->grain, slots_q, offset, has_second);
                       }
                     }
                     return work;
                   });
      }
      for (int h = head * group; has_picked && h < (head + 1) * group; ++h) {
        for (int64_t row = 0; row < rows_q; ++row) {
          const plan::Runs picked = plan::runs_of(queries.picked, b, h, heads, row);
          if (picked.count == 0) continue;
          add_blocks(schedule->picked_blocks, b, h, row, plan::row_first(queries, row), plan::row_last(queries, row, slots_q),
                     [&](int64_t offset, bool has_second) {
                       Work work;
                       work.add(picked, 1, slots_k, offset, has_second);
                       return work;
                     });
        }
      }
      sort_blocks(schedule->key_blocks, first);
      sort_blocks(schedule->picked_blocks, first_picked);
    }
  }
  schedule->first_key_block.push_back(static_cast<int64_t>(schedule->key_blocks.size()));
  schedule->first_picked_block.push_back(static_cast<int64_t>(schedule->picked_blocks.size()));
  return schedule;
}

}  // namespace v0
}  // namespace tilewise
