// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cmath>
#include <cstdint>

#include "tilewise/select/cuda/warp_product.h"

// antidiagonal_scores() on a GPU in one kernel. The products of a group of queries and a group of keys are one inner product over S x D channels, so this is a
// product of matrices [units, S x D] and [key groups, S x D] whose rows are gathered S tokens apart, the queries of a group in another order. A *unit* is a query
// group that is scored (every kdb-th). A thread block takes an *item*, up to 128 units of one head in whole rows of the plan, past all the key groups that they see,
// 256 at a time. Of each *strip* of 64 key groups it keeps for each unit the largest logit and the sums of the exponentials above it, a sum for each
// *part* of a key tile; the last strip done, units are normalised and parts added up to tiles. What it keeps lies in a place of its own block, so memory does not
// grow with the number of queries.
namespace tilewise::select::cuda {

struct AntidiagonalArgs {
  const void *q, *k;  // [B, Hq, Sq, D], [B, Hkv, Sk, D]
  int64_t q_batch, q_head, q_token, k_batch, k_head, k_token;  // strides, in elements
  bool is_wide;  // rows are aligned to 16 bytes and whole pieces of 16
  int heads, group, dim;
  int64_t seqlen_q, seqlen_k, offset;  // offset: token of query 0, as groups count
  int64_t groups;  // of keys
  int stride, kdb, terms, tile;
  uint8_t place[64];  // of the query in its group that meets key t
  bool is_causal;
  float scale, scale_log2, softcap;  // scale_log2: of what is exponentiated, into the exponent of 2
  int64_t rows, tiles, lead;  // of the plan; slots of its first row, 0: as many as the others
  int rows_an_item;
  int64_t batch_heads, items;
  bool takes_largest;  // a row's score is that of the unit with the largest one, not the sum over its units
  int part;  // key groups of a part: a power of two up to 64 that divides the groups of a tile
  // Of each thread block.
  float* sums;  // [kUnits, columns] of parts
  float *most, *mass;  // [strips, kUnits]
  int64_t columns, strips;
  float* scores;  // [B, Hq, T, Tk] written
  int64_t stride_batch, stride_head, stride_row;
};

constexpr int kScoreThreads = 256, kUnits = 128, kGroups = 256, kStripGroups = kWarpColumns;
constexpr int kStripsAStep = kGroups / kStripGroups;
constexpr int kStages = 4;
constexpr unsigned long kStageBytes = (kUnits + kGroups) * kRowBytes;
constexpr unsigned long kScoreSharedBytes = kStages * kStageBytes;
/// Thread blocks at most, each with a place of its own in memory: one for each multiprocessor of the GPUs that this was laid out for.
constexpr long kMostScoreBlocks = 132;

TILEWISE_HOST_DEVICE inline int64_t floor_over(int64_t value, int64_t step) { return value >= 0 ? value / step : -((-value + step - 1) / step); }
TILEWISE_HOST_DEVICE inline int64_t ceil_over(int64_t value, int64_t step) { return -floor_over(-value, step); }

/// Units of one row of the plan, [first, last).
struct UnitRange {
  int64_t first, last;
};
TILEWISE_HOST_DEVICE inline UnitRange units_of(const AntidiagonalArgs& args, int64_t row) {
  const int64_t step = static_cast<int64_t>(args.stride) * args.kdb;
  const int64_t begin = args.lead == 0 ? row * args.tile : row == 0 ? 0 : args.lead + (row - 1) * args.tile;
  const int64_t past = args.lead == 0 || row > 0 ? begin + args.tile : args.lead, end = past < args.seqlen_q ? past : args.seqlen_q;
  UnitRange range{row == 0 ? floor_over(args.offset, step) : ceil_over(begin + args.offset, step), ceil_over(end + args.offset, step)};
  if (args.is_causal && range.first < 0) range.first = 0;  // tokens before the first key see nothing
  // With kdb > 1 the scored group of the first row may lie wholly before its first token.
  if (range.first * step + args.stride <= begin + args.offset) ++range.first;
  if (range.last < range.first) range.last = range.first;
  return range;
}

/// What a thread block does at a time.
struct ScoreItem {
  int64_t b, row, last_row, first_unit, seen;  // seen: key groups that any of its units sees
  int head, units, steps;  // steps: of 256 key groups

  TILEWISE_HOST_DEVICE ScoreItem(const AntidiagonalArgs& args, int64_t index) {
    const int64_t blocks = args.items / args.batch_heads, of = index % args.batch_heads;
    // The last rows see the most keys: they go first.
    row = (blocks - 1 - index / args.batch_heads) * args.rows_an_item;
    last_row = row + args.rows_an_item < args.rows ? row + args.rows_an_item : args.rows;
    b = of / args.heads;
    head = static_cast<int>(of % args.heads);
    first_unit = units_of(args, row).first;
    units = static_cast<int>(units_of(args, last_row - 1).last - first_unit);
    if (units < 0) units = 0;
    const int64_t last = (first_unit + units - 1) * args.kdb + 1;
    seen = units == 0 ? 0 : args.is_causal && last < args.groups ? last : args.groups;
    steps = static_cast<int>((seen + kGroups - 1) / kGroups);
  }
};

/// Goes through the stages of an item: channels fastest, then the places of a group, then the terms that a key is summed from, then key groups.
struct StageCursor {
  int64_t first_group = 0;
  int channel = 0, t = 0, term = 0;

  template <int kDtype>
  TILEWISE_DEVICE void advance(const AntidiagonalArgs& args) {
    channel += kStageChannels<kDtype>;
    if (channel < args.dim) return;
    channel = 0;
    if (++t < args.stride) return;
    t = 0;
    if (++term < args.terms) return;
    term = 0;
    first_group += kGroups;
  }
  TILEWISE_DEVICE bool is_first() const { return channel == 0 && t == 0 && term == 0; }
  template <int kDtype>
  TILEWISE_DEVICE bool is_last(const AntidiagonalArgs& args) const {
    return channel + kStageChannels<kDtype> >= args.dim && t + 1 == args.stride && term + 1 == args.terms;
  }
};

/// Begins one thread's share of the copies of a stage: units, then key groups, zeros for tokens and channels that there are not.
template <int kDtype>
TILEWISE_DEVICE void load_stage(const AntidiagonalArgs& args, const ScoreItem& item, const StageCursor& at, unsigned char* stage, int thread) {
  constexpr int kBytes = kElementBytes<kDtype>;
  const int place = args.place[at.t], key_place = (at.t + at.term) % args.stride;
  const auto* const q = static_cast<const unsigned char*>(args.q) + (item.b * args.q_batch + item.head * args.q_head) * kBytes;
  const auto* const k = static_cast<const unsigned char*>(args.k) + (item.b * args.k_batch + item.head / args.group * args.k_head) * kBytes;
  const RowsToLoad of_q{q, args.q_token, args.dim, at.channel, args.is_wide}, of_k{k, args.k_token, args.dim, at.channel, args.is_wide};
  load_rows<kDtype, kScoreThreads, kUnits>(of_q, stage, thread, [&](int unit) {
    const int64_t token = (item.first_unit + unit) * args.kdb * args.stride + place - args.offset;
    return unit < item.units && token < args.seqlen_q ? token : -1;
  });
  load_rows<kDtype, kScoreThreads, kGroups>(of_k, stage + kUnits * kRowBytes, thread, [&](int group) {
    const int64_t token = (at.first_group + group) * args.stride + key_place;
    return token < args.seqlen_k ? token : -1;
  });
}

/// Where a thread block keeps what it has of an item.
struct ScorePlace {
  float *sums, *most, *mass;

  TILEWISE_DEVICE ScorePlace(const AntidiagonalArgs& args, int64_t block)
      : sums(args.sums + block * kUnits * args.columns),
        most(args.most + block * args.strips * kUnits),
        mass(args.mass + block * args.strips * kUnits) {}
};

/// What a lane knows of one of its units while a strip is reduced.
struct StripRow {
  float most, mass, part[8];
};

/// Reduces a strip's logits. `first_unit`: the first of the warp's units, counted from the item's.
template <class Block, class Logits, class Rows>
TILEWISE_DEVICE void reduce_strip(Block& block, int warp, const AntidiagonalArgs& args, const ScoreItem& item, const ScorePlace& place,
                                  int64_t first_group, int first_unit, Logits& logits, Rows& rows) {
  const int64_t strip = first_group / kStripGroups;
  const int part = args.part;
  // Key groups [0, limit) of the strip are seen.
  const auto limit_of = [&](int unit) {
    const int64_t own = (item.first_unit + unit) * args.kdb + 1, end = args.is_causal && own < args.groups ? own : args.groups;
    const int64_t limit = end - first_group;
    return limit < 0 ? 0 : limit < kStripGroups ? static_cast<int>(limit) : kStripGroups;
  };
  const bool is_tested = limit_of(first_unit) < kStripGroups;
  const auto add = [](float a, float b) { return a + b; };
  TILEWISE_UNROLL for (int slot = 0; slot < 8; ++slot) {
    const int i = slot / 2, h = slot % 2;
    block.lanes(warp, [&](int thread) {
      const int c = thread % 4, limit = is_tested ? limit_of(first_unit + 16 * i + 8 * h + thread % 32 / 4) : kStripGroups;
      float most = -HUGE_VALF;
      TILEWISE_UNROLL for (int j = 0; j < 8; ++j) {
        TILEWISE_UNROLL for (int e = 0; e < 2; ++e) {
          float& x = logits[thread].at[i][j][2 * h + e];
          if (args.softcap > 0) x = args.softcap * std::tanh(x * args.scale / args.softcap);
          if (is_tested && 8 * j + 2 * c + e >= limit) x = -HUGE_VALF;
          most = x > most ? x : most;
        }
      }
      rows[thread].most = most;
    });
    block.fold_lanes(warp, 4, [&](int thread) -> float& { return rows[thread].most; }, [](float a, float b) { return a > b ? a : b; });
    block.lanes(warp, [&](int thread) {
      StripRow& row = rows[thread];
      row.most *= args.scale_log2;
      const float shift = row.most == -HUGE_VALF ? 0.0f : row.most;
      row.mass = 0;
      TILEWISE_UNROLL for (int j = 0; j < 8; ++j) {
        float pair[2];
        TILEWISE_UNROLL for (int e = 0; e < 2; ++e) pair[e] = std::exp2(logits[thread].at[i][j][2 * h + e] * args.scale_log2 - shift);
        row.part[j] = pair[0] + pair[1];
        row.mass += row.part[j];
        if (part == 1) {  // one group a part: what the lane has is two
          float* const to =
              place.sums + (first_unit + 16 * i + 8 * h + thread % 32 / 4) * args.columns + strip * kStripGroups + 8 * j + 2 * (thread % 4);
          to[0] = pair[0];
          to[1] = pair[1];
        }
      }
      if (part >= 16) {
        TILEWISE_UNROLL for (int j = 0; j < 8; j += 2) row.part[j] += row.part[j + 1];
      }
      if (part >= 32) {
        TILEWISE_UNROLL for (int j = 0; j < 8; j += 4) row.part[j] += row.part[j + 2];
      }
      if (part >= 64) row.part[0] += row.part[4];
    });
    block.fold_lanes(warp, 4, [&](int thread) -> float& { return rows[thread].mass; }, add);
    TILEWISE_UNROLL for (int j = 0; j < 8; ++j) {
      if (part == 1 || (part > 8 && j % (part / 8) != 0)) continue;
      if (part >= 8) {
        block.fold_lanes(warp, 4, [&](int thread) -> float& { return rows[thread].part[j]; }, add);
      } else if (part == 4) {
        block.fold_lanes(warp, 2, [&](int thread) -> float& { return rows[thread].part[j]; }, add);
      }
    }
    block.lanes(warp, [&](int thread) {
      const int c = thread % 4, unit = first_unit + 16 * i + 8 * h + thread % 32 / 4;
      if (part > 1) {
        float* const to = place.sums + unit * args.columns + strip * (kStripGroups / part);
        TILEWISE_UNROLL for (int j = 0; j < 8; ++j) {
          const int group = part >= 8 ? 8 * j : 8 * j + 2 * c;
          const bool is_mine = part >= 8 ? group % part == 0 && j % 4 == c : group % part == 0;
          if (is_mine) to[group / part] = rows[thread].part[j];
        }
      }
      if (c != 0) return;
      place.most[strip * kUnits + unit] = rows[thread].most;
      place.mass[strip * kUnits + unit] = rows[thread].mass;
    });
  }
}

/// Brings an item's strips to one maximum a unit, and adds up units to rows and parts to tiles.
template <class Block>
TILEWISE_DEVICE void write_scores(Block& block, const AntidiagonalArgs& args, const ScoreItem& item, const ScorePlace& place) {
  const int strips = item.steps * kStripsAStep;
  block.each([&](int thread) {
    if (thread >= item.units) return;
    float most = -HUGE_VALF, mass = 0;
    for (int strip = 0; strip < strips; ++strip) {
      const float x = place.most[strip * kUnits + thread];
      most = x > most ? x : most;
    }
    most = most == -HUGE_VALF ? 0.0f : most;
    for (int strip = 0; strip < strips; ++strip) mass += place.mass[strip * kUnits + thread] * std::exp2(place.most[strip * kUnits + thread] - most);
    const float weight = mass > 0 ? 1.0f / mass : mass == 0 ? 0.0f : mass;  // a NaN stays one: the row is then kept whole
    for (int strip = 0; strip < strips; ++strip) {
      float& factor = place.most[strip * kUnits + thread];
      factor = std::exp2(factor - most) * weight;
    }
  });
  const int parts_a_tile = args.tile / args.stride / args.part, parts_a_strip = kStripGroups / args.part;
  float* const scores = args.scores + item.b * args.stride_batch + item.head * args.stride_head;
  block.each([&](int thread) {
    for (int64_t row = item.row; row < item.last_row; ++row) {
      const UnitRange units = units_of(args, row);
      for (int64_t tile = thread; tile < args.tiles; tile += kScoreThreads) {
        float score = 0;
        const int64_t first = tile * parts_a_tile, past = first + parts_a_tile, seen = int64_t{strips} * parts_a_strip,
                      last = past < seen ? past : seen;
        for (int64_t unit = units.first - item.first_unit; unit < units.last - item.first_unit; ++unit) {
          float mass = args.takes_largest ? 0 : score;
          for (int64_t part = first; part < last; ++part)
            mass += place.sums[unit * args.columns + part] * place.most[part / parts_a_strip * kUnits + unit];
          score = args.takes_largest && !(mass > score || mass != mass) ? score : mass;
        }
        scores[row * args.stride_row + tile] = score;
      }
    }
  });
}

/// Block i takes the items i, 2n - 1 - i, 2n + i, ... of n blocks: there and back, so that each has long ones and short ones.
template <int kDtype, class Block>
TILEWISE_DEVICE void antidiagonal_kernel(Block& block, const AntidiagonalArgs& args, int64_t blocks) {
  const ScorePlace place(args, block.index());
  typename Block::template Registers<WarpLogits> logits(block);
  typename Block::template Registers<RowPieces> units(block);
  typename Block::template Registers<ColumnPiece> groups(block);
  typename Block::template Registers<StripRow> rows(block);
  const auto slot = [&](int64_t stage) { return block.shared() + static_cast<unsigned long>(stage % kStages) * kStageBytes; };
  for (int64_t turn = 0; turn * blocks < args.items; ++turn) {
    const int64_t index = turn * blocks + (turn % 2 == 0 ? block.index() : blocks - 1 - block.index());
    if (index >= args.items) continue;
    const ScoreItem item(args, index);
    const int stages_a_step = args.terms * args.stride * ((args.dim + kStageChannels<kDtype> - 1) / kStageChannels<kDtype>);
    const int64_t stages = int64_t{item.steps} * stages_a_step;
    StageCursor ahead, at;
    for (int stage = 0; stage < kStages - 1; ++stage) {
      block.each([&](int thread) {
        if (stage < stages) load_stage<kDtype>(args, item, ahead, slot(stage), thread);
        machine::cuda::commit_copies();
      });
      ahead.template advance<kDtype>(args);
    }
    for (int64_t stage = 0; stage < stages; ++stage) {
      // Behind this barrier the stage is there, and nobody reads the one before: its slot is filled again.
      block.each([&](int) { machine::cuda::wait_copies<kStages - 2>(); });
      block.warps([&](int warp) {
        block.lanes(warp, [&](int thread) {
          if (stage + kStages - 1 < stages) load_stage<kDtype>(args, item, ahead, slot(stage + kStages - 1), thread);
          machine::cuda::commit_copies();
          if (at.is_first()) logits[thread] = WarpLogits{};
        });
        multiply_stage<kDtype, kUnits, kGroups>(block, warp, slot(stage), logits, units, groups);
        if (at.template is_last<kDtype>(args)) {
          reduce_strip(block, warp, args, item, place, at.first_group + warp % kStripsAStep * kStripGroups, warp / kStripsAStep * kWarpRows, logits,
                       rows);
        }
      });
      ahead.template advance<kDtype>(args);
      at.template advance<kDtype>(args);
    }
    block.each([](int) {});  // what warps have kept is there for all
    write_scores(block, args, item, place);
  }
}

}  // namespace tilewise::select::cuda
