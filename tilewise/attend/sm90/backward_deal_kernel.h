// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "tilewise/attend/sm90/backward_steps_args.h"

// Second part of the backward's order of work: items, sorted and dealt out to the thread blocks by a clock of steps.
namespace tilewise::attend::sm90 {

constexpr int kLengths = 9;          // coarse ones, 0 to 8 eighths of the longest item
constexpr int32_t kItemCost = 2;     // steps that the beginning and the end of an item take

TILEWISE_DEVICE inline int item_batch(const StepsArgs& args, int64_t item) {
  return static_cast<int>(item / (int64_t{args.heads_kv} * args.key_tiles));
}
TILEWISE_DEVICE inline int item_head(const StepsArgs& args, int64_t item) { return static_cast<int>(item / args.key_tiles % args.heads_kv); }
TILEWISE_DEVICE inline int item_key_tile(const StepsArgs& args, int64_t item) { return static_cast<int>(item % args.key_tiles); }

struct SortItemsParts {
  int *count, *sums, *longest;  // count: [kLengths][kSortItemsThreads]

  TILEWISE_HOST_DEVICE explicit SortItemsParts(machine::cuda::SharedParts& parts)
      : count(parts.take<int>(long{kLengths} * kSortItemsThreads)),
        sums(parts.take<int>(machine::cuda::sums_ints(kSortItemsThreads))),
        longest(parts.take<int>(1)) {}
};
inline unsigned long sort_items_shared_bytes() {
  machine::cuda::SharedParts parts(nullptr);
  SortItemsParts{parts};
  return parts.bytes();
}
inline long sort_items_blocks(const StepsArgs& args) { return (long{args.batch} * args.heads_kv + args.section - 1) / args.section; }

/// A block a section of heads: the longest items first, by coarse lengths, so that items whose keys are neighbours meet the same queries at about the same time,
/// which then lie in L2.
template <class Block>
TILEWISE_DEVICE void sort_items_kernel(Block& block, const StepsArgs& args) {
  machine::cuda::SharedParts parts(block.shared());
  const SortItemsParts at(parts);
  const int group = args.heads_q / args.heads_kv, heads = args.batch * args.heads_kv;
  const int first_head = static_cast<int>(block.index()) * args.section;
  const int64_t first = int64_t{first_head} * args.key_tiles;
  const int items = (args.section < heads - first_head ? args.section : heads - first_head) * args.key_tiles;
  const int mine = (items + kSortItemsThreads - 1) / kSortItemsThreads;
  block.each([&](int thread) {
    if (thread == 0) *at.longest = 0;
    for (int length = 0; length < kLengths; ++length) at.count[length * kSortItemsThreads + thread] = 0;
  });
  block.each([&](int thread) {
    int longest = 0;
    for (int i = thread; i < items; i += kSortItemsThreads) {
      const int64_t item = first + i;
      int steps = 0;
      for (int member = 0; member < group; ++member) {
        const int64_t reader = args.reader_of(item_batch(args, item), item_head(args, item) * group + member);
        steps += args.list[reader * args.key_tiles + item_key_tile(args, item)].count;
      }
      args.item_steps[item] = steps;
      longest = steps > longest ? steps : longest;
    }
    if (longest > 0) block.max(at.longest, longest);
  });
  const int unit = block.get(*at.longest) / 8 + 1;
  block.each([&](int thread) {
    for (int i = thread * mine; i < (thread + 1) * mine && i < items; ++i) {
      const int length = kLengths - 1 - (args.item_steps[first + i] + unit / 2) / unit;
      args.bucket[first + i] = length;
      ++at.count[length * kSortItemsThreads + thread];
    }
  });
  int before = 0;
  for (int length = 0; length < kLengths; ++length) {
    int* const counts = at.count + length * kSortItemsThreads;
    const int all = machine::cuda::exclusive_sums(block, counts, at.sums);
    block.each([&](int thread) { counts[thread] += before; });
    before += all;
  }
  block.each([&](int thread) {
    for (int i = thread * mine; i < (thread + 1) * mine && i < items; ++i) {
      args.sorted[first + at.count[args.bucket[first + i] * kSortItemsThreads + thread]++] = static_cast<int32_t>(first + i);
    }
  });
}

struct DealParts {
  int64_t* steps;  // of each thread block so far; then steps before it
  int *free, *block;  // when a thread block is free; thread blocks in the order in which they are
  int *items, *first;
  int *length, *end;  // of the next items
  int* cut;

  TILEWISE_HOST_DEVICE explicit DealParts(machine::cuda::SharedParts& parts)
      : steps(parts.take<int64_t>(kDealThreads + 1)),
        free(parts.take<int>(kDealThreads)),
        block(parts.take<int>(kDealThreads)),
        items(parts.take<int>(kDealThreads)),
        first(parts.take<int>(kDealThreads + 1)),
        length(parts.take<int>(kDealThreads)),
        end(parts.take<int>(kDealThreads)),
        cut(parts.take<int>(1)) {}
};
inline unsigned long deal_shared_bytes() {
  machine::cuda::SharedParts parts(nullptr);
  DealParts{parts};
  return parts.bytes();
}

/// One block. Each item goes to the thread block that is free first; many at once, as long as none of those that were given one would be free again before.
template <class Block>
TILEWISE_DEVICE void deal_kernel(Block& block, const StepsArgs& args) {
  machine::cuda::SharedParts parts(block.shared());
  const DealParts at(parts);
  const int blocks = args.thread_blocks;
  const auto num_items = static_cast<int>(args.num_items());
  block.each([&](int thread) {
    at.free[thread] = at.items[thread] = 0;
    at.steps[thread] = 0;
    if (thread == 0) *at.cut = kDealThreads;
  });
  for (int next = 0; next < num_items;) {
    const int most = blocks < num_items - next ? blocks : num_items - next;
    block.each([&](int thread) {
      if (thread >= blocks) return;
      int before = 0;
      for (int other = 0; other < blocks; ++other) {
        before += at.free[other] < at.free[thread] || (at.free[other] == at.free[thread] && other < thread) ? 1 : 0;
      }
      at.block[before] = thread;
      at.length[thread] = thread < most ? args.item_steps[args.sorted[next + thread]] : 0;
    });
    block.each([&](int thread) {
      if (thread < most) at.end[thread] = at.free[at.block[thread]] + at.length[thread] + kItemCost;
    });
    block.each([&](int thread) {
      if (thread >= most) return;
      const int mine = at.block[thread], free = at.free[mine];
      bool is_next = true;
      for (int other = 0; other < thread; ++other) is_next = is_next && (free < at.end[other] || (free == at.end[other] && mine < at.block[other]));
      if (!is_next) block.min(at.cut, thread);
    });
    const int cut = block.get(*at.cut), given = cut < most ? cut : most;
    block.each([&](int thread) {
      if (thread >= given) return;
      const int mine = at.block[thread];
      args.dealt[next + thread] = {mine, at.items[mine]++, at.free[mine], at.steps[mine]};
      at.steps[mine] += at.length[thread];
      at.free[mine] = at.end[thread];
    });
    block.each([&](int thread) {
      if (thread == 0) *at.cut = kDealThreads;
    });
    next += given;
  }
  block.each([&](int thread) {
    if (thread != 0) return;
    int items = 0;
    int64_t steps = 0;
    for (int i = 0; i < blocks; ++i) {
      const int64_t here = at.steps[i];
      at.first[i] = items;
      at.steps[i] = steps;
      items += at.items[i];
      steps += here;
    }
    at.first[blocks] = items;
    args.status[kSteps] = static_cast<unsigned long long>(steps);
    if (steps > args.room.steps) args.status[kStepsOutgrown] = 1u;
    // Without room nothing is done.
    *at.cut = args.status[kPatternsOutgrown] == 0 && steps <= args.room.steps ? 1 : 0;
  });
  const bool has_room = block.get(*at.cut) != 0;
  block.each([&](int thread) {
    const int group = args.heads_q / args.heads_kv;
    for (int i = thread; i <= blocks; i += kDealThreads) args.first_item[i] = has_room ? at.first[i] : 0;
    for (int i = thread; i < num_items; i += kDealThreads) {
      const DealtItem dealt = args.dealt[i];
      const int64_t item = args.sorted[i];
      BackwardItem made{.batch = item_batch(args, item),
                        .head_kv = item_head(args, item),
                        .key_tile = item_key_tile(args, item),
                        .steps = args.item_steps[item],
                        .first_step = at.steps[dealt.block] + dealt.steps_before,
                        .live = {0, 0}};
      for (int member = 0; member < group; ++member) {
        const int64_t list = args.reader_of(made.batch, made.head_kv * group + member) * args.key_tiles + made.key_tile;
        TILEWISE_UNROLL for (int word = 0; word < 2; ++word) {
          made.live[word] |= args.live[list * 4 + 2 * word] | static_cast<uint64_t>(args.live[list * 4 + 2 * word + 1]) << 32;
        }
      }
      TILEWISE_UNROLL for (int word = 0; word < 2; ++word) {  // keys past the end count as read
        const int64_t past = args.slots_k - int64_t{made.key_tile} * kKeyTile - word * 64;
        if (past < 64) made.live[word] |= ~uint64_t{0} << (past < 0 ? 0 : past);
      }
      const int to = at.first[dealt.block] + dealt.number;
      args.items[to] = made;
      args.start_of[to] = dealt.start;
    }
  });
}

}  // namespace tilewise::attend::sm90
