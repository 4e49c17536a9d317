// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <array>

#include "tilewise/plan/cuda/run_list.h"
#include "tilewise/plan/cuda/validate.h"
#include "tilewise/plan/cuda/validate_kernel.h"

// What validate_into() is launched with and what its word says: no CUDA in it, so that the CPU's tests launch the same.
namespace tilewise::plan::cuda {

struct ValidateLaunch {
  ValidateArgs args;
  long blocks = 0;
};

inline ValidateLaunch validate_launch(const PlanData& plan, bool is_by_query, void* fault) {
  ValidateLaunch launch;
  ValidateArgs& args = launch.args;
  args = {};
  const Lists& lists = is_by_query ? plan.by_query : plan.by_key;
  const std::array<const RunList*, 3> all{&lists.whole, &lists.masked, &lists.picked};
  for (size_t list = 0; list < 3; ++list) {
    args.lists[list] = run_list(*all[list]);
    args.capacity[list] = all[list]->has_runs() ? all[list]->start.numel() : 0;
  }
  args.rows_axis = is_by_query ? query_axis(plan) : key_axis(plan);
  args.runs_axis = is_by_query ? key_axis(plan) : query_axis(plan);
  args.rows = rows_view(lists, is_by_query ? slots_q(plan) : slots_k_with_pools(plan));
  args.heads_q = plan.heads_q;
  args.is_by_query = is_by_query;
  if (lists.status.has_value()) args.status = static_cast<const int32_t*>(lists.status.raw());
  args.fault = static_cast<unsigned long long*>(fault);
  launch.blocks = lists.has_runs() ? static_cast<long>(plan.batch * plan.heads_q * args.rows.rows) : 0;
  return launch;
}

inline std::optional<RowFault> row_fault(const PlanData& plan, uint64_t word) {
  if (word == ~uint64_t{0}) return std::nullopt;
  static constexpr std::array<const char*, 11> kWhat{"",
                                                     "the kernel that wrote the lists met a fault",
                                                     "has no slot, more than its tile, or passes the border of a pool",
                                                     "has runs outside of its list",
                                                     "has a run that starts outside of the axis",
                                                     "has a run without a slot, or past the end of the axis or of a pool",
                                                     "has a run that starts before the end of the run ahead of it",
                                                     "has a run whose length is no multiple of the grain",
                                                     "has a run that no slot of it reads",
                                                     "has an untested run that holds a padding slot",
                                                     "has runs of two lists that share slots"};
  RowFault fault;
  fault.is_by_key = (word >> 63) != 0;
  const Lists& lists = fault.is_by_key ? plan.by_key : plan.by_query;
  const int64_t rows = std::max<int64_t>(1, num_rows(lists, fault.is_by_key ? slots_k_with_pools(plan) : slots_q(plan)));
  const auto item = static_cast<int64_t>(word << 1 >> 9);
  fault.row = item % rows;
  fault.head = static_cast<int>(item / rows % plan.heads_q);
  fault.b = item / rows / plan.heads_q;
  fault.list = static_cast<int>(word & 0xf);
  fault.what = kWhat[std::min<size_t>(word >> 4 & 0xf, kWhat.size() - 1)];
  return fault;
}

}  // namespace tilewise::plan::cuda
