// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "tilewise/plan/pack.h"
#include "tilewise/plan/plan.h"

namespace tilewise::plan {

/// Bits [first, last) of a row's words set.
void set_bits(std::span<uint64_t> words, int64_t first, int64_t last);
/// Words of which exactly the first `slots` bits are set.
std::vector<uint64_t> full_words(int64_t slots, int words);

/// Collects the runs of one group of rows, for each row in ascending order, and joins those that touch and mean the same.
class RunCollector {
 public:
  RunCollector(int64_t num_rows, int words);

  /// `bits` says which slots of the row read the run; empty: all do. Runs of one row come in ascending order within each kind.
  /// `may_join` is false at the border of two pools.
  void add(int64_t row, Kind kind, int64_t start, int64_t stop, std::span<const uint64_t> bits, bool may_join = true);

 private:
  friend Lists pack(std::span<const RunCollector> groups, int64_t batch, int tile, const std::vector<int32_t>& edge,
                    const std::shared_ptr<Memory>& memory, PlanData& plan);
  struct Entry {
    int64_t row;
    int32_t start, stop;
    int64_t bits;  // index into bits_ in units of words_; -1: all slots
  };
  struct List {
    std::vector<Entry> entries;
    std::vector<int64_t> last;  // [rows] index of the row's newest entry, -1
  };
  bool are_equal(int64_t bits, std::span<const uint64_t> other) const;

  int words_;
  List lists_[3];
  std::vector<uint64_t> bits_;
};

/// Packs collectors (batch x groups of them, batch slowest) into the arrays of one direction. An empty `edge` means rows of `tile` slots.
Lists pack(std::span<const RunCollector> groups, int64_t batch, int tile, const std::vector<int32_t>& edge, const std::shared_ptr<Memory>& memory,
           PlanData& plan);

/// A plan that reads the arrays of another and can be given other lists: every field is copied, the arrays are shared.
PlanData share(const Plan& plan);

/// Takes a tensor into the plan's memory.
TensorView keep(PlanData& plan, Tensor tensor);

/// B|1 and G|1 that fit every given tensor [B|1, G|1, ...]: the largest, or one group a head where group counts do not divide one another.
struct Groups {
  int64_t batch = 1;
  int groups = 1;
};
Groups common_groups(std::span<const TensorView> views, int heads);
/// The first head of group g.
inline int first_head(int g, int groups, int heads) { return static_cast<int>((static_cast<int64_t>(g) * heads + groups - 1) / groups); }

}  // namespace tilewise::plan
