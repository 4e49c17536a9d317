// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "tilewise/plan/plan.h"

TILEWISE_BEGIN_PUBLIC

/// One run of a row, on the host. `rows` is one word per 64 slots of the row, or empty when every slot reads it.
struct Run {
  int32_t start = 0, stop = 0;
  std::vector<uint64_t> rows = {};
};

/// The three lists of one row, in any order; ListsBuilder sorts each by start and joins touching runs with equal `rows`.
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
  /// The same between groups and batch entries: heads of equal lists.
  void share(int64_t b, int group, int64_t row, int64_t as_b, int as_group, int64_t as_row);
  /// Touching runs stay apart from here on: documents that measure() tells apart by run.
  void keep_touching_apart() { joins_touching_ = false; }
  /// Packs into arrays taken from `memory`; the buffers go to `plan.memory`. Set the plan's lengths, orders and pools before: a run that reaches
  /// the end of the keys or of a pool needs no `stop` and no multiple of `grain`. `stop` and `rows` are made only where they say something.
  /// Errors: memory, value (a run that is empty, reversed or past the end of its axis; `rows` of another number of words or without a bit; a whole
  /// run that not every slot reads; a row that shares with one that was never set).
  Lists build(const std::shared_ptr<Memory>& memory, PlanData& plan) const { return build(memory, plan, false); }
  /// The same for by_key, whose rows are keys and whose runs are queries.
  Lists build_by_key(const std::shared_ptr<Memory>& memory, PlanData& plan) const { return build(memory, plan, true); }

 private:
  Lists build(const std::shared_ptr<Memory>& memory, PlanData& plan, bool is_by_key) const;
  size_t index_of(const char* function, int64_t b, int group, int64_t row) const;

  int tile_;
  int64_t batch_, num_rows_;
  int groups_;
  std::vector<int32_t> edge_;
  std::vector<RowRuns> rows_;
  std::vector<int64_t> shared_with_;  // -1: its own runs
  std::vector<uint8_t> is_set_;
  bool joins_touching_ = true;
};

TILEWISE_END_PUBLIC
