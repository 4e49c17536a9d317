// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <vector>

#include "tilewise/plan/plan.h"

// The slots of one axis for one batch entry and head: which token each holds, and how many are real up to each.
namespace tilewise::plan {

/// Token of a slot where there is an order, else the slot itself; pooled keys give the largest token they hold, padding gives -1.
class Axis {
 public:
  /// The query axis.
  static Axis of_queries(const PlanData& plan, int64_t b, int head);
  /// The key axis, pools behind the slots.
  static Axis of_keys(const PlanData& plan, int64_t b, int head);

  int64_t slots() const { return slots_; }
  /// -1: padding.
  int64_t token(int64_t slot) const { return tokens_.empty() ? slot : tokens_[static_cast<size_t>(slot)]; }
  /// Slots in [first, last) that are not padding. O(1).
  int64_t real(int64_t first, int64_t last) const {
    return reals_.empty() ? last - first : reals_[static_cast<size_t>(last)] - reals_[static_cast<size_t>(first)];
  }
  /// Slots are tokens, one for one.
  bool is_plain() const { return tokens_.empty(); }

 private:
  void count_reals();

  int64_t slots_ = 0;
  std::vector<int32_t> tokens_;  // empty: slot s holds token s
  std::vector<int32_t> reals_;   // [slots + 1] prefix counts, with tokens_
};

/// First slots of the parts of the key axis: the slots proper, then each pool; the last number is the end. {0, slots} without pools.
std::vector<int64_t> part_edges(const PlanData& plan);

/// Which heads and batch entries share every list, order and mask class of the plan: work done once can be counted `times` times.
struct Reader {
  int64_t b;
  int head;
  int64_t times;
};
/// One reader for each distinct combination. What it shares: lists of `lists`, both orders, the mask's class and (for spans) batch entry.
TILEWISE_API std::vector<Reader> distinct_readers(const PlanData& plan, const Lists& lists);
/// The same, sharing the lists of both directions.
std::vector<Reader> distinct_readers(const PlanData& plan);

}  // namespace tilewise::plan
