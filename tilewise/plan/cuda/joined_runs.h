// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>

#include "tilewise/machine/cuda/block.h"

// How a block of threads writes the runs of one row: cells along the row's other axis (tiles of keys, rows at hand), one a thread, each with pieces
// that are joined where they touch. Two passes over the same cells: count, then write where a scan over the rows has made room.
namespace tilewise::plan::cuda {

/// Slots [start, stop) that a row reads; neighbours of one list with equal bits become one run.
template <int kWords>
struct Piece {
  int32_t start = 0, stop = 0;
  int list = 0;  // 0: whole, 1: masked
  uint64_t bits[kWords > 0 ? kWords : 1] = {};  // slots of the row that read it; none with kWords = 0: all do
};

template <int kWords>
TILEWISE_HOST_DEVICE bool have_equal_bits(const uint64_t* a, const uint64_t* b) {
  bool is_equal = true;
  for (int word = 0; word < kWords; ++word) is_equal = is_equal && a[word] == b[word];
  return is_equal;
}

/// Where the runs of the row go; `rows` may be null.
struct RowSink {
  int32_t *start[2], *stop[2];
  uint64_t* rows;  // of masked runs
  int words;       // a run

  // Told apart by a condition, not an index: an array that is indexed by what is known at run time would not stay in registers.
  template <int kWords>
  TILEWISE_DEVICE void begin(int run, const Piece<kWords>& piece) const {
    (piece.list == 0 ? start[0] : start[1])[run] = piece.start;
    if (piece.list == 0 || rows == nullptr) return;
    TILEWISE_UNROLL for (int word = 0; word < kWords; ++word) {
      if (word < words) rows[static_cast<int64_t>(run) * words + word] = piece.bits[word];
    }
  }
  TILEWISE_DEVICE void end(int list, int run, int32_t at) const { (list == 0 ? stop[0] : stop[1])[run] = at; }
};

struct RunCounts {
  int of[2];
};

/// Shared memory of joined_runs().
template <int kWords>
struct JoinedParts {
  uint64_t *head_bits, *tail_bits;  // [threads][kWords], [threads + 1][kWords]
  int *head, *tail;  // list of the piece that begins where the cell does, that ends where it does; -1: none. tail[t + 1] is thread t's
  int *tail_stop, *joins;
  int *count[2], *sums;

  TILEWISE_HOST_DEVICE JoinedParts(machine::cuda::SharedParts& parts, int threads) {
    head_bits = parts.take<uint64_t>(long{threads} * kWords);
    tail_bits = parts.take<uint64_t>((long{threads} + 1) * kWords);
    head = parts.take<int>(threads);
    tail = parts.take<int>(threads + 1);
    tail_stop = parts.take<int>(threads + 1);
    joins = parts.take<int>(threads);
    for (int*& list : count) list = parts.take<int>(threads);
    sums = parts.take<int>(machine::cuda::sums_ints(threads));
  }
};

/// visit(cell, take) calls take(piece, is_first, is_last) for the pieces of a cell, ascending: is_first, where the piece begins at the cell's
/// first slot and may be one run with the cell before; is_last, where it ends at its last one. `sink` null: only counts.
template <int kWords, class Block, class Visit>
TILEWISE_DEVICE RunCounts joined_runs(Block& block, const JoinedParts<kWords>& at, int cells, const Visit& visit, const RowSink* sink) {
  const int threads = block.threads();
  RunCounts done = {{0, 0}};
  block.each([&](int thread) {
    if (thread == 0) at.tail[0] = -1;
  });
  for (int first = 0; first < cells; first += threads) {
    block.each([&](int thread) {
      int head = -1, tail = -1, tail_stop = 0, counts[2] = {0, 0};
      if (first + thread < cells) {
        visit(first + thread, [&](const Piece<kWords>& piece, bool is_first, bool is_last) {
          counts[0] += piece.list == 0 ? 1 : 0;
          counts[1] += piece.list == 0 ? 0 : 1;
          if (is_first) head = piece.list;
          if (is_last) {
            tail = piece.list;
            tail_stop = piece.stop;
          }
          TILEWISE_UNROLL for (int word = 0; word < kWords; ++word) {
            if (is_first) at.head_bits[thread * kWords + word] = piece.bits[word];
            if (is_last) at.tail_bits[(thread + 1) * kWords + word] = piece.bits[word];
          }
        });
      }
      at.head[thread] = head;
      at.tail[thread + 1] = tail;
      at.tail_stop[thread + 1] = tail_stop;
      at.count[0][thread] = counts[0];
      at.count[1][thread] = counts[1];
    });
    block.each([&](int thread) {
      const int head = at.head[thread];
      const bool joins =
          head >= 0 && head == at.tail[thread] && have_equal_bits<kWords>(&at.head_bits[thread * kWords], &at.tail_bits[thread * kWords]);
      at.joins[thread] = joins ? 1 : 0;
      if (joins) --(head == 0 ? at.count[0] : at.count[1])[thread];
    });
    const int begun[2] = {machine::cuda::exclusive_sums(block, at.count[0], at.sums), machine::cuda::exclusive_sums(block, at.count[1], at.sums)};
    if (sink != nullptr) {
      block.each([&](int thread) {
        // The run that the cells before left open ends there, unless it goes on here.
        if (thread == 0 && at.tail[0] >= 0 && at.joins[0] == 0)
          sink->end(at.tail[0], (at.tail[0] == 0 ? done.of[0] : done.of[1]) - 1, at.tail_stop[0]);
        if (first + thread >= cells) return;
        int next_whole = done.of[0] + at.count[0][thread], next_masked = done.of[1] + at.count[1][thread];
        visit(first + thread, [&](const Piece<kWords>& piece, bool is_first, bool is_last) {
          const bool goes_on = is_first && at.joins[thread] != 0;
          int& next = piece.list == 0 ? next_whole : next_masked;
          const int run = goes_on ? next - 1 : next;
          if (!goes_on) {
            ++next;
            sink->template begin<kWords>(run, piece);
          }
          const bool is_open = is_last && (thread + 1 == threads || at.joins[thread + 1] != 0);
          if (!is_open) sink->end(piece.list, run, piece.stop);
        });
      });
    }
    done.of[0] += begun[0];
    done.of[1] += begun[1];
    block.each([&](int thread) {
      if (thread != 0) return;
      at.tail[0] = at.tail[threads];
      at.tail_stop[0] = at.tail_stop[threads];
      for (int word = 0; word < kWords; ++word) at.tail_bits[word] = at.tail_bits[threads * kWords + word];
    });
  }
  if (sink != nullptr) {
    block.each([&](int thread) {
      if (thread == 0 && at.tail[0] >= 0) sink->end(at.tail[0], (at.tail[0] == 0 ? done.of[0] : done.of[1]) - 1, at.tail_stop[0]);
    });
  }
  return done;
}

}  // namespace tilewise::plan::cuda
