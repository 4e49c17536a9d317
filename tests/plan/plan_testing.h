// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstring>
#include <memory>

#include "tilewise/base/memory.h"
#include "tilewise/plan/plan.h"

namespace tilewise::testing {

/// The plan with arrays of its own, to be changed.
inline std::shared_ptr<PlanData> clone(const Plan& plan) {
  auto data = std::make_shared<PlanData>();
  const auto copy = [&](const TensorView& view) {
    if (!view.has_value()) return TensorView{};
    Tensor tensor(host_memory(), view.dtype(), view.shape());
    if (view.numel() > 0)
      std::memcpy(tensor.view.raw(), view.raw(), static_cast<size_t>(view.numel()) * size_of(view.dtype()));  // all are contiguous here
    data->memory.push_back(std::move(tensor.buffer));
    return tensor.view;
  };
  const auto copy_list = [&](const RunList& list) {
    return RunList{copy(list.begin), copy(list.count), copy(list.start), copy(list.stop), copy(list.rows), list.grain};
  };
  const auto copy_lists = [&](const Lists& lists) {
    return Lists{lists.tile, copy(lists.edge), copy_list(lists.whole), copy_list(lists.masked), copy_list(lists.picked), copy(lists.status)};
  };
  data->seqlen_q = plan->seqlen_q;
  data->seqlen_k = plan->seqlen_k;
  data->dense_reads = plan->dense_reads;
  data->batch = plan->batch;
  data->heads_q = plan->heads_q;
  data->by_query = copy_lists(plan->by_query);
  data->by_key = copy_lists(plan->by_key);
  data->order_q = {copy(plan->order_q.token), plan->order_q.boxes};
  data->order_k = {copy(plan->order_k.token), plan->order_k.boxes};
  data->pools = plan->pools;
  data->mask = plan->mask;
  data->mask.spans = copy(plan->mask.spans);
  return data;
}

}  // namespace tilewise::testing
