// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>

#include "tilewise/plan/cuda/axis_view.h"
#include "tilewise/plan/cuda/joined_runs.h"
#include "tilewise/plan/cuda/run_list_view.h"

// complete() on a GPU: a block for each row to be made. Each thread looks up what a row at hand reads of it. Host and device make the same lists
// (plan/complete.cpp); what the host finds by a sweep is found by search here.
namespace tilewise::plan::cuda {

struct CompleteArgs {
  RunListView lists[3];  // at hand: whole, masked, picked
  AxisView from, to;     // of the rows at hand, of those to be made
  RowsView from_rows, to_rows;
  bool is_by_query;      // the lists at hand are by_query
  int batch, groups, heads_q;
  // Written. Lists without `rows` take none.
  int32_t* count[2];     // [batch, groups, T]
  int32_t* needs_rows;   // 1 where a run that only some slots of its row read has no place
  int64_t* begin[2];     // read by the second pass
  int32_t *start[2], *stop[2];
  uint64_t* rows;
  int words;
};

constexpr int kCompleteThreads = 128;

/// Bits [first, last) of a row of up to 64 * kWords slots, ORed to `bits`.
template <int kWords>
TILEWISE_DEVICE void set_bits(uint64_t* bits, int64_t first, int64_t last) {
  TILEWISE_UNROLL for (int word = 0; word < kWords; ++word) {
    const int64_t low = first > word * 64 ? first - word * 64 : 0, high = last < word * 64 + 64 ? last - word * 64 : 64;
    if (low >= high) continue;
    bits[word] |= (high == 64 ? ~uint64_t{0} : (uint64_t{1} << high) - 1) & ~((uint64_t{1} << low) - 1);
  }
}

/// The row to be made, for one head that reads the lists.
template <int kWords>
class NewRow {
 public:
  /// `padding`: bits of the row's slots that hold nothing.
  TILEWISE_DEVICE NewRow(const CompleteArgs& args, int b, int head, int64_t row, const uint64_t* padding)
      : args_(args),
        b_(b),
        head_(head),
        first_(args.to_rows.first(row)),
        last_(args.to_rows.last(row, args.to.slots())),
        from_slots_(args.from.slots()),
        padding_(padding) {
    set_bits<kWords>(all_, 0, last_ - first_);
  }

  /// What row r at hand reads of it: take(piece, is_first, is_last), ascending.
  template <class Take>
  TILEWISE_DEVICE void visit(int64_t r, const Take& take) const {
    Cell cell;
    if (!read(r, cell)) return;
    const int64_t from_first = args_.from_rows.first(r), from_last = args_.from_rows.last(r, from_slots_);
    // No run passes the border of a pool.
    const bool may_join = args_.is_by_query || from_first == 0 || args_.from.part_of(from_first - 1) == args_.from.part_of(from_first);
    if (cell.is_alike) {
      take(piece_of(from_first, from_last, cell.bits, cell.is_tested), may_join, true);
      return;
    }
    Piece<kWords> open;  // the piece that neighbouring slots make so far; empty: none
    for (int64_t slot = from_first; slot < from_last; ++slot) {
      uint64_t bits[kWords] = {};
      read_slot(cell, slot, slot - from_first, bits);
      bool has_bit = false;
      TILEWISE_UNROLL for (int word = 0; word < kWords; ++word) has_bit = has_bit || bits[word] != 0;
      const Piece<kWords> next = piece_of(slot, slot + 1, bits, cell.is_tested);
      if (has_bit && open.stop == slot && open.start < open.stop && open.list == next.list && have_equal_bits<kWords>(open.bits, next.bits)) {
        ++open.stop;
        continue;
      }
      if (open.start < open.stop) take(open, may_join && open.start == from_first, false);
      open = has_bit ? next : Piece<kWords>{};
    }
    if (open.start < open.stop) take(open, may_join && open.start == from_first, open.stop == from_last);
  }

  /// Whether a masked piece names only some of the row's slots.
  TILEWISE_DEVICE bool is_partial(const Piece<kWords>& piece) const { return !have_equal_bits<kWords>(piece.bits, all_); }

 private:
  /// The runs of a row at hand that meet the new row.
  struct Cell {
    RowView lists[3];
    int from[3] = {}, to[3] = {};  // of each list
    bool is_tested = false, is_alike = true;
    uint64_t bits[kWords] = {};    // where all slots of the row at hand read alike
  };

  TILEWISE_DEVICE int64_t stop_of(const RowView& runs, int list, int i) const {
    if (runs.stop != nullptr) return runs.stop[i];
    const int64_t start = runs.start[i], stop = start + args_.lists[list].grain, end = args_.to.part_end(start);
    return stop < end ? stop : end;
  }

  TILEWISE_DEVICE bool read(int64_t r, Cell& cell) const {
    bool has_any = false;
    TILEWISE_UNROLL for (int list = 0; list < 3; ++list) {
      const RowView runs = row_of(args_.lists[list], b_, head_, args_.heads_q, args_.from_rows.rows, r);
      cell.lists[list] = runs;
      int low = 0, high = runs.count;  // the first run that begins behind the new row's first slot
      while (low < high) {
        const int middle = (low + high) / 2;
        if (runs.start[middle] <= first_)
          low = middle + 1;
        else
          high = middle;
      }
      int i = low > 0 && stop_of(runs, list, low - 1) > first_ ? low - 1 : low;
      cell.from[list] = i;
      for (; i < runs.count && runs.start[i] < last_; ++i) {
        has_any = true;
        cell.is_tested = cell.is_tested || list == 1;
        cell.is_alike = cell.is_alike && runs.rows == nullptr;
        set_bits<kWords>(cell.bits, runs.start[i] - first_, stop_of(runs, list, i) - first_);
      }
      cell.to[list] = i;
    }
    // A key's padding slot has nothing to be read.
    if (has_any && !args_.is_by_query && args_.from.token != nullptr) {
      const int64_t last = args_.from_rows.last(r, from_slots_);
      for (int64_t slot = args_.from_rows.first(r); slot < last && cell.is_alike; ++slot)
        cell.is_alike = args_.from.is_real(b_, head_, args_.heads_q, slot);
    }
    return has_any;
  }

  /// Slots of the new row that a slot of the row at hand reads.
  TILEWISE_DEVICE void read_slot(const Cell& cell, int64_t slot, int64_t bit, uint64_t* bits) const {
    if (!args_.is_by_query && !args_.from.is_real(b_, head_, args_.heads_q, slot)) return;
    TILEWISE_UNROLL for (int list = 0; list < 3; ++list) {
      const RowView& runs = cell.lists[list];
      const int words = args_.lists[list].words;
      for (int i = cell.from[list]; i < cell.to[list]; ++i) {
        if (runs.rows != nullptr && ((runs.rows[static_cast<int64_t>(i) * words + bit / 64] >> (bit % 64)) & 1) == 0) continue;
        set_bits<kWords>(bits, runs.start[i] - first_, stop_of(runs, list, i) - first_);
      }
    }
  }

  /// `bits` may reach past the row.
  TILEWISE_DEVICE Piece<kWords> piece_of(int64_t start, int64_t stop, const uint64_t* bits, bool is_tested) const {
    Piece<kWords> piece;
    piece.start = static_cast<int32_t>(start);
    piece.stop = static_cast<int32_t>(stop);
    bool is_full = true;  // every slot that holds something
    TILEWISE_UNROLL for (int word = 0; word < kWords; ++word) is_full = is_full && ((bits[word] | padding_[word]) & all_[word]) == all_[word];
    piece.list = is_full && !is_tested ? 0 : 1;
    TILEWISE_UNROLL for (int word = 0; word < kWords; ++word) piece.bits[word] = is_full ? all_[word] : bits[word] & all_[word];
    return piece;
  }

  const CompleteArgs& args_;
  const int b_, head_;
  const int64_t first_, last_, from_slots_;
  const uint64_t* const padding_;
  uint64_t all_[kWords] = {};
};

template <int kWords>
struct CompleteParts {
  JoinedParts<kWords> joined;
  unsigned int* padding;  // [2 * kWords]

  TILEWISE_HOST_DEVICE CompleteParts(machine::cuda::SharedParts& parts, int threads)
      : joined(parts, threads), padding(parts.take<unsigned int>(2 * kWords)) {}
};

template <int kWords>
unsigned long complete_shared_bytes() {
  machine::cuda::SharedParts parts(nullptr);
  CompleteParts<kWords>(parts, kCompleteThreads);
  return parts.bytes();
}

/// Block i makes row i of [batch, groups, T]: first counts runs, then, with begin made from the counts, writes them.
template <int kWords, class Block>
TILEWISE_DEVICE void complete_kernel(Block& block, const CompleteArgs& args, bool writes) {
  machine::cuda::SharedParts parts(block.shared());
  const CompleteParts<kWords> at(parts, block.threads());
  const int64_t item = block.index(), row = item % args.to_rows.rows, of = item / args.to_rows.rows;
  const int b = static_cast<int>(of / args.groups), group = static_cast<int>(of % args.groups);
  const int head = static_cast<int>((static_cast<int64_t>(group) * args.heads_q + args.groups - 1) / args.groups);
  const int64_t first = args.to_rows.first(row), last = args.to_rows.last(row, args.to.slots());
  block.each([&](int thread) {
    for (int word = thread; word < 2 * kWords; word += block.threads()) {
      unsigned int bits = 0;
      for (int bit = 0; bit < 32 && args.to.token != nullptr; ++bit) {
        const int64_t slot = first + word * 32 + bit;
        if (slot < last && !args.to.is_real(b, head, args.heads_q, slot)) bits |= 1u << bit;
      }
      at.padding[word] = bits;
    }
  });
  uint64_t padding[kWords];
  TILEWISE_UNROLL for (int word = 0; word < kWords; ++word) padding[word] = at.padding[2 * word] | static_cast<uint64_t>(at.padding[2 * word + 1])
                                                                                                       << 32;
  const NewRow<kWords> made(args, b, head, row, padding);
  const auto visit = [&](int cell, const auto& take) { made.visit(cell, take); };
  const auto cells = static_cast<int>(args.from_rows.rows);
  if (!writes) {
    const RunCounts counts = joined_runs<kWords>(block, at.joined, cells, visit, nullptr);
    if (args.rows == nullptr) {
      block.each([&](int thread) {
        bool needs = false;
        for (int cell = thread; cell < cells; cell += block.threads()) {
          made.visit(cell, [&](const Piece<kWords>& piece, bool, bool) { needs = needs || (piece.list == 1 && made.is_partial(piece)); });
        }
        if (needs) block.max(args.needs_rows, 1);
      });
    }
    block.each([&](int thread) {
      for (int list = 0; list < 2 && thread == 0; ++list) args.count[list][item] = counts.of[list];
    });
    return;
  }
  // Rows that the capacity had no room for count no run.
  if (args.count[0][item] + args.count[1][item] == 0) return;
  RowSink sink;
  for (int list = 0; list < 2; ++list) {
    sink.start[list] = args.start[list] + args.begin[list][item];
    sink.stop[list] = args.stop[list] + args.begin[list][item];
  }
  sink.words = args.words;
  sink.rows = args.rows == nullptr ? nullptr : args.rows + args.begin[1][item] * args.words;
  joined_runs<kWords>(block, at.joined, cells, visit, &sink);
}

}  // namespace tilewise::plan::cuda
