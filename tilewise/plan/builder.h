// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "tilewise/plan/plan.h"

TILEWISE_BEGIN_PUBLIC

/// One run of a row, on the host. `rows` is one word per 64 slots of the row, or empty when every slot reads it.
struct Run {
  int32_t start = 0, stop = 0;
  std::vector<uint64_t> rows = {};
};

/// The three lists of one row, in any order; PlanBuilder sorts each by start and joins touching runs with equal `rows`.
struct RowRuns {
  std::vector<Run> whole, masked, picked;  // a picked run of length n is n single keys
};

/// Gathers rows and packs them into the arrays of one direction of a plan.
class TILEWISE_API ListsBuilder {
 public:
  /// `batch` and `groups` are the B|1 and G|1 of the lists, `num_rows` is T. An empty `edge` means rows of `tile` slots.
  ListsBuilder(int tile, int64_t batch, int groups, int64_t num_rows, std::vector<int32_t> edge = {});
  /// Sets the row's runs; a row that is never set has none. May be called from several threads for different rows.
  void set(int64_t b, int group, int64_t row, RowRuns runs);
  /// Makes row (b, group, row) share the list of (b, group, as_row), which must have been set.
  void share(int64_t b, int group, int64_t row, int64_t as_row);
  /// Packs into arrays taken from `memory`; the buffers go to `plan.memory`. Errors: memory, value (a run that is empty or reversed).
  Lists build(const std::shared_ptr<Memory>& memory, PlanData& plan) const;

 private:
  int tile_;
  int64_t batch_, num_rows_;
  int groups_;
  std::vector<int32_t> edge_;
  std::vector<RowRuns> rows_;
  std::vector<int64_t> shared_with_;
};

TILEWISE_END_PUBLIC
