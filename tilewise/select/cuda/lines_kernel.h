// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <bit>
#include <cmath>
#include <cstdint>

#include "tilewise/machine/cuda/block.h"

// Vertical and slash lines on a GPU: which there are, as bits, and the runs that a row reads because of them: the same as select/lines.h, from equal sums.
namespace tilewise::select::cuda {

struct BestLinesArgs {
  const float* sums[2];  // [batch_heads, Sk] by key, by distance
  int64_t seqlen_k, words;
  int heads;
  int count[2][256];  // lines kept of each head, vertical and slash; below 0: the head has none of its own
  int forced[2];  // first keys, nearest distances
  uint32_t* bits[2];  // [batch_heads, words] written: bit i % 32 of word i / 32
};

constexpr int kLineThreads = 512;

struct BestLinesParts {
  int *histogram, *ties, *sums, *found;  // found: bin, what is left of it, whether a sum is not finite

  TILEWISE_HOST_DEVICE explicit BestLinesParts(machine::cuda::SharedParts& parts)
      : histogram(parts.take<int>(256)),
        ties(parts.take<int>(kLineThreads)),
        sums(parts.take<int>(machine::cuda::sums_ints(kLineThreads))),
        found(parts.take<int>(3)) {}
};

inline unsigned long best_lines_shared_bytes() {
  machine::cuda::SharedParts parts(nullptr);
  BestLinesParts{parts};
  return parts.bytes();
}

/// Block i: the vertical (i even) or slash lines of a head: the `count` largest by a radix select over four bytes of a float, ties to the smaller index.
template <class Block>
TILEWISE_DEVICE void best_lines_kernel(Block& block, const BestLinesArgs& args) {
  const int64_t of = block.index() / 2;
  const int kind = static_cast<int>(block.index() % 2), head = static_cast<int>(of % args.heads);
  if (args.count[kind][head] < 0) return;
  machine::cuda::SharedParts parts(block.shared());
  const BestLinesParts at(parts);
  const int threads = block.threads();
  const int64_t size = args.seqlen_k;
  const float* const values = args.sums[kind] + of * size;
  uint32_t* const bits = args.bits[kind] + of * args.words;
  block.each([&](int thread) {
    if (thread == 0) at.found[2] = 0;
  });
  block.each([&](int thread) {
    bool is_known = true;
    for (const float* const sums : {args.sums[0] + of * size, args.sums[1] + of * size}) {
      for (int64_t i = thread; i < size; i += threads) is_known = is_known && sums[i] - sums[i] == 0;
    }
    if (!is_known) block.max(&at.found[2], 1);
  });
  const bool is_known = block.get(at.found[2]) == 0;
  // Sums that are not finite say nothing: the head then reads everything, by its distances.
  int64_t left = is_known ? args.count[kind][head] : kind == 0 ? 0 : size;
  left = left < size ? left : size;
  // The bits of positive floats order as the floats do; inverted, the largest comes first. What is forced comes before all.
  const auto key_of = [&](int64_t i) { return i < args.forced[kind] ? uint32_t{0} : ~std::bit_cast<uint32_t>(values[i] > 0 ? values[i] : 0.0f); };
  uint32_t threshold = left == 0 ? 0 : ~uint32_t{0};
  if (left > 0 && left < size) {
    threshold = 0;
    for (int shift = 24; shift >= 0; shift -= 8) {
      const uint32_t decided = shift == 24 ? 0 : ~uint32_t{0} << (shift + 8);
      block.each([&](int thread) {
        for (int bin = thread; bin < 256; bin += threads) at.histogram[bin] = 0;
      });
      block.each([&](int thread) {
        for (int64_t i = thread; i < size; i += threads) {
          const uint32_t key = key_of(i);
          if ((key & decided) == threshold) block.add(&at.histogram[(key >> shift) & 255], 1);
        }
      });
      block.each([&](int thread) {
        if (thread != 0) return;
        int bin = 0, rest = static_cast<int>(left);
        while (rest > at.histogram[bin]) rest -= at.histogram[bin++];
        at.found[0] = bin;
        at.found[1] = rest;
      });
      threshold |= static_cast<uint32_t>(block.get(at.found[0])) << shift;
      left = block.get(at.found[1]);
    }
  }
  // All below the threshold, and the first `left` of those at it.
  for (int64_t first = 0; first < args.words; first += threads) {
    block.each([&](int thread) {
      int ties = 0;
      for (int64_t i = (first + thread) * 32; i < (first + thread + 1) * 32 && i < size; ++i) ties += key_of(i) == threshold ? 1 : 0;
      at.ties[thread] = ties;
    });
    const int here = machine::cuda::exclusive_sums(block, at.ties, at.sums);
    block.each([&](int thread) {
      if (first + thread >= args.words) return;
      uint32_t word = 0;
      int64_t rest = left - at.ties[thread];
      for (int64_t i = (first + thread) * 32; i < (first + thread + 1) * 32 && i < size; ++i) {
        const uint32_t key = key_of(i);
        if (key < threshold || (key == threshold && rest-- > 0)) word |= uint32_t{1} << (i % 32);
      }
      bits[first + thread] = word;
    });
    left = left > here ? left - here : 0;
  }
}

/// Whether any of the bits [first, last) is set.
TILEWISE_DEVICE inline bool has_bit(const uint32_t* bits, int64_t first, int64_t last) {
  for (int64_t at = first; at < last;) {
    const int64_t word = at / 32, end = (word + 1) * 32 < last ? (word + 1) * 32 : last;
    const auto length = static_cast<int>(end - at);
    if ((bits[word] & ((length == 32 ? ~uint32_t{0} : (uint32_t{1} << length) - 1) << (at % 32))) != 0) return true;
    at = end;
  }
  return false;
}

/// Whether a line crosses the keys [first_key, last_key), or a vertical one the whole tile, for one of the queries [first, last): LineRows::Cover::aligned.
TILEWISE_DEVICE inline bool crosses(const uint32_t* vertical, const uint32_t* slash, int64_t first, int64_t last, int64_t first_key, int tile,
                                    int64_t seqlen_k) {
  const int64_t end = first_key + tile < seqlen_k ? first_key + tile : seqlen_k, stop = end < last ? end : last;
  if (has_bit(vertical, first_key, end)) return true;
  const int64_t farthest = last - 1 - first_key < seqlen_k - 1 ? last - 1 - first_key : seqlen_k - 1, nearest = first - (stop - 1);
  return farthest >= 0 && has_bit(slash, nearest > 0 ? nearest : 0, farthest + 1);
}

struct LineRowsArgs {
  const uint32_t* bits[2];  // vertical, slash
  int64_t words, seqlen_q, seqlen_k, rows, lead;
  int heads, tile;
  uint8_t is_mine[256];
  int32_t* count[3];  // whole, masked, picked
  // Of the second pass.
  const int64_t* begin[3];
  int32_t *start[3], *stop[2];
  const int64_t* cut;  // rows from here on are one masked run
};

constexpr int kLineRowThreads = 128;

struct LineRowParts {
  uint32_t *slash, *vertical;
  int *singles, *sums;

  TILEWISE_HOST_DEVICE LineRowParts(machine::cuda::SharedParts& parts, int64_t words)
      : slash(parts.take<uint32_t>(words)),
        vertical(parts.take<uint32_t>(words)),
        singles(parts.take<int>(kLineRowThreads)),
        sums(parts.take<int>(machine::cuda::sums_ints(kLineRowThreads))) {}
};

inline unsigned long line_rows_shared_bytes(int64_t words) {
  machine::cuda::SharedParts parts(nullptr);
  LineRowParts(parts, words);
  return parts.bytes();
}

/// The largest number up to `most` whose bit is set, or -1.
TILEWISE_DEVICE inline int64_t last_set(const uint32_t* bits, int64_t most) {
  if (most < 0) return -1;
  int64_t word = most / 32;
  uint32_t part = bits[word] & (~uint32_t{0} >> (31 - most % 32));
  while (part == 0 && word > 0) part = bits[--word];
  return part == 0 ? -1 : word * 32 + 31 - std::countl_zero(part);
}

/// Clears the bits [first, last).
TILEWISE_DEVICE inline void clear_bits(uint32_t* bits, int64_t first, int64_t last) {
  for (int64_t at = first; at < last;) {
    const int64_t word = at / 32, end = (word + 1) * 32 < last ? (word + 1) * 32 : last;
    const auto length = static_cast<int>(end - at);
    bits[word] &= ~((length == 32 ? ~uint32_t{0} : (uint32_t{1} << length) - 1) << (at % 32));
    at = end;
  }
}

/// Counts (or writes) the runs of row `block.index()`: LineRows::Cover::exact.
template <bool kWrites, class Block>
TILEWISE_DEVICE void line_rows_kernel(Block& block, const LineRowsArgs& args) {
  const int64_t item = block.index(), row = item % args.rows, of = item / args.rows;
  if (args.is_mine[of % args.heads] == 0) return;
  machine::cuda::SharedParts parts(block.shared());
  const LineRowParts at(parts, args.words);
  const int64_t offset = args.seqlen_k - args.seqlen_q, tile = args.tile;
  const int64_t begin = args.lead == 0 || row == 0 ? row * tile : args.lead + (row - 1) * tile,
                past = args.lead == 0 || row > 0 ? begin + tile : args.lead;
  const int64_t last = (past < args.seqlen_q ? past : args.seqlen_q) + offset, first = begin + offset > 0 ? begin + offset : 0;
  const int64_t seen = last < 0 ? 0 : last < args.seqlen_k ? last : args.seqlen_k;
  if (kWrites) {
    if (args.count[0][item] + args.count[1][item] + args.count[2][item] == 0) return;
    if (item >= *args.cut) {  // no room: all that the row sees, as one masked run
      block.each([&](int thread) {
        if (thread != 0) return;
        args.start[1][args.begin[1][item]] = 0;
        args.stop[1][args.begin[1][item]] = static_cast<int32_t>(seen);
      });
      return;
    }
  }
  block.each([&](int thread) {
    for (int64_t word = thread; word < args.words; word += kLineRowThreads) {
      at.slash[word] = args.bits[1][of * args.words + word];
      at.vertical[word] = args.bits[0][of * args.words + word];
    }
  });
  // One thread walks the ranges upward: where one begins depends on where the one before ends. What they hold is struck from the vertical lines.
  block.each([&](int thread) {
    if (thread != 0) return;
    int64_t runs[2] = {0, 0};
    const auto add = [&](int list, int64_t start, int64_t stop) {
      if (start >= stop) return;
      if (kWrites) {
        const int64_t run = (list == 0 ? args.begin[0] : args.begin[1])[item] + (list == 0 ? runs[0] : runs[1]);
        (list == 0 ? args.start[0] : args.start[1])[run] = static_cast<int32_t>(start);
        (list == 0 ? args.stop[0] : args.stop[1])[run] = static_cast<int32_t>(stop);
      }
      ++(list == 0 ? runs[0] : runs[1]);
    };
    const auto body = [&](int64_t start, int64_t range_last) {
      const int64_t stop = range_last < seen ? range_last : seen;
      if (start >= stop) return;
      // Keys up to the first query are seen by all; whole runs keep a length that one copy of a tile can fetch.
      const int64_t by_all = (stop < first + 1 ? stop : first + 1) - start, untested = start + (by_all > 0 ? by_all / tile * tile : 0);
      add(0, start, untested);
      add(1, untested, stop);
      clear_bits(at.vertical, start, stop);
    };
    if (seen > 0) {
      const int64_t end = (last - 1) / tile * tile + tile;
      // The distance that reaches furthest back, of those that end behind key `after`.
      const auto next = [&](int64_t after) { return last_set(at.slash, (end - after < args.seqlen_k ? end - after : args.seqlen_k) - 1); };
      int64_t distance = next(0);
      if (distance >= 0) {
        int64_t range_last = end - distance > tile ? end - distance : tile, range_first = range_last - tile;
        while ((distance = next(range_last)) >= 0) {
          const int64_t reach = end - distance;
          if (reach > range_last + tile) {
            body(range_first, range_last);
            range_first = reach - tile;
            range_last = reach;
          } else {
            range_last += tile;
          }
        }
        body(range_first, range_last);
      }
    }
    if (!kWrites) {
      args.count[0][item] = static_cast<int32_t>(runs[0]);
      args.count[1][item] = static_cast<int32_t>(runs[1]);
    }
  });
  // What is left of the vertical lines lies below the ranges' last, which holds the row's own tokens: all its queries see it.
  int64_t done = 0;
  const int64_t words = (seen + 31) / 32;
  for (int64_t first_word = 0; first_word < words; first_word += kLineRowThreads) {
    const auto left_of = [&](int thread) {
      const int64_t base = (first_word + thread) * 32;
      if (base >= seen) return uint32_t{0};
      return at.vertical[first_word + thread] & (base + 32 > seen ? (uint32_t{1} << (seen - base)) - 1 : ~uint32_t{0});
    };
    block.each([&](int thread) { at.singles[thread] = std::popcount(left_of(thread)); });
    const int here = machine::cuda::exclusive_sums(block, at.singles, at.sums);
    block.each([&](int thread) {
      if (!kWrites) return;
      int64_t to = args.begin[2][item] + done + at.singles[thread];
      for (uint32_t rest = left_of(thread); rest != 0; rest &= rest - 1)
        args.start[2][to++] = static_cast<int32_t>((first_word + thread) * 32 + std::countr_zero(rest));
    });
    done += here;
  }
  block.each([&](int thread) {
    if (!kWrites && thread == 0) args.count[2][item] = static_cast<int32_t>(done);
  });
}

}  // namespace tilewise::select::cuda
