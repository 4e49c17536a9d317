// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cmath>

#include "tilewise/attend/cuda/measure_args.h"
#include "tilewise/attend/cuda/softmax.h"

// measure() on any GPU: right before it is fast (attend/sm90 has the fast kernel for maxima of tiles). A block has the queries of a part of a row and walks
// its runs; products go through shared memory, where a thread owns a query (or a key, or offsets) and adds its values up in order. Cells that several
// blocks would share get a row of a workspace each, which a second kernel adds up: the bits do not depend on who came first.
namespace tilewise::attend::cuda {

/// Sum, maximum and number of values. A NaN among them makes the first two NaN.
struct Cell {
  float sum = 0, max = -INFINITY, count = 0;
  TILEWISE_HOST_DEVICE void add(float of_sum, float of_max, float of_count) {
    sum += of_sum;
    if (of_max != of_max || of_max > max) max = of_max;  // nothing is above a NaN, so it stays
    count += of_count;
  }
};

template <class C>
struct alignas(16) MeasureShared {
  typename C::Bits q[C::kTileQ * C::kRow], k[C::kTileK * C::kRow];
  float products[C::kTileQ][C::kTileK + 1];
  SlotQuery queries[C::kTileQ];
  SlotKey keys[C::kTileK];
  uint64_t rows[C::kTileK];  // which queries of the part read it
  int64_t slot[C::kTileK];
  plan::cuda::RowView lists[3];
};

TILEWISE_DEVICE inline void add_to_cell(const CellsView& cells, int64_t batch, int64_t head, int64_t row, int64_t column, const Cell& cell) {
  Cell before;
  float *const sum = cells.at(0, batch, head, row, column), *const max = cells.at(1, batch, head, row, column),
               *const count = cells.at(2, batch, head, row, column);
  if (max != nullptr) before.max = *max;
  before.add(cell.sum, cell.max, cell.count);
  if (sum != nullptr) *sum += cell.sum;
  if (max != nullptr) *max = before.max;
  if (count != nullptr) *count += cell.count;
}

/// The value of a pair that is seen.
TILEWISE_DEVICE inline float value_of(const MeasureArgs& args, const Part& part, const SlotQuery& query, float product, int key_place,
                                      float pooled_bias) {
  float s = product * args.softmax_scale;
  if (args.softcap != 0) s = args.softcap * tanhf(s / args.softcap);
  s += pooled_bias;
  if (args.key_bias.data != nullptr) s += args.key_bias.at(part.batch, part.head, key_place);
  return args.lse.data == nullptr ? s : expf(s - args.lse.at(part.batch, part.head, query.place));
}

/// Block i: part i + first_block of [batch, heads, rows].
template <class C, class Block>
TILEWISE_DEVICE void measure_kernel(Block& block, const MeasureArgs& args) {
  auto& shared = *reinterpret_cast<MeasureShared<C>*>(block.shared());
  const int64_t index = block.index() + args.first_block;
  const Part part = part_of<C>(args.rows, args.axis_q.slots(), args.heads_q, args.parts_per_row, index);
  if (part.count == 0) return;
  const int head_kv = part.head / (args.heads_q / args.heads_kv), mask_class = args.head_class[part.head % kMaskHeads];
  const int64_t part_of_head = index % (args.rows.rows * args.parts_per_row);
  block.each([&](int thread) {
    for (int i = thread; i < C::kTileQ; i += C::kThreads) {
      shared.queries[i] = i < part.count ? query_of(args, part.batch, part.head, part.first + i) : SlotQuery{-1, -1, {}};
    }
    if (thread < 3) shared.lists[thread] = plan::cuda::row_of(args.lists[thread], part.batch, part.head, args.heads_q, args.rows.rows, part.row);
  });
  copy_rows<C>(block, args.q, shared.q, C::kTileQ, [&](int i) -> const typename C::Bits* {
    return shared.queries[i].place < 0 ? nullptr : row_at<C>(args.q, part.batch, part.head, shared.queries[i].place);
  });
  block.close_copies();

  // Keys first .. first + fill of the list: neighbouring slots of a run, or of picked keys.
  const auto stage = [&](int list, int run, int64_t first, int fill) {
    block.each([&](int thread) {
      if (thread >= C::kTileK) return;
      shared.keys[thread] = {SlotKey::kNowhere, -1, 0};
      shared.rows[thread] = 0;
      if (thread >= fill) return;
      const plan::cuda::RowView& row = shared.lists[list];
      const int at = list == 2 ? run + thread : run;
      shared.slot[thread] = list == 2 ? row.start[at] : first + thread;
      shared.keys[thread] = key_of(args, part.batch, part.head, shared.slot[thread]);
      shared.rows[thread] = ~uint64_t{0};
      if (row.rows != nullptr) shared.rows[thread] = row.rows[int64_t{at} * args.lists[list].words + part.offset / 64] >> (part.offset % 64);
    });
    copy_rows<C>(block, args.k, shared.k, C::kTileK,
                 [&](int i) { return key_row<C>(args.k, args.pooled_k, part.batch, head_kv, shared.keys[i].place); });
    block.close_copies();
    block.template await_copies<0>();
    block.sync();
    typename Block::template Registers<float, C::kScores> products(block);
    block.lanes([&](int thread) { TILEWISE_UNROLL for (int i = 0; i < C::kScores; ++i) products(thread, i) = 0; });
    multiply_by_rows<C>(block, products, shared.q, shared.k, args.q.channels);
    block.each([&](int thread) {
      TILEWISE_UNROLL for (int i = 0; i < C::kScores; ++i) shared.products[score_row(thread, i)][score_column(thread, i)] = products(thread, i);
    });
    const auto is_seen = [&](int row, int column) {
      const SlotQuery& query = shared.queries[row];
      const int token = shared.keys[column].token;
      return row < part.count && query.token >= 0 && token >= 0 && (shared.rows[column] >> row & 1) != 0 &&
             (list != 0 || mask_sees(args, mask_class, query, token));
    };
    const auto value = [&](int row, int column) {
      return value_of(args, part, shared.queries[row], shared.products[row][column], shared.keys[column].place, shared.keys[column].bias);
    };
    block.each([&](int thread) {
      if (args.row == CellRow::part_keys) {
        if (thread >= fill) return;
        Cell cell;
        for (int row = 0; row < part.count; ++row) {
          if (!is_seen(row, thread)) continue;
          const float x = value(row, thread);
          cell.add(x, x, 1);
        }
        if (cell.count > 0) add_to_cell(args.cells, part.batch, part.head, part_of_head, shared.slot[thread], cell);
        return;
      }
      if (args.row == CellRow::part_offsets) {  // a thread has every offset of its number, whatever orders make of them
        for (int row = 0; row < part.count; ++row) {
          for (int column = 0; column < fill; ++column) {
            const int64_t offset = int64_t{shared.queries[row].token} + args.seqlen_k - args.seqlen_q - shared.keys[column].token;
            if (offset < 0 || offset % C::kThreads != thread || !is_seen(row, column)) continue;
            const float x = value(row, column);
            add_to_cell(args.cells, part.batch, part.head, part_of_head, offset, {x, x, 1});
          }
        }
        return;
      }
      if (thread >= part.count || shared.queries[thread].place < 0) return;
      const int64_t to = args.row == CellRow::slot ? part.first + thread : shared.queries[thread].place;
      int64_t column = -1;
      Cell cell;
      for (int key = 0; key < fill; ++key) {
        if (!is_seen(thread, key)) continue;
        const float x = value(thread, key);
        if (const int64_t own = shared.slot[key] / args.tile_k; own != column) {
          if (column >= 0) add_to_cell(args.cells, part.batch, part.head, to, column, cell);
          column = own;
          cell = Cell();
        }
        cell.add(x, x, 1);
      }
      if (column >= 0) add_to_cell(args.cells, part.batch, part.head, to, column, cell);
    });
  };
  for (int list = 0; list < 3; ++list) {
    const int count = block.get(shared.lists[list].count);
    if (list == 2) {
      for (int run = 0; run < count; run += C::kTileK) stage(list, run, 0, count - run < C::kTileK ? count - run : C::kTileK);
      continue;
    }
    for (int run = 0; run < count; ++run) {
      const plan::cuda::RowView& row = shared.lists[list];
      const int64_t start = row.start[run];
      int64_t stop = row.stop != nullptr ? row.stop[run] : start + args.lists[list].grain;
      if (const int64_t end = args.axis_k.part_end(start); row.stop == nullptr && stop > end) stop = end;
      for (int64_t first = start; first < stop; first += C::kTileK) {
        stage(list, run, first, static_cast<int>(stop - first < C::kTileK ? stop - first : C::kTileK));
      }
    }
  }
  block.template await_copies<0>();
}

/// A thread a cell.
template <class Block>
TILEWISE_DEVICE void reduce_kernel(Block& block, const ReduceArgs& args) {
  const int64_t groups = (args.rows + args.group - 1) / args.group;
  block.each([&](int thread) {
    const int64_t index = block.index() * kCellThreads + thread;
    if (index >= args.heads * groups * args.width) return;
    const int64_t column = index % args.width, group = index / args.width % groups, of_chunk = index / args.width / groups;
    const int64_t head = args.first_head + of_chunk, first = group * args.group;
    const int64_t last = first + args.group < args.rows ? first + args.group : args.rows;
    Cell cell;
    for (int64_t row = first; row < last; ++row) {
      const int64_t at = (of_chunk * args.rows + row) * args.width + column;
      cell.add(args.sum[at], args.max[at], args.count[at]);
    }
    const int64_t batch = head / args.heads_q, own = head % args.heads_q;
    int64_t to = column;
    if (args.is_by_token) {
      to = token_of(args.axis_k, static_cast<int>(batch), static_cast<int>(own), args.heads_q, column);
      if (to < 0) return;
    }
    const float of[3] = {cell.sum, cell.max, cell.count};
    for (int what = 0; what < 3; ++what) {
      if (float* const out = args.out.at(what, batch, own, args.has_one_row ? 0 : group, to); out != nullptr) *out = of[what];
    }
  });
}

template <class Block>
TILEWISE_DEVICE void clear_kernel(Block& block, const ClearArgs& args) {
  block.each([&](int thread) {
    int64_t index = block.index() * kCellThreads + thread;
    if (index >= args.sizes[0] * args.sizes[1] * args.sizes[2] * args.sizes[3]) return;
    const int64_t column = index % args.sizes[3], row = (index /= args.sizes[3]) % args.sizes[2], head = (index /= args.sizes[2]) % args.sizes[1];
    for (int what = 0; what < 3; ++what) {
      if (float* const out = args.cells.at(what, index / args.sizes[1], head, row, column); out != nullptr) *out = what == 1 ? -INFINITY : 0.0f;
    }
  });
}

}  // namespace tilewise::attend::cuda
