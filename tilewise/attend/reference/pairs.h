// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "tilewise/base/executor.h"
#include "tilewise/plan/plan.h"

namespace tilewise::attend::reference {

/// Refuses a plan whose entries are wrong (out of range, out of order, repeated, ...): what the loops below trust. O(runs + slots).
/// Errors: value, with the first fault.
void check_entries(const char* function, const Plan& plan);

/// A key that a query reads, and the run that named it (its place among the row's runs of all three lists, by start).
struct Pair {
  int32_t key_slot;
  int32_t run;
};

/// Which keys each query slot of one head sees, from by_query or, where that has no runs, from by_key.
class HeadPairs {
 public:
  /// `tokens_q` and `tokens_k` are the axes' tokens (with pools); they must outlive this.
  HeadPairs(const PlanData& plan, int64_t b, int head, std::span<const int64_t> tokens_q, std::span<const int64_t> tokens_k);

  /// Independent items: rows of by_query; one for all where by_key is read.
  int64_t items() const;
  /// Calls body(query_slot, pairs) for each query slot of the item that holds a token; pairs ascend by key slot, the mask is applied, padding left
  /// out.
  /// Returns how many pairs of real slots the plan reads before the mask.
  int64_t for_each_query(int64_t item, FunctionRef<void(int64_t query_slot, std::span<const Pair> pairs)> body) const;

 private:
  int64_t walk_rows(int64_t row, FunctionRef<void(int64_t, std::span<const Pair>)> body) const;
  int64_t walk_columns(FunctionRef<void(int64_t, std::span<const Pair>)> body) const;
  bool sees(int64_t query_slot, int64_t key_slot) const;

  const PlanData& plan_;
  int64_t b_;
  int head_;
  std::span<const int64_t> tokens_q_, tokens_k_;
};

}  // namespace tilewise::attend::reference
