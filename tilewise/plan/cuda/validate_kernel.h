// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>

#include "tilewise/plan/cuda/axis_view.h"
#include "tilewise/plan/cuda/run_list_view.h"

// The structure of a plan's rows, looked at on a GPU: a block for each row of each head.
namespace tilewise::plan::cuda {

struct ValidateArgs {
  RunListView lists[3];      // whole, masked, picked
  int64_t capacity[3];
  AxisView rows_axis, runs_axis;
  RowsView rows;
  int heads_q;
  bool is_by_query;
  const int32_t* status;     // of the kernel that wrote the lists, or null
  unsigned long long* fault; // the smallest word wins; all ones: no fault
};

/// The word that a fault is told by. It orders faults by direction, batch entry and head, row, kind and list.
TILEWISE_HOST_DEVICE inline unsigned long long fault_word(bool is_by_key, int64_t item, int list, int kind) {
  return static_cast<unsigned long long>(is_by_key ? 1 : 0) << 63 | static_cast<unsigned long long>(item) << 8 |
         static_cast<unsigned long long>(kind) << 4 | static_cast<unsigned long long>(list);
}

// What a fault word says of a row: the order in which a row is looked at.
enum RowFaultKind : int {
  kStatusFault = 1,   // the kernel that wrote the lists reports that they are not what was asked
  kRowSlots = 2,      // the row has no slot, more than `tile`, or passes the border of a pool
  kRange = 3,         // its runs lie outside of the list's arrays
  kStart = 4,         // a run starts outside of the axis
  kStop = 5,         // a run has no slot, or passes the end of the axis or of a pool
  kAscending = 6,    // a run starts before the end of the run ahead of it
  kGrain = 7,         // a run's length is no multiple of the grain
  kRowBits = 8,       // no slot of the row reads a run
  kPaddingSlot = 9,   // an untested run of by_query holds a padding slot
  kApart = 10,        // a run shares slots with a run of another list
};

constexpr int kValidateThreads = 128;

/// One list of the row, once its range is known to be sound.
struct CheckedRow {
  RowView runs;
  int grain = 1, words = 0;
  bool is_sound = false;

  TILEWISE_DEVICE int64_t stop_of(const AxisView& axis, int i) const {
    if (runs.stop != nullptr) return runs.stop[i];
    const int64_t stop = int64_t{runs.start[i]} + grain, end = axis.part_end(runs.start[i]);
    return stop < end ? stop : end;
  }
};

TILEWISE_DEVICE inline CheckedRow checked_row(const ValidateArgs& args, int list, int b, int head, int64_t row) {
  const RunListView& view = args.lists[list];
  CheckedRow checked;
  checked.runs = row_of(view, b, head, args.heads_q, args.rows.rows, row);
  checked.grain = view.grain;
  checked.words = view.words;
  checked.is_sound = checked.runs.count >= 0 && checked.runs.begin >= 0 && checked.runs.begin <= args.capacity[list] - checked.runs.count;
  return checked;
}

/// The kind of the first fault of run i of a list; 0: none.
TILEWISE_DEVICE inline int fault_of_run(const ValidateArgs& args, const CheckedRow& row, int list, int i, int b, int head, int64_t length) {
  const AxisView& axis = args.runs_axis;
  const int64_t start = row.runs.start[i];
  if (start < 0 || start >= axis.slots()) return kStart;
  const int64_t stop = row.stop_of(axis, i), end = axis.part_end(start);
  if (stop <= start || stop > end) return kStop;
  if (i > 0) {
    const int64_t before = row.runs.start[i - 1];
    if (start <= before || (before >= 0 && start < row.stop_of(axis, i - 1))) return kAscending;
  }
  if ((stop - start) % row.grain != 0 && stop != end) return kGrain;
  if (row.runs.rows != nullptr) {
    bool has_bit = false;
    for (int word = 0; word < row.words && word * 64 < length; ++word) {
      const int64_t bits = length - word * 64;
      const uint64_t all = bits >= 64 ? ~uint64_t{0} : (uint64_t{1} << bits) - 1;
      has_bit = has_bit || (row.runs.rows[int64_t{i} * row.words + word] & all) != 0;
    }
    if (!has_bit) return kRowBits;
  }
  if (args.is_by_query && list != 1 && axis.token != nullptr) {
    for (int64_t slot = start; slot < stop; ++slot) {
      if (!axis.is_real(b, head, args.heads_q, slot)) return kPaddingSlot;
    }
  }
  return 0;
}

/// Whether run i of one list is apart from the runs of another, which ascend.
TILEWISE_DEVICE inline bool is_apart(const AxisView& axis, const CheckedRow& row, int i, const CheckedRow& other) {
  const int64_t start = row.runs.start[i], stop = row.stop_of(axis, i);
  int low = 0, high = other.runs.count;
  while (low < high) {
    const int middle = (low + high) / 2;
    if (other.runs.start[middle] <= start)
      low = middle + 1;
    else
      high = middle;
  }
  return (low == 0 || other.stop_of(axis, low - 1) <= start) && (low == other.runs.count || other.runs.start[low] >= stop);
}

/// Block i looks at row i of [B, Hq, T]. Nothing is read that the row's own range does not allow.
template <class Block>
TILEWISE_DEVICE void validate_kernel(Block& block, const ValidateArgs& args) {
  const int64_t item = block.index(), row = item % args.rows.rows, of = item / args.rows.rows;
  const int b = static_cast<int>(of / args.heads_q), head = static_cast<int>(of % args.heads_q);
  const int64_t slots = args.rows_axis.slots(), first = args.rows.first(row), last = args.rows.last(row, slots);
  block.each([&](int thread) {
    const auto report = [&](int list, int kind) { block.min(args.fault, fault_word(!args.is_by_query, item, list, kind)); };
    if (thread == 0 && item == 0 && args.status != nullptr && args.status[1] != 0) report(0, kStatusFault);
    if (first < 0 || first >= last || last - first > args.rows.tile || last > slots || args.rows_axis.part_end(first) < last) {
      if (thread == 0) report(0, kRowSlots);
      return;
    }
    for (int list = 0; list < 3; ++list) {
      const CheckedRow checked = checked_row(args, list, b, head, row);
      if (!checked.is_sound) {
        if (thread == 0) report(list, kRange);
        continue;
      }
      for (int i = thread; i < checked.runs.count; i += block.threads()) {
        const int kind = fault_of_run(args, checked, list, i, b, head, last - first);
        if (kind != 0) {
          report(list, kind);
          continue;
        }
        for (int other = list + 1; other < 3; ++other) {
          const CheckedRow against = checked_row(args, other, b, head, row);
          if (against.is_sound && !is_apart(args.runs_axis, checked, i, against)) report(list, kApart);
        }
      }
    }
  });
}

}  // namespace tilewise::plan::cuda
