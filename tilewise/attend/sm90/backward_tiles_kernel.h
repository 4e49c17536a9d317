// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "tilewise/attend/sm90/backward_steps_args.h"

// First part of the backward's order of work: which tiles of queries and of keys meet, and by which pattern of bits.
namespace tilewise::attend::sm90 {

/// What one reader (lists, orders and mask that heads share) reads in a tile of queries.
class TileReader {
 public:
  enum Meets { kNone, kEvery, kSome };

  TILEWISE_DEVICE TileReader(const StepsArgs& args, int64_t reader, int q_tile) : args_(args) {
    b_ = static_cast<int>(reader / args.reader_groups);
    head_ = static_cast<int>((reader % args.reader_groups * args.heads_q + args.reader_groups - 1) / args.reader_groups);
    class_ = args.head_class[head_ % cuda::kMaskHeads];
    first_ = int64_t{q_tile} * args.tile_q;
    last_ = first_ + args.tile_q < args.slots_q ? first_ + args.tile_q : args.slots_q;
    int64_t low = 0, high = args.rows.rows;  // the first row that ends behind the tile's first query
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (args.rows.last(middle, args.slots_q) > first_) {
        high = middle;
      } else {
        low = middle + 1;
      }
    }
    row_ = low;
  }

  /// Looks at the runs alone: kSome may turn out to be any.
  TILEWISE_DEVICE Meets meets(int key_tile) const {
    const int64_t first_key = int64_t{key_tile} * kKeyTile, past_key = first_key + kKeyTile < args_.slots_k ? first_key + kKeyTile : args_.slots_k;
    const int64_t from = slot_of(first_key), to = slot_of(past_key - 1) + 1;  // of the plan
    const bool is_whole_tile = first_key + kKeyTile <= args_.slots_k_proper;
    bool has_any = false;
    for (int64_t r = row_; r < args_.rows.rows && args_.rows.first(r) < last_; ++r) {
      for (int kind = 0; kind < 3; ++kind) {
        const plan::cuda::RowView runs = plan::cuda::row_of(args_.lists[kind], b_, head_, args_.heads_q, args_.rows.rows, r);
        const int at = runs_before(runs, to) - 1;
        if (at < 0 || stop_of(runs, kind, at) <= from) continue;
        const Meets seen = kind == 1 ? band_meets(from, to) : kEvery;
        if (seen == kNone) continue;
        has_any = true;
        if (seen == kEvery && runs.rows == nullptr && is_plain() && is_whole_tile && runs.start[at] <= from && stop_of(runs, kind, at) >= to &&
            args_.rows.first(r) <= first_ && args_.rows.last(r, args_.slots_q) >= last_) {
          return kEvery;
        }
      }
    }
    return has_any ? kSome : kNone;
  }

  /// Bits of the queries [64 * word, 64 * word + 64) of the tile that read a key slot.
  TILEWISE_DEVICE uint64_t bits(int64_t key_slot, int word) const {
    const int64_t begin = first_ + word * 64, end = begin + 64 < last_ ? begin + 64 : last_;
    if (key_slot >= args_.slots_k || begin >= end || token_of(args_.keys, key_slot % args_.slots_k_proper) < 0) return 0;
    const int64_t slot = slot_of(key_slot);
    const int key = token_of(args_.keys, slot);
    uint64_t bits = 0;
    for (int64_t r = row_; r < args_.rows.rows && args_.rows.first(r) < end; ++r) {
      const int64_t row_first = args_.rows.first(r), row_last = args_.rows.last(r, args_.slots_q);
      const int64_t from = row_first > begin ? row_first : begin, to = row_last < end ? row_last : end;
      if (from >= to) continue;
      for (int kind = 0; kind < 3; ++kind) {
        const plan::cuda::RowView runs = plan::cuda::row_of(args_.lists[kind], b_, head_, args_.heads_q, args_.rows.rows, r);
        const int at = runs_before(runs, slot + 1) - 1;
        if (at < 0 || stop_of(runs, kind, at) <= slot) continue;
        uint64_t mine = range(from - begin, to - begin);
        if (runs.rows != nullptr) mine &= row_bits(runs.rows + int64_t{at} * args_.lists[kind].words, args_.lists[kind].words, begin - row_first);
        bits |= kind == 1 || args_.queries.token != nullptr ? seen(mine, begin, key, kind == 1) : mine;
      }
    }
    return bits;
  }
  /// Those of a tile whose every query reads the key.
  TILEWISE_DEVICE uint64_t all(int word) const {
    const int64_t queries = last_ - first_ - word * 64;
    return range(0, queries < 0 ? 0 : queries < 64 ? queries : 64);
  }

 private:
  TILEWISE_DEVICE static uint64_t range(int64_t from, int64_t to) {  // 0 <= from <= to <= 64
    return (to == 64 ? ~uint64_t{0} : (uint64_t{1} << to) - 1) & ~(from == 64 ? ~uint64_t{0} : (uint64_t{1} << from) - 1);
  }
  /// 64 bits from bit `first` on, which may be negative; bits outside of the words are 0.
  TILEWISE_DEVICE static uint64_t row_bits(const uint64_t* of, int words, int64_t first) {
    const auto word = [&](int64_t i) { return i >= 0 && i < words ? of[i] : uint64_t{0}; };
    const int64_t at = first >= 0 ? first / 64 : -((63 - first) / 64);
    const int64_t shift = first - at * 64;
    return shift == 0 ? word(at) : word(at) >> shift | word(at + 1) << (64 - shift);
  }
  /// The plan's slot of one of the backward's, which repeat a pooled key.
  TILEWISE_DEVICE int64_t slot_of(int64_t key_slot) const {
    const int part = static_cast<int>(key_slot / args_.slots_k_proper);
    return part == 0 ? key_slot : args_.keys.end[part - 1] + key_slot % args_.slots_k_proper / args_.keys.group[part];
  }
  TILEWISE_DEVICE bool is_plain() const { return args_.queries.token == nullptr && args_.keys.token == nullptr; }

  /// Runs that begin before `slot`.
  TILEWISE_DEVICE static int runs_before(const plan::cuda::RowView& runs, int64_t slot) {
    int low = 0, high = runs.count;
    while (low < high) {
      const int middle = (low + high) / 2;
      if (runs.start[middle] < slot) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    return low;
  }
  TILEWISE_DEVICE int64_t stop_of(const plan::cuda::RowView& runs, int kind, int i) const {
    if (runs.stop != nullptr) return runs.stop[i];
    const int64_t start = runs.start[i], stop = start + args_.lists[kind].grain, end = args_.keys.part_end(start);
    return stop < end ? stop : end;
  }
  /// What the mask lets the tile's queries see of keys [from, to) where that is known at once.
  TILEWISE_DEVICE Meets band_meets(int64_t from, int64_t to) const {
    if (args_.form != cuda::bands_form || !is_plain() || args_.keys.parts > 1) return kSome;
    const cuda::Band band = args_.bands[class_];
    const int64_t shift = int64_t{args_.seqlen_k} - args_.seqlen_q, low = first_ + shift, high = last_ - 1 + shift;
    if (from > high + band.right || (from >= band.sink && to <= low - band.left)) return kNone;
    const int64_t hidden_from = from > band.sink ? from : band.sink, hidden_to = to < high - band.left ? to : high - band.left;
    return to - 1 <= low + band.right && hidden_from >= hidden_to ? kEvery : kSome;
  }
  /// Of the queries whose bits count from slot `begin`, those that see a key token; without asking the mask those that are no padding.
  TILEWISE_DEVICE uint64_t seen(uint64_t bits, int64_t begin, int key, bool asks) const {
    const bool is_grid = args_.form == cuda::grids_form;
    uint64_t result = 0;
    for (int i = 0; i < 64; ++i) {
      if ((bits >> i & 1) == 0) continue;
      const int query = args_.queries.token == nullptr ? static_cast<int>(begin) + i : token_of(args_.queries, begin + i);
      const bool is_seen =
          query >= 0 &&
          (!asks || (is_grid ? cuda::grid_sees(args_, class_, query, key) : cuda::ranges_of_query(args_, class_, b_, query).holds(key)));
      if (is_seen) result |= uint64_t{1} << i;
    }
    return result;
  }
  /// -1: padding. A pooled key counts as the largest token that it holds.
  TILEWISE_DEVICE int token_of(const plan::cuda::AxisView& axis, int64_t slot) const {
    const int32_t* const of =
        axis.token == nullptr
            ? nullptr
            : axis.token +
                  (int64_t{axis.batch == 1 ? 0 : b_} * axis.groups + static_cast<int64_t>(head_) * axis.groups / args_.heads_q) * axis.end[0];
    const int part = axis.part_of(slot);
    if (part == 0) return of == nullptr ? static_cast<int>(slot) : of[slot];
    const int64_t first = (slot - axis.end[part - 1]) * axis.group[part];
    const int64_t past = first + axis.group[part] < axis.end[0] ? first + axis.group[part] : axis.end[0];
    if (of == nullptr) return static_cast<int>(past - 1);
    int largest = -1;
    for (int64_t member = first; member < past; ++member) largest = of[member] > largest ? of[member] : largest;
    return largest;
  }

  const StepsArgs& args_;
  int b_, head_, class_;
  int64_t first_, last_, row_;
};

struct TilesParts {
  uint64_t* bits;            // [kKeyTile][2]
  unsigned long long* hash;  // [2]
  unsigned int* live;        // [4]
  int* some;                 // [kTilesThreads]: tiles of keys that need a pattern
  int *number, *place, *is_new;

  TILEWISE_HOST_DEVICE explicit TilesParts(machine::cuda::SharedParts& parts)
      : bits(parts.take<uint64_t>(2 * kKeyTile)),
        hash(parts.take<unsigned long long>(2)),
        live(parts.take<unsigned int>(4)),
        some(parts.take<int>(kTilesThreads)),
        number(parts.take<int>(1)),
        place(parts.take<int>(1)),
        is_new(parts.take<int>(1)) {}
};

inline unsigned long tiles_shared_bytes() {
  machine::cuda::SharedParts parts(nullptr);
  TilesParts{parts};
  return parts.bytes();
}
inline long tiles_blocks(const StepsArgs& args) { return static_cast<long>(args.readers() * args.q_tiles); }

/// From splitmix64: every bit of the result hangs on every bit of `x`.
TILEWISE_DEVICE inline uint64_t mixed(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

/// The place of the pattern in shared memory, in a table whose places are taken once and for all: 128 bits of hash stand for the pattern.
template <class Block>
TILEWISE_DEVICE void find_place(Block& block, const StepsArgs& args, const TilesParts& at) {
  constexpr int64_t kProbes = 4096;  // a table that is 2/3 full never needs so many
  block.each([&](int thread) {
    if (thread != 0) return;
    const unsigned long long hash[2] = {at.hash[0] | 1, at.hash[1] | 1};
    const auto places = static_cast<unsigned long long>(args.room.patterns);
    unsigned long long place = places == 0 ? 0 : hash[0] / 2 % places;
    *at.place = -1;
    *at.is_new = 0;
    for (int64_t probe = 0; probe < kProbes && probe < args.room.patterns; ++probe) {
      const unsigned long long first = block.claim(&args.known[2 * place], hash[0]);
      if (first == 0 || first == hash[0]) {
        // Two patterns may share the first half of a hash: the place is of the one that sets the second.
        const unsigned long long second = block.claim(&args.known[2 * place + 1], hash[1]);
        if (second == 0 || second == hash[1]) {
          *at.place = static_cast<int>(place);
          *at.is_new = second == 0 ? 1 : 0;
          return;
        }
      }
      place = place + 1 == places ? 0 : place + 1;
    }
    block.max(&args.status[kPatternsOutgrown], 1ull);
  });
}

/// A block a tile of queries of a reader.
template <class Block>
TILEWISE_DEVICE void tiles_kernel(Block& block, const StepsArgs& args) {
  machine::cuda::SharedParts parts(block.shared());
  const TilesParts at(parts);
  const int64_t reader = block.index() / args.q_tiles;
  const int q_tile = static_cast<int>(block.index() % args.q_tiles), words = args.words();
  const TileReader rows(args, reader, q_tile);
  for (int first = 0; first < args.key_tiles; first += kTilesThreads) {
    block.each([&](int thread) {
      if (thread == 0) *at.number = 0;
    });
    block.each([&](int thread) {
      const int key_tile = first + thread;
      if (key_tile >= args.key_tiles) return;
      const TileReader::Meets meets = rows.meets(key_tile);
      if (meets == TileReader::kEvery) args.cell[(reader * args.key_tiles + key_tile) * args.q_tiles + q_tile] = BackwardStep::kEvery + 1;
      if (meets != TileReader::kSome) return;
      at.some[block.add(at.number, 1)] = key_tile;
    });
    const int number = block.get(*at.number);
    for (int i = 0; i < number; ++i) {
      const int key_tile = block.get(at.some[i]);
      const int64_t list = reader * args.key_tiles + key_tile;
      const bool is_any = block.any([&](int thread) {
        uint64_t any = 0;
        for (int word = 0; word < words; ++word) any |= at.bits[thread * words + word] = rows.bits(int64_t{key_tile} * kKeyTile + thread, word);
        if (thread < 4) at.live[thread] = 0;
        if (thread < 2) at.hash[thread] = 0;
        return any != 0;
      });
      if (!is_any) continue;
      const bool is_some = block.any([&](int thread) {
        uint64_t any = 0, hash[2] = {static_cast<uint64_t>(thread) + 1, static_cast<uint64_t>(thread) + 1001};
        bool is_all = true;
        for (int word = 0; word < words; ++word) {
          const uint64_t bits = at.bits[thread * words + word];
          any |= bits;
          is_all = is_all && bits == rows.all(word);
          for (uint64_t& of : hash) of = mixed(of * 0x9e3779b97f4a7c15u + bits);
        }
        if (any != 0) block.unite(&at.live[thread / 32], 1u << (thread % 32));
        for (int half = 0; half < 2; ++half) block.add(&at.hash[half], static_cast<unsigned long long>(mixed(hash[half])));
        return !is_all;
      });
      if (!is_some) {
        block.each([&](int thread) {
          if (thread == 0) args.cell[list * args.q_tiles + q_tile] = BackwardStep::kEvery + 1;
        });
        continue;
      }
      find_place(block, args, at);
      block.each([&](int thread) {
        if (thread < 4) block.unite(&args.live[list * 4 + thread], at.live[thread]);
        if (thread == 0 && *at.place >= 0) args.cell[list * args.q_tiles + q_tile] = static_cast<uint32_t>(*at.place) + 1;
        if (*at.is_new == 0) return;
        for (int word = 0; word < words; ++word) {
          args.patterns[(int64_t{*at.place} * kKeyTile + thread) * words + word] = at.bits[thread * words + word];
        }
      });
    }
  }
}

struct ListParts {
  int *sum, *sums, *last, *before;  // last: first and last tile; before: meetings before the two tiles where an item may begin
  int* has_every;

  TILEWISE_HOST_DEVICE explicit ListParts(machine::cuda::SharedParts& parts)
      : sum(parts.take<int>(kListThreads)),
        sums(parts.take<int>(machine::cuda::sums_ints(kListThreads))),
        last(parts.take<int>(2)),
        before(parts.take<int>(2)),
        has_every(parts.take<int>(1)) {}
};
inline unsigned long list_shared_bytes() {
  machine::cuda::SharedParts parts(nullptr);
  ListParts{parts};
  return parts.bytes();
}

/// A block a tile of keys of a reader: the tiles of queries that meet it, ascending, and where its items begin.
template <class Block>
TILEWISE_DEVICE void lists_kernel(Block& block, const StepsArgs& args) {
  constexpr int kMine = 4;
  machine::cuda::SharedParts parts(block.shared());
  const ListParts at(parts);
  const int64_t list = block.index();
  const int key_tile = static_cast<int>(list % args.key_tiles), q_tiles = args.q_tiles;
  const uint32_t* const cells = args.cell + list * q_tiles;
  uint64_t* const meetings = args.meeting + list * q_tiles;
  // Where the list has no holes, two query tiles a tile of keys apart and in order: items that begin together then never meet. Else closer, so that
  // what runs at once stays in L2: chance and the choice among the next tiles keep them apart.
  const int begins[2] = {q_tiles == 0 ? 0 : static_cast<int>(2 * int64_t{key_tile} % q_tiles),
                         static_cast<int>(int64_t{key_tile} * q_tiles / (4 * int64_t{args.key_tiles}))};
  block.each([&](int thread) {
    if (thread < 2) at.before[thread] = at.last[thread] = 0;
    if (thread == 0) *at.has_every = 0;
  });
  int count = 0;
  for (int first = 0; first < q_tiles; first += kMine * kListThreads) {
    block.each([&](int thread) {
      int mine = 0;
      bool has_every = false;
      for (int i = 0; i < kMine; ++i) {
        const int tile = first + thread * kMine + i;
        if (tile >= q_tiles || cells[tile] == 0) continue;
        ++mine;
        has_every = has_every || cells[tile] == BackwardStep::kEvery + 1;
      }
      if (has_every) block.max(at.has_every, 1);
      at.sum[thread] = mine;
    });
    const int here = machine::cuda::exclusive_sums(block, at.sum, at.sums);
    block.each([&](int thread) {
      int next = count + at.sum[thread], largest = 0;
      for (int i = 0; i < kMine; ++i) {
        const int tile = first + thread * kMine + i;
        if (tile >= q_tiles) continue;
        for (int of = 0; of < 2; ++of) {
          if (tile == begins[of]) at.before[of] = next;
        }
        if (cells[tile] == 0) continue;
        meetings[next++] = static_cast<uint64_t>(tile) | static_cast<uint64_t>(cells[tile] - 1) << 32;
        if (next == 1) at.last[0] = tile;
        largest = tile;
      }
      if (largest > 0) block.max(&at.last[1], largest);
    });
    count += here;
  }
  block.each([&](int thread) {
    if (thread < 4 && *at.has_every != 0) args.live[list * 4 + thread] = ~0u;
    if (thread != 0) return;
    const bool is_whole = count > 0 && at.last[1] - at.last[0] + 1 == count;
    const int before = at.before[is_whole ? 0 : 1];
    args.list[list] = {count, before < count ? before : 0, is_whole ? 1 : 0};
  });
}

}  // namespace tilewise::attend::sm90
