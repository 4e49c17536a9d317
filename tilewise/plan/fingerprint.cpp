// SPDX-License-Identifier: Apache-2.0
#include "tilewise/plan/fingerprint.h"

#include <vector>

#include "tilewise/base/hash.h"
#include "tilewise/plan/axis.h"
#include "tilewise/plan/rows.h"

namespace tilewise::plan {
namespace {

constexpr uint64_t kQuerySalt = 0x5bd1e995a4c93b27ull, kKeySalt = 0xc2b2ae3d27d4eb4full;

std::vector<uint64_t> prefix_sums(const Axis& axis, uint64_t salt) {
  std::vector<uint64_t> sums(static_cast<size_t>(axis.slots()) + 1, 0);
  for (int64_t slot = 0; slot < axis.slots(); ++slot) {
    const uint64_t value = axis.token(slot) < 0 ? 0 : splitmix64(static_cast<uint64_t>(slot) + salt);
    sums[static_cast<size_t>(slot) + 1] = sums[static_cast<size_t>(slot)] + value;
  }
  return sums;
}

}  // namespace

uint64_t fingerprint(const PlanData& plan, Direction direction, int64_t b, int head) {
  const bool is_by_query = direction == Direction::by_query;
  const Lists& lists = is_by_query ? plan.by_query : plan.by_key;
  const std::vector<uint64_t> sums_q = prefix_sums(Axis::of_queries(plan, b, head), kQuerySalt);
  const std::vector<uint64_t> sums_k = prefix_sums(Axis::of_keys(plan, b, head), kKeySalt);
  const std::vector<uint64_t>& of_rows = is_by_query ? sums_q : sums_k;
  const std::vector<uint64_t>& of_runs = is_by_query ? sums_k : sums_q;
  const auto slots = static_cast<int64_t>(of_rows.size()) - 1, end = static_cast<int64_t>(of_runs.size()) - 1;
  uint64_t total = 0;
  for (const RunList* list : {&lists.whole, &lists.masked, &lists.picked}) {
    if (!list->has_runs()) continue;
    const int64_t rows = num_rows(lists, slots);
    const int32_t* last_start = nullptr;  // rows in a row that share a list need its sum once
    uint64_t shared_sum = 0;
    int last_count = -1;
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t first = row_first(lists, row), last = row_last(lists, row, slots);
      const Runs runs = runs_of(*list, b, head, plan.heads_q, row);
      const uint64_t of_row = of_rows[static_cast<size_t>(last)] - of_rows[static_cast<size_t>(first)];
      const auto of_run = [&](int i) {
        const int64_t stop = run_stop(runs, i, list->grain, is_by_query ? part_end(plan, runs.start[i]) : end);
        return of_runs[static_cast<size_t>(stop)] - of_runs[static_cast<size_t>(runs.start[i])];
      };
      if (runs.rows == nullptr) {
        if (runs.start != last_start || runs.count != last_count) {
          shared_sum = 0;
          for (int i = 0; i < runs.count; ++i) shared_sum += of_run(i);
          last_start = runs.start;
          last_count = runs.count;
        }
        total += of_row * shared_sum;
        continue;
      }
      for (int i = 0; i < runs.count; ++i) {
        uint64_t readers = 0;
        for (int64_t slot = first; slot < last; ++slot) {
          if (reads(runs, i, slot - first)) readers += of_rows[static_cast<size_t>(slot) + 1] - of_rows[static_cast<size_t>(slot)];
        }
        total += readers * of_run(i);
      }
    }
  }
  return total;
}

}  // namespace tilewise::plan
