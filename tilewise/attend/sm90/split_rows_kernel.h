// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "tilewise/attend/sm90/split_rows.h"
#include "tilewise/machine/cuda/block.h"

namespace tilewise::attend::sm90 {

struct SplitShared {
  int *stages, *begin, *bound, *count, *slot, *sums;

  TILEWISE_HOST_DEVICE explicit SplitShared(machine::cuda::SharedParts& parts)
      : stages(parts.take<int>(kSplitThreads)),
        begin(parts.take<int>(kSplitThreads)),
        bound(parts.take<int>(kSplitThreads)),
        count(parts.take<int>(kSplitThreads)),
        slot(parts.take<int>(kSplitThreads)),
        sums(parts.take<int>(machine::cuda::sums_ints(kSplitThreads))) {}
};

inline unsigned long split_shared_bytes() {
  machine::cuda::SharedParts parts(nullptr);
  SplitShared{parts};
  return parts.bytes();
}

/// The last of sorted[0 .. count) that is not above `value`; sorted[0] is not.
TILEWISE_DEVICE inline int last_not_above(const int* sorted, int count, int value) {
  int low = 0, high = count;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (sorted[middle] <= value ? low : high) = middle;
  }
  return low;
}

/// Where keys [from, to) of a row lie in its runs.
TILEWISE_DEVICE inline void find_runs(const SplitArgs& args, int from, int to, RowPart& part) {
  const int of_batch = part.item / args.items_per_head, row = part.item % args.items_per_head;
  const auto runs_of = [&](const plan::cuda::RunListView& list) {
    return plan::cuda::row_of(list, of_batch / args.heads_q, of_batch % args.heads_q, args.heads_q, args.items_per_head, row);
  };
  const plan::cuda::RowView masked = runs_of(args.lists[0]), whole = runs_of(args.lists[1]);
  const auto keys_of = [&](int i) {
    const bool is_masked = i < masked.count;
    const plan::cuda::RowView& runs = is_masked ? masked : whole;
    const int at = is_masked ? i : i - masked.count, start = runs.start[at], past = start + args.lists[is_masked ? 0 : 1].grain;
    return (runs.stop != nullptr ? runs.stop[at] : past < args.keys ? past : args.keys) - start;
  };
  int run = 0, before = 0, keys = keys_of(0);
  while (before + keys <= from) {
    before += keys;
    keys = keys_of(++run);
  }
  part.first_run = run;
  part.skip = from - before;
  while (before + keys < to) {
    before += keys;
    keys = keys_of(++run);
  }
  part.num_runs = run + 1 - part.first_run;
  part.cut = before + keys - to;
}

/// One block, once the order of work stands.
template <class Block>
TILEWISE_DEVICE void split_rows_kernel(Block& block, const SplitArgs& args) {
  machine::cuda::SharedParts memory(block.shared());
  const SplitShared at(memory);
  const int rows = tail_rows(args.items, args.blocks), first = args.items - rows;
  block.each([&](int thread) {
    // A row without a key is a stage, too: its queries get zeros.
    const int keys = thread < rows ? args.length[args.order[first + thread]] : 0, stages = keys == 0 ? 1 : (keys + kStageKeys - 1) / kStageKeys;
    at.stages[thread] = at.begin[thread] = at.count[thread] = thread < rows ? stages : 0;
    for (int i = thread; i < most_parts(args.items, args.blocks) * kSplitWarps; i += kSplitThreads) args.arrived[i] = 0;
  });
  const int top = machine::cuda::folded<int>(block, at.count, [](int a, int b) { return a > b ? a : b; });
  const int stages = machine::cuda::exclusive_sums(block, at.begin, at.sums);
  const int shares = shares_of(stages, top, args.blocks);
  if (shares == 0) {
    block.each([&](int thread) {
      if (thread < 2) args.ends[thread] = args.items;
    });
    return;
  }
  // Equal stretches; an end that leaves less than the least of a row goes to the row's own end.
  block.each([&](int thread) {
    if (thread > shares) return;
    const auto even = static_cast<int>(static_cast<long long>(stages) * thread / shares);
    int bound = even;
    if (thread > 0 && thread < shares) {
      const int row = last_not_above(at.begin, rows, even), past = at.begin[row] + at.stages[row];
      if (even - at.begin[row] < kLeastStages) {
        bound = at.begin[row];
      } else if (past - even < kLeastStages) {
        bound = past;
      }
    }
    at.bound[thread] = bound;
  });
  const auto first_share = [&](int row) { return last_not_above(at.bound, shares, at.begin[row]); };
  const auto last_share = [&](int row) { return last_not_above(at.bound, shares, at.begin[row] + at.stages[row] - 1); };
  const auto first_row = [&](int share) { return last_not_above(at.begin, rows, at.bound[share]); };
  block.each([&](int thread) {
    const int parts = thread < rows ? last_share(thread) - first_share(thread) + 1 : 0;
    at.slot[thread] = parts > 1 ? parts : 0;
    at.count[thread] = thread < shares ? last_not_above(at.begin, rows, at.bound[thread + 1] - 1) - first_row(thread) + 1 : 0;
  });
  machine::cuda::exclusive_sums(block, at.slot, at.sums);
  const int parts = machine::cuda::exclusive_sums(block, at.count, at.sums);
  block.each([&](int thread) {
    if (thread == 0) {
      args.ends[0] = first;
      args.ends[1] = first + shares;
      args.share_begin[shares] = parts;
    }
    if (thread >= shares) return;
    args.share_begin[thread] = at.count[thread];
    int from = at.bound[thread];
    for (int row = first_row(thread), i = at.count[thread]; from < at.bound[thread + 1]; ++row, ++i) {
      const int past = at.begin[row] + at.stages[row], to = past < at.bound[thread + 1] ? past : at.bound[thread + 1];
      RowPart part = {args.order[first + row], 0, 0, 0, 0, 0};
      if (to - from < at.stages[row]) {
        const int keys = args.length[part.item], last = (to - at.begin[row]) * kStageKeys, first_of_row = first_share(row);
        find_runs(args, (from - at.begin[row]) * kStageKeys, last < keys ? last : keys, part);
        part.word = part_word(at.slot[row], thread - first_of_row, last_share(row) - first_of_row + 1);
      }
      args.parts[i] = part;
      from = to;
    }
  });
}

}  // namespace tilewise::attend::sm90
