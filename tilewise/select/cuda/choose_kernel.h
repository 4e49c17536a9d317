// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <bit>
#include <cstdint>

#include "tilewise/machine/cuda/block.h"
#include "tilewise/plan/cuda/joined_runs.h"
#include "tilewise/plan/intervals.h"
#include "tilewise/select/cuda/lines_kernel.h"

// Scores and a budget into a plan on a GPU, a block for each row: the same tiles as select/plan.cpp chooses, bit for bit, since sums that decide are
// made in the same order. Two passes with plan/cuda/place_rows_kernel.h between them: choose and count, then write the runs.
namespace tilewise::select::cuda {

using plan::cuda::Piece;

/// What a head's rows read.
enum class HeadRows : uint8_t {
  by_scores,  // the tiles within the budget
  all,        // all that they see
  by_lines,   // the tiles that a vertical or slash line crosses
  by_marks,   // the tiles in a marked column, on a marked diagonal of tiles, or marked themselves
  elsewhere,  // another kernel writes them
};

/// The numbers of a Budget for one head.
struct HeadLimits {
  float mass, share, at_least;
  int64_t count;
};

struct ChooseArgs {
  static constexpr int kHeads = 64, kClasses = 16, kMaskHeads = 256;
  const float* scores;  // [B, Hq, T, Tk]
  int64_t stride_batch, stride_head, stride_row;
  int heads, tiles, tile_k, tile_q;
  int64_t rows, seqlen_q, seqlen_k;
  int64_t lead;        // slots of the first row where rows are cut on key tiles; 0: as many as the others
  Mask::Band bands[kClasses];
  uint8_t head_class[kMaskHeads];
  HeadLimits limits[kHeads];
  int num_limits;      // 1: the same for all heads
  bool has_mass, has_share, has_count;
  bool is_forced_counted;
  bool is_signed;      // scores of any sign are ranked, NaN first; for budgets of count alone
  int64_t floor, sink, diagonal;
  HeadRows head_rows[kMaskHeads];
  const uint32_t* lines[2];  // [B, Hq, line_words] bits: vertical, slash
  int64_t line_words;
  // Of by_marks: bits of tiles and of row * tiles + tile, and whether a head has the latter.
  const uint32_t *columns, *diagonals, *marks;
  const int32_t* has_marks;  // [B, Hq]
  int64_t mark_words;
  // Written.
  uint32_t* kept;      // [B, Hq, T, kept_words] bits: the tiles that are read
  int kept_words;
  int32_t* count[2];   // [B, Hq, T]
  int32_t* no_picked;  // [B, Hq, T] counts of single keys, or null
  int32_t* edge;       // [T + 1]; null: rows of tile_q
  // Of the second pass.
  const int64_t* begin[2];
  int32_t *start[2], *stop[2];
  const int64_t* cut;  // rows from here on are one masked run
};

/// A score as an integer that is smallest for the best: the bits of positive floats order as the floats do.
TILEWISE_HOST_DEVICE inline uint32_t rank_of(float value, bool is_signed) {
  const auto bits = std::bit_cast<uint32_t>(value);
  if (!is_signed) return ~bits;
  return value != value ? 0 : (bits >> 31) != 0 ? bits : ~(bits | 0x80000000U);
}

/// Which tiles a row sees and which of them are forced.
struct ChosenRow {
  const plan::BandSight& sight;    // in shared memory, from look(): every thread asks it, by index
  int64_t first_token, last_token; // the row's own, as they count
  int64_t sink, near, far;         // forced: tiles below sink, and from near to far
  bool by_lines;

  TILEWISE_DEVICE ChosenRow(const ChooseArgs& args, int head, int64_t row, const plan::BandSight& in_shared)
      : sight(in_shared), by_lines(args.head_rows[head] == HeadRows::by_lines) {
    const int64_t first = args.lead == 0 ? row * args.tile_q : row == 0 ? 0 : args.lead + (row - 1) * args.tile_q;
    const int64_t past = args.lead == 0 || row > 0 ? first + args.tile_q : args.lead, offset = args.seqlen_k - args.seqlen_q;
    first_token = first + offset;
    last_token = (past < args.seqlen_q ? past : args.seqlen_q) - 1 + offset;
    sink = args.sink;
    near = 1;
    far = 0;
    if (args.diagonal > 0 && last_token >= 0) {
      near = (first_token > 0 ? first_token : 0) / args.tile_k - (args.diagonal - 1);
      far = last_token / args.tile_k;
    }
  }
  TILEWISE_DEVICE plan::BandSight look(const ChooseArgs& args, int head) const {
    return plan::band_sight(args.bands[args.head_class[head]], first_token, last_token, args.seqlen_k, args.tile_k);
  }
  TILEWISE_DEVICE bool is_forced(int64_t tile) const { return tile < sink || (tile >= near && tile <= far); }
  TILEWISE_DEVICE bool sees(int64_t tile, int tile_k) const { return plan::meets(sight, tile * tile_k, (tile + 1) * tile_k); }
  /// What of a tile the row sees, in pieces.
  template <class Take>
  TILEWISE_DEVICE void visit(int64_t tile, int tile_k, int64_t seqlen_k, const Take& take) const {
    const int64_t begin = tile * tile_k, end = begin + tile_k < seqlen_k ? begin + tile_k : seqlen_k;
    const auto cut = [&](const plan::Interval& part, int list) {
      const int64_t from = part.first > begin ? part.first : begin, to = part.last < end ? part.last : end;
      if (from >= to) return;
      Piece<0> piece;
      piece.start = static_cast<int32_t>(from);
      piece.stop = static_cast<int32_t>(to);
      // Of tiles that lines cross, a ragged last one is tested, as the host has it.
      piece.list = by_lines && to - begin < tile_k ? 1 : list;
      take(piece, from == begin, to == end);
    };
    for (const plan::Interval& part : sight.whole) cut(part, 0);
    for (const plan::Interval& part : sight.masked) cut(part, 1);
  }
};

/// Sorts keys[0 .. n) of shared memory, n a power of two, ascending.
template <class Block>
TILEWISE_DEVICE void sort_keys(Block& block, uint64_t* keys, int n) {
  for (int run = 2; run <= n; run *= 2) {
    for (int step = run / 2; step > 0; step /= 2) {
      block.each([&](int thread) {
        for (int i = thread; i < n / 2; i += block.threads()) {
          const int low = ((i & ~(step - 1)) << 1) | (i & (step - 1)), high = low + step;
          const uint64_t a = keys[low], b = keys[high];
          if ((a > b) == ((low & run) == 0)) {
            keys[low] = b;
            keys[high] = a;
          }
        }
      });
    }
  }
}

TILEWISE_HOST_DEVICE inline int power_of_two(int at_least) {
  int n = 2;
  while (n < at_least) n *= 2;
  return n;
}

/// Threads of a block for so many tiles.
inline int choose_threads(int tiles) {
  const int half = power_of_two(tiles) / 2;
  return half < 64 ? 64 : half > 512 ? 512 : half;
}

struct ChooseParts {
  plan::BandSight* sight;
  uint64_t* keys;  // [power_of_two(tiles)] candidates: inverted bits of the score, then the tile
  double* sums;    // [2] total, held by forced tiles
  float* values;   // [tiles] of what the row sees, 0 elsewhere
  uint32_t* kept;  // [kept_words]
  int* numbers;    // [4] visible, forced, candidates, chosen
  plan::cuda::JoinedParts<0> joined;

  TILEWISE_HOST_DEVICE ChooseParts(machine::cuda::SharedParts& parts, int tiles, int threads)
      : sight(parts.take<plan::BandSight>(1)),
        keys(parts.take<uint64_t>(power_of_two(tiles))),
        sums(parts.take<double>(2)),
        values(parts.take<float>(tiles)),
        kept(parts.take<uint32_t>((tiles + 31) / 32)),
        numbers(parts.take<int>(4)),
        joined(parts, threads) {}
};

inline unsigned long choose_shared_bytes(int tiles) {
  machine::cuda::SharedParts parts(nullptr);
  ChooseParts(parts, tiles, choose_threads(tiles));
  return parts.bytes();
}

/// Chooses the tiles of row `block.index()` and counts their runs. kHasLines: some head may be by_lines.
template <bool kHasLines, class Block>
TILEWISE_DEVICE void choose_kernel(Block& block, const ChooseArgs& args) {
  machine::cuda::SharedParts parts(block.shared());
  const ChooseParts at(parts, args.tiles, block.threads());
  const int64_t item = block.index(), row = item % args.rows, of = item / args.rows;
  const int head = static_cast<int>(of % args.heads);
  const int64_t b = of / args.heads;
  const int threads = block.threads(), tiles = args.tiles, most_keys = power_of_two(tiles);
  const float* const scores =  // none where every head is by lines or elsewhere
      args.scores == nullptr ? nullptr : args.scores + b * args.stride_batch + head * args.stride_head + row * args.stride_row;
  const HeadLimits& limits = args.limits[args.num_limits == 1 ? 0 : head];
  const ChosenRow seen(args, head, row, *at.sight);
  const HeadRows of_head = args.head_rows[head];
  const bool by_scores = of_head == HeadRows::by_scores;

  block.each([&](int thread) {
    if (thread < 4) at.numbers[thread] = 0;
    if (thread == 0) *at.sight = seen.look(args, head);
    if (item == 0 && args.edge != nullptr) {
      for (int64_t i = thread; i <= args.rows; i += threads) {
        const int64_t first = i == 0 ? 0 : args.lead + (i - 1) * args.tile_q;
        args.edge[i] = static_cast<int32_t>(first < args.seqlen_q ? first : args.seqlen_q);
      }
    }
  });
  if (of_head == HeadRows::elsewhere) return;
  block.each([&](int thread) {
    int visible = 0, forced = 0, candidates = 0;
    for (int tile = thread; by_scores && tile < most_keys; tile += threads) {
      uint64_t key = ~uint64_t{0};
      if (tile < tiles) {
        const bool is_seen = seen.sees(tile, args.tile_k);
        const float value = is_seen ? scores[tile] : 0.0f;
        at.values[tile] = value;
        const bool is_held = args.is_forced_counted && seen.is_forced(tile);
        visible += is_seen ? 1 : 0;
        if (is_seen && is_held) ++forced;
        // Ties go to the smaller tile.
        if (is_seen && !is_held && (args.is_signed || (value > 0 && value >= limits.at_least))) {
          key = static_cast<uint64_t>(rank_of(value, args.is_signed)) << 32 | static_cast<uint32_t>(tile);
          ++candidates;
        }
      }
      at.keys[tile] = key;
    }
    if (visible > 0) block.add(&at.numbers[0], visible);
    if (forced > 0) block.add(&at.numbers[1], forced);
    if (candidates > 0) block.add(&at.numbers[2], candidates);
  });
  // Sums as the host makes them: one after another. What the row does not see adds 0.
  block.each([&](int thread) {
    double sum = 0;
    if (thread == 0) {
      for (int tile = 0; by_scores && tile < tiles; ++tile) sum += static_cast<double>(at.values[tile]);
      at.sums[0] = sum;
    } else if (thread == 32) {
      for (int tile = 0; by_scores && tile < tiles && args.is_forced_counted; ++tile)
        sum += seen.is_forced(tile) ? static_cast<double>(at.values[tile]) : 0.0;
      at.sums[1] = sum;
    }
  });
  const double total = block.get(at.sums[0]);
  const bool is_finite = by_scores && (args.is_signed || total - total == 0);
  const int candidates = block.get(at.numbers[2]);
  const bool has_mass = args.has_mass && limits.mass < 1;
  const bool is_limited = has_mass || args.has_share || args.has_count;
  if (is_finite && is_limited) sort_keys(block, at.keys, most_keys);
  block.each([&](int thread) {
    if (thread == 0 && is_finite) {
      const double required = has_mass ? static_cast<double>(limits.mass) * total : 0;
      int64_t most = INT64_MAX;
      if (args.has_count) most = limits.count;
      if (args.has_share) {
        // To the nearest, halves up: what llround does with numbers that are not negative.
        const double share = static_cast<double>(limits.share) * static_cast<double>(at.numbers[0]);
        const auto down = static_cast<int64_t>(share);
        const int64_t nearest = share - static_cast<double>(down) >= 0.5 ? down + 1 : down;
        most = nearest < most ? nearest : most;
      }
      double held = at.sums[1];
      int64_t kept = at.numbers[1];
      int chosen = is_limited ? 0 : candidates;
      while (chosen < candidates) {
        if (kept >= args.floor && ((has_mass && held >= required) || kept >= most)) break;
        if (!args.is_signed) held += static_cast<double>(std::bit_cast<float>(~static_cast<uint32_t>(at.keys[chosen] >> 32)));
        ++kept;
        ++chosen;
      }
      at.numbers[3] = chosen;
    }
    // Forced tiles; all that the row sees, where its scores are not finite or not asked; what a line crosses.
    const int64_t line = of * args.line_words, first_query = seen.first_token > 0 ? seen.first_token : 0;
    const auto is_crossed = [&](int64_t tile) {
      if constexpr (!kHasLines) return true;
      if (of_head == HeadRows::by_lines) {
        return crosses(args.lines[0] + line, args.lines[1] + line, first_query, seen.last_token + 1, tile * args.tile_k, args.tile_k, args.seqlen_k);
      }
      if (of_head != HeadRows::by_marks) return true;
      const auto is_set = [](const uint32_t* bits, int64_t i) { return ((bits[i / 32] >> (i % 32)) & 1) != 0; };
      const int64_t distance = seen.last_token / args.tile_k - tile, words = of * args.kept_words;
      return is_set(args.columns + words, tile) || (distance >= 0 && is_set(args.diagonals + words, distance)) ||
             (args.has_marks[of] != 0 && is_set(args.marks + of * args.mark_words, row * tiles + tile));
    };
    for (int word = thread; word < args.kept_words; word += threads) {
      uint32_t bits = 0;
      for (int bit = 0; bit < 32; ++bit) {
        const int tile = word * 32 + bit;
        if (tile < tiles && (!is_finite || seen.is_forced(tile)) && seen.sees(tile, args.tile_k) && is_crossed(tile)) bits |= 1u << bit;
      }
      at.kept[word] = bits;
    }
  });
  const int chosen = is_finite ? block.get(at.numbers[3]) : 0;
  // Without a sort the candidates stand where their tiles do.
  const int places = is_limited ? chosen : is_finite ? most_keys : 0;
  block.each([&](int thread) {
    for (int i = thread; i < places; i += threads) {
      const uint64_t key = at.keys[i];
      if (key == ~uint64_t{0}) continue;
      const auto tile = static_cast<uint32_t>(key);
      if (!seen.is_forced(tile)) block.add(&at.kept[tile / 32], 1u << (tile % 32));  // each tile once: adding sets its bit
    }
  });
  block.each([&](int thread) {
    for (int word = thread; word < args.kept_words; word += threads) args.kept[item * args.kept_words + word] = at.kept[word];
  });
  const auto visit = [&](int tile, const auto& take) {
    if (((at.kept[tile / 32] >> (tile % 32)) & 1) != 0) seen.visit(tile, args.tile_k, args.seqlen_k, take);
  };
  const plan::cuda::RunCounts counts = plan::cuda::joined_runs<0>(block, at.joined, tiles, visit, nullptr);
  block.each([&](int thread) {
    if (thread != 0) return;
    args.count[0][item] = counts.of[0];
    args.count[1][item] = counts.of[1];
    if (args.no_picked != nullptr) args.no_picked[item] = 0;
  });
}

struct WriteParts {
  plan::BandSight* sight;
  int* ends;  // [2] first start, last stop
  plan::cuda::JoinedParts<0> joined;

  TILEWISE_HOST_DEVICE WriteParts(machine::cuda::SharedParts& parts, int threads)
      : sight(parts.take<plan::BandSight>(1)), ends(parts.take<int>(2)), joined(parts, threads) {}
};

inline unsigned long write_shared_bytes(int tiles) {
  machine::cuda::SharedParts parts(nullptr);
  WriteParts(parts, choose_threads(tiles));
  return parts.bytes();
}

/// Writes the runs of row `block.index()`.
template <class Block>
TILEWISE_DEVICE void write_runs_kernel(Block& block, const ChooseArgs& args) {
  machine::cuda::SharedParts parts(block.shared());
  const WriteParts at(parts, block.threads());
  const int64_t item = block.index(), row = item % args.rows;
  const int head = static_cast<int>(item / args.rows % args.heads);
  if (args.count[0][item] + args.count[1][item] == 0 || args.head_rows[head] == HeadRows::elsewhere) return;
  const ChosenRow seen(args, head, row, *at.sight);
  block.each([&](int thread) {
    if (thread == 0) *at.sight = seen.look(args, head);
  });
  const uint32_t* const kept = args.kept + item * args.kept_words;
  const auto visit = [&](int tile, const auto& take) {
    if (((kept[tile / 32] >> (tile % 32)) & 1) != 0) seen.visit(tile, args.tile_k, args.seqlen_k, take);
  };
  if (item >= *args.cut) {  // no room: from the first key to the last, as one masked run
    block.each([&](int thread) {
      if (thread < 2) at.ends[thread] = thread == 0 ? INT32_MAX : 0;
    });
    block.each([&](int thread) {
      for (int tile = thread; tile < args.tiles; tile += block.threads()) {
        visit(tile, [&](const Piece<0>& piece, bool, bool) {
          block.min(&at.ends[0], int{piece.start});
          block.max(&at.ends[1], int{piece.stop});
        });
      }
    });
    block.each([&](int thread) {
      if (thread != 0) return;
      args.start[1][args.begin[1][item]] = at.ends[0];
      args.stop[1][args.begin[1][item]] = at.ends[1];
    });
    return;
  }
  plan::cuda::RowSink sink;
  for (int list = 0; list < 2; ++list) {
    sink.start[list] = args.start[list] + args.begin[list][item];
    sink.stop[list] = args.stop[list] + args.begin[list][item];
  }
  sink.rows = nullptr;
  sink.words = 0;
  plan::cuda::joined_runs<0>(block, at.joined, args.tiles, visit, &sink);
}

}  // namespace tilewise::select::cuda
