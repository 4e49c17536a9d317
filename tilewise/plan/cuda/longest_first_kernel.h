// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>

#include "tilewise/machine/cuda/block.h"
#include "tilewise/plan/cuda/run_list_view.h"

// The order in which a persistent kernel takes the rows of a plan: longest first, so that rows of any lengths end together. Two kernels, lengths, then
// a stable counting sort, or both in one where rows are few. An item is a row, or one of the parts that a tall row is cut into.
namespace tilewise::plan::cuda {

struct LongestFirstArgs {
  RunListView lists[3];
  int items, items_per_head, items_per_row, heads_q;
  int keys;  // where runs without a stop end at the latest
  int section;  // items that are sorted among themselves: those of heads whose K and V fit L2 together
  int bucket_keys;  // lengths that differ by less count as equal
  int32_t* length;  // [items] written: keys that the item's row reads
  int32_t* order;  // [items] written: item numbers (b * Hq + h) * items_per_head + i
  int32_t* counter;  // [2] set to 0, for the kernel that takes the items
};

constexpr int kLengthThreads = 256, kLanesAnItem = 8;
constexpr int kBuckets = 256, kSortThreads = 1024, kSortWarps = kSortThreads / 32;

inline long length_blocks(int items) { return (items + kLengthThreads / kLanesAnItem - 1) / (kLengthThreads / kLanesAnItem); }
constexpr unsigned long kLengthSharedBytes = kLengthThreads * sizeof(int);

/// Keys of every `lanes`-th run of an item's row from run `lane` on.
TILEWISE_DEVICE inline int keys_of_lane(const LongestFirstArgs& args, int item, int lane, int lanes) {
  const int of_batch = item / args.items_per_head, num_rows = args.items_per_head / args.items_per_row;
  const int row = item % args.items_per_head / args.items_per_row, batch = of_batch / args.heads_q, head = of_batch % args.heads_q;
  int keys = 0;
  for (const RunListView& list : args.lists) {
    const RowView runs = row_of(list, batch, head, args.heads_q, num_rows, row);
    for (int i = lane; i < runs.count; i += lanes) {
      const int start = runs.start[i], past = start + list.grain;
      keys += (runs.stop != nullptr ? runs.stop[i] : past < args.keys ? past : args.keys) - start;
    }
  }
  return keys;
}

template <class Block>
TILEWISE_DEVICE void row_lengths_kernel(Block& block, const LongestFirstArgs& args) {
  int* const partial = reinterpret_cast<int*>(block.shared());
  const int first = static_cast<int>(block.index()) * (kLengthThreads / kLanesAnItem);
  block.each([&](int thread) {
    if (block.index() == 0 && thread < 2) args.counter[thread] = 0;
    const int item = first + thread / kLanesAnItem, lane = thread % kLanesAnItem;
    partial[thread] = item < args.items ? keys_of_lane(args, item, lane, kLanesAnItem) : 0;
  });
  block.each([&](int thread) {
    if (thread >= kLengthThreads / kLanesAnItem || first + thread >= args.items) return;
    int keys = 0;
    for (int lane = 0; lane < kLanesAnItem; ++lane) keys += partial[thread * kLanesAnItem + lane];
    args.length[first + thread] = keys;
  });
}

struct SortParts {
  int* place;  // [kBuckets][kSortWarps]
  int *sums, *bucket;  // bucket: sums of what a thread has to place, between the walks
  machine::cuda::Match* match;

  TILEWISE_HOST_DEVICE explicit SortParts(machine::cuda::SharedParts& parts)
      : place(parts.take<int>(kBuckets * kSortWarps)),
        sums(parts.take<int>(machine::cuda::sums_ints(kSortThreads))),
        bucket(parts.take<int>(kSortThreads)),
        match(reinterpret_cast<machine::cuda::Match*>(parts.take<int>(2 * kSortThreads))) {}
};

inline unsigned long sort_shared_bytes() {
  machine::cuda::SharedParts parts(nullptr);
  SortParts{parts};
  return parts.bytes();
}

/// A block a section. Each warp has a stretch of the items, so that rows of one length keep their order: neighbours read the same keys.
template <class Block>
TILEWISE_DEVICE void longest_first_kernel(Block& block, const LongestFirstArgs& args) {
  machine::cuda::SharedParts parts(block.shared());
  const SortParts at(parts);
  const int first = static_cast<int>(block.index()) * args.section;
  const int items = args.section < args.items - first ? args.section : args.items - first;
  const int rounds = (items + kSortThreads - 1) / kSortThreads;  // of 32 items a warp
  block.each([&](int thread) {
    for (int i = thread; i < kBuckets * kSortWarps; i += kSortThreads) at.place[i] = 0;
  });
  // Moves each warp's part of each bucket on by its items, and with `order` puts each item in its place.
  const auto walk = [&](int32_t* order) {
    for (int round = 0; round < rounds; ++round) {
      const auto item_of = [&](int thread) { return (thread / 32 * rounds + round) * 32 + thread % 32; };
      block.each([&](int thread) {
        const int item = item_of(thread), bucket = item < items ? args.length[first + item] / args.bucket_keys : 0;
        at.bucket[thread] = item < items ? kBuckets - 1 - (bucket < kBuckets - 1 ? bucket : kBuckets - 1) : -1;
      });
      block.match(at.bucket, at.match);
      if (order != nullptr) {
        block.each([&](int thread) {
          if (at.bucket[thread] >= 0) order[at.place[at.bucket[thread] * kSortWarps + thread / 32] + at.match[thread].rank] = first + item_of(thread);
        });
      }
      block.each([&](int thread) {
        if (at.bucket[thread] >= 0 && at.match[thread].rank == 0) at.place[at.bucket[thread] * kSortWarps + thread / 32] += at.match[thread].count;
      });
    }
  };
  walk(nullptr);
  constexpr int kMine = kBuckets * kSortWarps / kSortThreads;
  block.each([&](int thread) {
    int sum = 0;
    for (int i = thread * kMine; i < (thread + 1) * kMine; ++i) sum += at.place[i];
    at.bucket[thread] = sum;
  });
  machine::cuda::exclusive_sums(block, at.bucket, at.sums);
  block.each([&](int thread) {
    int before = first + at.bucket[thread];
    for (int i = thread * kMine; i < (thread + 1) * kMine; ++i) {
      const int here = at.place[i];
      at.place[i] = before;
      before += here;
    }
  });
  walk(args.order);
}

/// Whether one block does both sooner than two launches: few rows of one section, and not many runs a row.
inline bool are_few(const LongestFirstArgs& args) { return args.items <= kSortThreads / 2 && args.section >= args.items && args.keys <= 4096; }

/// Lengths and order in one launch of one block.
template <class Block>
TILEWISE_DEVICE void order_few_kernel(Block& block, const LongestFirstArgs& args) {
  int* const partial = reinterpret_cast<int*>(block.shared());
  int lanes = kLanesAnItem;
  while (args.items * lanes > kSortThreads) lanes /= 2;
  block.each([&](int thread) {
    if (thread < 2) args.counter[thread] = 0;
    partial[thread] = thread / lanes < args.items ? keys_of_lane(args, thread / lanes, thread % lanes, lanes) : 0;
  });
  block.each([&](int thread) {
    if (thread >= args.items) return;
    int keys = 0;
    for (int lane = 0; lane < lanes; ++lane) keys += partial[thread * lanes + lane];
    args.length[thread] = keys;
  });
  longest_first_kernel(block, args);
}

}  // namespace tilewise::plan::cuda
