// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>

#include "tilewise/machine/cuda/block.h"

// Makes room for the rows of a list that a kernel has counted: one block.
namespace tilewise::plan::cuda {

/// What status[1] of lists says, whose kernel could not write what was asked.
enum ListsFault : int32_t {
  kNoFault = 0,
  kOverCapacity = 1,  // rows from some row on are empty: the lists have too little room
  kNeedsRows = 2,     // a run that only some slots of its row read, in lists without room for `rows`
};

struct PlaceRowsArgs {
  static constexpr int kLists = 3;
  int64_t rows;         // of all heads and batch entries
  int32_t* count[kLists];  // [rows] whole, masked, picked or null: as counted; as written, where the room ends
  int64_t* begin[kLists];  // [rows] written
  int64_t capacity[kLists];
  int32_t* status;      // [2] written: rows that outgrew the room, and a ListsFault
  int64_t* cut;         // written: the first of these rows, `rows` if there is none
  const int32_t* needs_rows;  // not null and not 0: kNeedsRows
  // What becomes of rows past the room: each one masked run that covers it (kept free for it), or none, which is a fault.
  bool covers;
};

constexpr int kPlaceRowsThreads = 512;

struct PlaceRowsParts {
  int *sum[PlaceRowsArgs::kLists], *sums, *outgrew;
  unsigned long long* cut;

  TILEWISE_HOST_DEVICE PlaceRowsParts(machine::cuda::SharedParts& parts, int threads) {
    cut = parts.take<unsigned long long>(1);
    for (int*& list : sum) list = parts.take<int>(threads);
    sums = parts.take<int>(machine::cuda::sums_ints(threads));
    outgrew = parts.take<int>(1);
  }
};

inline unsigned long place_rows_shared_bytes() {
  machine::cuda::SharedParts parts(nullptr);
  PlaceRowsParts(parts, kPlaceRowsThreads);
  return parts.bytes();
}

template <class Block>
TILEWISE_DEVICE void place_rows_kernel(Block& block, const PlaceRowsArgs& args) {
  machine::cuda::SharedParts parts(block.shared());
  const PlaceRowsParts at(parts, block.threads());
  const int64_t rows = args.rows, threads = block.threads();
  block.each([&](int thread) {
    if (thread != 0) return;
    *at.cut = static_cast<unsigned long long>(rows);
    *at.outgrew = 0;
  });
  constexpr int kLists = PlaceRowsArgs::kLists;
  const int lists = args.count[2] != nullptr ? 3 : 2;
  int64_t done[kLists] = {0, 0, 0};
  for (int64_t first = 0; first < rows; first += threads) {
    block.each([&](int thread) {
      for (int list = 0; list < lists; ++list) at.sum[list][thread] = first + thread < rows ? args.count[list][first + thread] : 0;
    });
    int here[kLists];
    TILEWISE_UNROLL for (int list = 0; list < kLists; ++list) here[list] =
        list < lists ? machine::cuda::exclusive_sums(block, at.sum[list], at.sums) : 0;
    block.each([&](int thread) {
      const int64_t row = first + thread;
      if (row >= rows) return;
      bool fits = true;
      TILEWISE_UNROLL for (int list = 0; list < kLists; ++list) {
        if (list >= lists) continue;
        const int64_t begin = done[list] + at.sum[list][thread];
        args.begin[list][row] = begin;
        const int64_t kept_free = args.covers && list == 1 ? rows - 1 - row : 0;
        fits = fits && begin + args.count[list][row] + kept_free <= args.capacity[list];
      }
      if (!fits) block.min(at.cut, static_cast<unsigned long long>(row));
    });
    TILEWISE_UNROLL for (int list = 0; list < kLists; ++list) done[list] += here[list];
  }
  const auto cut = static_cast<int64_t>(block.get(*at.cut));
  // A block's threads see what its other threads wrote to global memory behind a barrier.
  int64_t room[kLists];
  TILEWISE_UNROLL for (int list = 0; list < kLists; ++list) room[list] = list < lists && cut < rows ? args.begin[list][cut] : 0;
  block.each([](int) {});
  for (int64_t first = cut; first < rows; first += threads) {
    block.each([&](int thread) {
      const int64_t row = first + thread;
      if (row >= rows) return;
      const int count = args.count[0][row] + args.count[1][row] + (lists == 3 ? args.count[2][row] : 0);
      if (count > 0) block.add(at.outgrew, 1);
      args.count[0][row] = 0;
      args.begin[0][row] = room[0];
      args.count[1][row] = args.covers && count > 0 ? 1 : 0;
      args.begin[1][row] = args.covers ? room[1] + (row - cut) : room[1];
      if (lists < 3) return;
      args.count[2][row] = 0;
      args.begin[2][row] = room[2];
    });
  }
  const int outgrew = block.get(*at.outgrew);
  block.each([&](int thread) {
    if (thread != 0) return;
    *args.cut = cut;
    args.status[0] = outgrew;
    const bool needs_rows = args.needs_rows != nullptr && *args.needs_rows != 0;
    args.status[1] = needs_rows ? kNeedsRows : outgrew > 0 && !args.covers ? kOverCapacity : kNoFault;
  });
}

}  // namespace tilewise::plan::cuda
