// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "tilewise/plan/plan.h"
#include "tilewise/plan/rows.h"

namespace tilewise::plan {

enum class Direction : uint8_t { by_query, by_key };
enum class Kind : uint8_t { whole, masked, picked };
constexpr int kMaxWords = 4;  // 256 slots a row, the largest tile

/// One bit for each slot of a row.
using RowBits = std::array<uint64_t, kMaxWords>;
/// The bits [first, last).
RowBits bits_between(int64_t first, int64_t last);
/// The bits of run i for `length` slots of its row from slot `from` on, moved to begin at bit `to`.
RowBits moved_bits(const Runs& runs, int i, int64_t from, int64_t length, int64_t to);

/// A run with the slots of the row that read it, as algorithms hold it.
struct PackedRun {
  int32_t start = 0, stop = 0;
  RowBits bits{};
  bool operator==(const PackedRun&) const = default;
};
/// The three lists of one row.
struct PackedRow {
  std::array<std::vector<PackedRun>, 3> lists;  // by Kind
  std::vector<PackedRun>& list(Kind kind) { return lists[static_cast<size_t>(kind)]; }
  const std::vector<PackedRun>& list(Kind kind) const { return lists[static_cast<size_t>(kind)]; }
  void clear() {
    for (auto& runs : lists) runs.clear();
  }
};

/// Where runs of one direction may not pass: the ends of the slots and of each pool for by_query, the end of the queries for by_key. Ascending.
std::vector<int64_t> part_ends(const PlanData& plan, Direction direction);

/// Appends rows one after another and lays them out as the arrays of one direction. Not for several threads: each fills a Packer of its own, to be
/// appended. A list that equals the one added just before it (rows of as many slots) is stored once.
class Packer {
 public:
  /// `ends` as from part_ends(); runs that end there need not be a multiple of the grain, and touching runs do not join across them.
  Packer(int tile, int64_t batch, int64_t groups, int64_t num_rows, std::vector<int64_t> ends);

  /// The row at `index` = (b * groups + group) * num_rows + row, which has `slots` slots. Sorts, and joins touching runs with equal bits unless told not to.
  void add(int64_t index, int64_t slots, PackedRow& row, bool joins_touching = true);
  /// One of its lists alone. Picked runs become single slots.
  void add(Kind kind, int64_t index, int64_t slots, std::vector<PackedRun>& runs, bool joins_touching = true);
  /// The row at `index` has the lists of the row at `as_index`, which was added before.
  void share(int64_t index, int64_t as_index);
  /// Appends the rows of another, of the same tile, from `index` on.
  void append(int64_t index, const Packer& rows);
  /// Errors: memory. `edge` may be empty.
  Lists finish(const std::vector<int32_t>& edge, const std::shared_ptr<Memory>& memory, PlanData& plan) const;

 private:
  struct Arrays {
    std::vector<int64_t> begin;
    std::vector<int32_t> count, start, stop;
    std::vector<uint64_t> rows;  // kept from the first run on that not every slot of its row reads
    bool has_rows = false;
    int64_t last = -1, last_slots = 0;  // index and slots of the row added last
  };
  void keep_rows(Arrays& list) const;

  int tile_, words_;
  int64_t batch_, groups_, num_rows_;
  std::vector<int64_t> ends_;
  std::array<Arrays, 3> lists_;
};

/// A plan that reads the arrays of another and can be given other lists: every field is copied, the arrays are shared.
PlanData share(const Plan& plan);

/// Takes a tensor into the plan's memory.
TensorView keep(PlanData& plan, Tensor tensor);

/// A copy of `values` in memory that the plan owns; absent when it is empty.
template <class T>
TensorView own(const T* values, const Shape& shape, const std::shared_ptr<Memory>& memory, PlanData& plan) {
  Tensor tensor(memory, kDtypeOf<T>, shape);
  T* to = static_cast<T*>(tensor.view.raw());
  const int64_t numel = shape.numel();
  for (int64_t i = 0; i < numel; ++i) to[i] = values[i];
  return keep(plan, std::move(tensor));
}

}  // namespace tilewise::plan
