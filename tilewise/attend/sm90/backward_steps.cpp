// SPDX-License-Identifier: Apache-2.0
#include "tilewise/attend/sm90/backward_steps.h"

#include <algorithm>
#include <array>
#include <functional>
#include <map>
#include <queue>
#include <string_view>
#include <unordered_map>
#include <utility>

#include "tilewise/plan/mask.h"
#include "tilewise/plan/mask_rule.h"
#include "tilewise/plan/rows.h"

namespace tilewise::attend::sm90 {
namespace {

// A query tile that meets a key tile.
struct Meeting {
  uint32_t tile, pattern;
};

// What one combination of lists and mask reads, by key tile.
struct Reader {
  int64_t b;
  int head;
  std::vector<int64_t> first;  // [key tiles + 1]
  std::vector<Meeting> meetings;  // by key tile, query tiles ascending
  std::vector<std::array<uint64_t, 2>> live;  // [key tiles]
};

// Patterns, each once.
class Patterns {
 public:
  explicit Patterns(size_t words) : words_(words) {}
  uint32_t add(const std::vector<uint64_t>& bits) {
    const std::string_view bytes(reinterpret_cast<const char*>(bits.data()), bits.size() * sizeof(uint64_t));
    std::vector<uint32_t>& alike = by_hash_[std::hash<std::string_view>()(bytes)];
    for (const uint32_t at : alike) {
      if (std::equal(bits.begin(), bits.end(), all.begin() + static_cast<int64_t>(at * words_))) return at;
    }
    const auto at = static_cast<uint32_t>(all.size() / words_);
    check(at < BackwardStep::kEvery, Error::Kind::unsupported, "attend_backward: sm90: the plan has more than ", BackwardStep::kEvery,
          " tiles that differ in their pairs; give runs that are multiples of 64 queries and ", kKeyTile, " keys");
    alike.push_back(at);
    all.insert(all.end(), bits.begin(), bits.end());
    return at;
  }
  std::vector<uint64_t> all;

 private:
  size_t words_;
  std::unordered_map<size_t, std::vector<uint32_t>> by_hash_;
};

// The pairs of one query tile while they are gathered.
class TileRow {
 public:
  TileRow(const PlanData& plan, int tile_q, int64_t key_tiles) : plan_(plan), words_(tile_q / 64), place_(static_cast<size_t>(key_tiles), -1) {}

  void start(int64_t first, int64_t last) {
    for (const Part& part : parts_) place_[static_cast<size_t>(part.key_tile)] = -1;
    parts_.clear();
    first_ = first;
    last_ = last;
  }
  // Queries [first, last) of a row, those with a bit, read the keys [start, stop).
  void add(const Reader& reader, const plan::Runs& runs, int i, int64_t row_first, int64_t first, int64_t last, int64_t start, int64_t stop,
           bool is_tested) {
    for (int64_t key_tile = start / kKeyTile; key_tile * kKeyTile < stop; ++key_tile) {
      const int64_t from = std::max(start, key_tile * kKeyTile), to = std::min(stop, (key_tile + 1) * kKeyTile);
      const bool asks = is_tested && !plan::sees_all(plan_, reader.b, reader.head, first, last, from, to);
      Part& part = at(key_tile);
      if (!asks && runs.rows == nullptr && first == first_ && last == last_ && to - from == kKeyTile) {
        part.is_every = true;
        continue;
      }
      if (part.bits.empty()) part.bits.assign(static_cast<size_t>(kKeyTile * words_), 0);
      for (int64_t query = first; query < last; ++query) {
        if (!plan::reads(runs, i, query - row_first)) continue;
        const auto set = [&](int64_t key) {
          part.bits[static_cast<size_t>((key - key_tile * kKeyTile) * words_ + (query - first_) / 64)] |= uint64_t{1} << ((query - first_) % 64);
        };
        if (!asks) {
          for (int64_t key = from; key < to; ++key) set(key);
        } else if (!plan_.mask.grids.empty()) {
          for (int64_t key = from; key < to; ++key) {
            if (plan::sees(plan_, reader.b, reader.head, query, key)) set(key);
          }
        } else {
          const plan::VisibleKeys seen =
              plan::visible_keys(plan_.mask, reader.head, reader.b, query, plan_.seqlen_k - plan_.seqlen_q, plan_.seqlen_k);
          for (size_t range = 0; range < 2; ++range) {
            for (int64_t key = std::max(from, seen.start[range]); key < std::min(to, seen.stop[range]); ++key) set(key);
          }
        }
      }
    }
  }
  // Appends what has a pair: (key tile, pattern).
  void finish(Patterns& patterns, std::vector<std::array<uint64_t, 2>>& live, std::vector<std::pair<uint32_t, uint32_t>>& out) {
    std::sort(parts_.begin(), parts_.end(), [](const Part& a, const Part& b) { return a.key_tile < b.key_tile; });
    for (Part& part : parts_) {
      auto& of_tile = live[static_cast<size_t>(part.key_tile)];
      bool is_any = part.is_every, is_every = part.is_every;
      if (is_every) {
        of_tile = {~uint64_t{0}, ~uint64_t{0}};
      } else {
        is_every = true;
        for (int64_t key = 0; key < kKeyTile; ++key) {
          uint64_t any = 0;
          for (int64_t word = 0; word < words_; ++word) {
            const int64_t queries = std::clamp<int64_t>(last_ - first_ - word * 64, 0, 64);
            const uint64_t all = queries == 64 ? ~uint64_t{0} : (uint64_t{1} << queries) - 1;
            const uint64_t bits = part.bits[static_cast<size_t>(key * words_ + word)];
            any |= bits;
            is_every = is_every && bits == all;
          }
          if (any != 0) of_tile[static_cast<size_t>(key / 64)] |= uint64_t{1} << (key % 64);
          is_any = is_any || any != 0;
        }
      }
      if (is_any) out.emplace_back(static_cast<uint32_t>(part.key_tile), is_every ? BackwardStep::kEvery : patterns.add(part.bits));
    }
  }

 private:
  struct Part {
    int64_t key_tile;
    bool is_every = false;
    std::vector<uint64_t> bits;
  };
  Part& at(int64_t key_tile) {
    int& place = place_[static_cast<size_t>(key_tile)];
    if (place < 0) {
      place = static_cast<int>(parts_.size());
      parts_.push_back({.key_tile = key_tile, .is_every = false, .bits = {}});
    }
    return parts_[static_cast<size_t>(place)];
  }

  const PlanData& plan_;
  int64_t words_, first_ = 0, last_ = 0;
  std::vector<int> place_;
  std::vector<Part> parts_;
};

void read_plan(const PlanData& plan, int tile_q, int64_t q_tiles, int64_t key_tiles, Patterns& patterns, Reader& reader, const Context& context) {
  const Lists& lists = plan.by_query;
  const std::array<const RunList*, 3> kinds{&lists.whole, &lists.masked, &lists.picked};
  const int64_t rows = plan::num_rows(lists, plan.seqlen_q);
  TileRow tile(plan, tile_q, key_tiles);
  reader.live.assign(static_cast<size_t>(key_tiles), {0, 0});
  std::vector<int64_t> end_of_tile;
  std::vector<std::pair<uint32_t, uint32_t>> by_query;  // key tile, pattern
  int64_t row = 0;
  for (int64_t t = 0; t < q_tiles; ++t) {
    if (t % 64 == 0) context.check_cancel();
    const int64_t first = t * tile_q, last = std::min<int64_t>(plan.seqlen_q, first + tile_q);
    tile.start(first, last);
    while (row < rows && plan::row_last(lists, row, plan.seqlen_q) <= first) ++row;
    for (int64_t r = row; r < rows && plan::row_first(lists, r) < last; ++r) {
      const int64_t row_first = plan::row_first(lists, r), from = std::max(first, row_first);
      const int64_t to = std::min(last, plan::row_last(lists, r, plan.seqlen_q));
      if (from >= to) continue;
      for (size_t kind = 0; kind < 3; ++kind) {
        const plan::Runs runs = plan::runs_of(*kinds[kind], reader.b, reader.head, plan.heads_q, r);
        for (int i = 0; i < runs.count; ++i) {
          const int64_t stop = plan::run_stop(runs, i, kinds[kind]->grain, plan.seqlen_k);
          if (runs.start[i] < stop) tile.add(reader, runs, i, row_first, from, to, runs.start[i], stop, kind == 1);
        }
      }
    }
    tile.finish(patterns, reader.live, by_query);
    end_of_tile.push_back(static_cast<int64_t>(by_query.size()));
  }
  // By key tile: a counting sort, which keeps the query tiles ascending.
  reader.first.assign(static_cast<size_t>(key_tiles) + 1, 0);
  for (const auto& [key_tile, pattern] : by_query) ++reader.first[key_tile + 1];
  for (size_t i = 0; i < static_cast<size_t>(key_tiles); ++i) reader.first[i + 1] += reader.first[i];
  std::vector<int64_t> next(reader.first.begin(), reader.first.end() - 1);
  reader.meetings.resize(by_query.size());
  int64_t at = 0;
  for (int64_t t = 0; t < q_tiles; ++t) {
    for (; at < end_of_tile[static_cast<size_t>(t)]; ++at) {
      const auto& [key_tile, pattern] = by_query[static_cast<size_t>(at)];
      reader.meetings[static_cast<size_t>(next[key_tile]++)] = {static_cast<uint32_t>(t), pattern};
    }
  }
}

// Index of the reader of each (b, head): those that read the same lists under the same mask share one.
std::vector<size_t> find_readers(const PlanData& plan, std::vector<Reader>& readers) {
  std::map<std::vector<int64_t>, size_t> known;
  std::vector<size_t> of;
  for (int64_t b = 0; b < plan.batch; ++b) {
    for (int head = 0; head < plan.heads_q; ++head) {
      std::vector<int64_t> key{plan::head_class(plan.mask, head), 0};
      if (plan.mask.spans.has_value() && plan.mask.spans.dim(1) > 1) key[1] = b;
      for (const RunList* list : {&plan.by_query.whole, &plan.by_query.masked, &plan.by_query.picked}) {
        if (!list->has_runs()) continue;
        for (const TensorView* view : {&list->begin, &list->count}) {
          key.push_back(plan::batch_index(*view, b));
          key.push_back(plan::group_index(*view, head, plan.heads_q));
        }
      }
      const auto [at, is_new] = known.emplace(std::move(key), readers.size());
      if (is_new) readers.push_back({.b = b, .head = head, .first = {}, .meetings = {}, .live = {}});
      of.push_back(at->second);
    }
  }
  return of;
}

// How many steps should pass before another item adds to the dq of a query tile: a sum takes about one to arrive and to be known.
constexpr int32_t kGap = 2;
// From how many of its next query tiles an item chooses for that.
constexpr int kAhead = 32;

// An item while thread blocks are given theirs: it stands at one of its steps.
struct Walk {
  BackwardItem item;
  int32_t at = 0;                                        // steps done
  int32_t member = -1, index = 0, count = 0, begin = 0;  // of the member's meetings, beginning with the `begin`th and going round
  const Meeting* meetings = nullptr;
  std::array<Meeting, kAhead> ahead{};
  int num_ahead = 0;
  bool is_whole = false;

  void fill() {
    for (; num_ahead < kAhead && index < count; ++index) ahead[num_ahead++] = meetings[begin + index < count ? begin + index : begin + index - count];
  }
  // Of a list without holes the next, else the first whose tile has rested, or the one that has rested longest. `last`: when each tile was met, of the member's head.
  Meeting take(const int32_t* last, int32_t time) {
    int best = 0;
    for (int i = 0; i < num_ahead && !is_whole; ++i) {
      if (time - last[ahead[i].tile] >= kGap) {
        best = i;
        break;
      }
      if (last[ahead[i].tile] < last[ahead[best].tile]) best = i;
    }
    const Meeting chosen = ahead[best];
    --num_ahead;
    for (int i = best; i < num_ahead; ++i) ahead[i] = ahead[i + 1];
    return chosen;
  }
};

}  // namespace

BackwardSteps make_backward_steps(const PlanData& plan, int heads_kv, int tile_q, int thread_blocks, const Context& context) {
  const int64_t q_tiles = (plan.seqlen_q + tile_q - 1) / tile_q, key_tiles = (plan.seqlen_k + kKeyTile - 1) / kKeyTile;
  const int group = plan.heads_q / heads_kv;
  const auto fits = [](int64_t value, int bits, const char* what) {
    check(value <= int64_t{1} << bits, Error::Kind::unsupported, "attend_backward: sm90: ", value, " ", what, ", takes at most ", int64_t{1} << bits);
  };
  fits(q_tiles, BackwardStep::kTileBits, "tiles of queries");
  fits(key_tiles, BackwardStep::kRankBits, "tiles of keys");
  fits(group, BackwardStep::kMemberBits, "query heads to a head of k");
  BackwardSteps result;
  result.tile_q = tile_q;
  Patterns patterns(static_cast<size_t>(kKeyTile * tile_q / 64));
  std::vector<Reader> readers;
  const std::vector<size_t> reader_of = find_readers(plan, readers);
  for (Reader& reader : readers) read_plan(plan, tile_q, q_tiles, key_tiles, patterns, reader, context);
  result.patterns = std::move(patterns.all);

  // Items: within sections of heads whose queries, gradients and sums fit L2 together, the longest first.
  const int64_t head_bytes = std::max<int64_t>(1, plan.seqlen_q) * 8 * (tile_q == 128 ? 64 : 128), heads = plan.batch * heads_kv;
  const int64_t section = std::clamp<int64_t>((int64_t{1} << 25) / head_bytes, 1, std::max<int64_t>(1, heads));
  std::vector<BackwardItem> items;
  for (int64_t first = 0; first < heads; first += section) {
    const auto begin = static_cast<int64_t>(items.size());
    for (int64_t head = first; head < std::min(heads, first + section); ++head) {
      for (int64_t key_tile = 0; key_tile < key_tiles; ++key_tile) {
        BackwardItem item{.batch = static_cast<int32_t>(head / heads_kv),
                          .head_kv = static_cast<int32_t>(head % heads_kv),
                          .key_tile = static_cast<int32_t>(key_tile),
                          .steps = 0,
                          .first_step = 0,
                          .live = {0, 0}};
        int64_t steps = 0;
        for (int member = 0; member < group; ++member) {
          const Reader& reader = readers[reader_of[static_cast<size_t>(head * group + member)]];
          steps += reader.first[static_cast<size_t>(key_tile) + 1] - reader.first[static_cast<size_t>(key_tile)];
          for (size_t word = 0; word < 2; ++word) item.live[word] |= reader.live[static_cast<size_t>(key_tile)][word];
        }
        for (int64_t key = plan.seqlen_k - key_tile * kKeyTile; key < kKeyTile; ++key) item.live[key / 64] |= uint64_t{1} << (key % 64);
        fits(steps, 30, "steps of a tile of keys");
        item.steps = static_cast<int32_t>(steps);
        items.push_back(item);
      }
    }
    // By coarse lengths: items whose keys are neighbours meet the same queries at about the same time, which then lie in L2.
    int32_t longest = 0;
    for (auto item = items.begin() + begin; item != items.end(); ++item) longest = std::max(longest, item->steps);
    const int32_t unit = longest / 8 + 1;
    std::stable_sort(items.begin() + begin, items.end(),
                     [unit](const BackwardItem& a, const BackwardItem& b) { return (a.steps + unit / 2) / unit > (b.steps + unit / 2) / unit; });
  }

  // Thread blocks: each item to the one that is free first, by a clock of steps.
  constexpr int64_t kItemCost = 2;  // steps that the beginning and the end of an item take
  using Free = std::pair<int64_t, int>;
  std::priority_queue<Free, std::vector<Free>, std::greater<>> free;
  for (int block = 0; block < thread_blocks; ++block) free.emplace(0, block);
  std::vector<std::vector<std::pair<int64_t, int64_t>>> of_block(static_cast<size_t>(thread_blocks));  // start, item
  int64_t end = 0;
  for (size_t i = 0; i < items.size(); ++i) {
    const auto [start, block] = free.top();
    free.pop();
    of_block[static_cast<size_t>(block)].emplace_back(start, static_cast<int64_t>(i));
    free.emplace(start + items[i].steps + kItemCost, block);
    end = std::max(end, start + items[i].steps);
  }
  int64_t total = 0;
  for (const auto& mine : of_block) {
    result.first_item.push_back(static_cast<int32_t>(result.items.size()));
    for (const auto& [start, i] : mine) {
      result.items.push_back(items[static_cast<size_t>(i)]);
      result.items.back().first_step = total;
      total += result.items.back().steps;
    }
  }
  result.first_item.push_back(static_cast<int32_t>(result.items.size()));
  result.steps.resize(static_cast<size_t>(total));

  // Steps: by that clock, thread blocks in turn. An item begins at the queries that lie where its keys do, and goes round: items that run at once
  // then meet different query tiles.
  std::vector<uint16_t> ranks(static_cast<size_t>(plan.batch * plan.heads_q * q_tiles), 0);
  std::vector<int32_t> last_met(ranks.size(), -kGap);
  std::vector<size_t> number(of_block.size(), 0);
  std::vector<Walk> walks(of_block.size());
  for (int64_t time = 0; time < end; ++time) {
    if (time % 1024 == 0) context.check_cancel();
    for (size_t block = 0; block < of_block.size(); ++block) {
      Walk& walk = walks[block];
      const auto& mine = of_block[block];
      while (number[block] < mine.size() && (walk.meetings == nullptr || walk.at == walk.item.steps)) {  // on to the next item
        if (walk.meetings != nullptr) ++number[block];
        if (number[block] == mine.size()) break;
        walk = {};
        walk.item = result.items[static_cast<size_t>(result.first_item[block]) + number[block]];
        static constexpr Meeting kNone{};
        walk.meetings = &kNone;
      }
      if (number[block] >= mine.size() || time < mine[number[block]].first) continue;
      walk.fill();
      while (walk.num_ahead == 0) {  // on to the next head
        ++walk.member;
        const int64_t head = walk.item.head_kv * group + walk.member;
        const Reader& reader = readers[reader_of[static_cast<size_t>(walk.item.batch * plan.heads_q + head)]];
        const auto tile = static_cast<size_t>(walk.item.key_tile);
        walk.meetings = reader.meetings.data() + reader.first[tile];
        walk.count = static_cast<int32_t>(reader.first[tile + 1] - reader.first[tile]);
        walk.index = 0;
        // Where the list has no holes, two query tiles a tile of keys apart and in order: items that begin together then never meet. Else closer, so that
        // what runs at once stays in L2: chance and the choice among the next tiles keep them apart.
        walk.is_whole = walk.count > 0 && walk.meetings[walk.count - 1].tile - walk.meetings[0].tile + 1 == static_cast<uint32_t>(walk.count);
        const auto beside =
            static_cast<uint32_t>(walk.is_whole ? 2 * int64_t{walk.item.key_tile} % q_tiles : walk.item.key_tile * q_tiles / (4 * key_tiles));
        walk.begin = static_cast<int32_t>(
            std::lower_bound(walk.meetings, walk.meetings + walk.count, beside, [](const Meeting& m, uint32_t at) { return m.tile < at; }) -
            walk.meetings);
        walk.fill();
      }
      const int64_t head = walk.item.batch * int64_t{plan.heads_q} + walk.item.head_kv * group + walk.member;
      const Meeting meeting = walk.take(last_met.data() + head * q_tiles, static_cast<int32_t>(time));
      const auto number_of_tile = static_cast<size_t>(head * q_tiles + meeting.tile);
      last_met[number_of_tile] = static_cast<int32_t>(time);
      result.steps[static_cast<size_t>(walk.item.first_step + walk.at)] =
          BackwardStep{
              .tile = meeting.tile, .rank = ranks[number_of_tile]++, .member = static_cast<uint32_t>(walk.member), .pattern = meeting.pattern}
              .pack();
      ++walk.at;
    }
  }
  return result;
}

}  // namespace tilewise::attend::sm90
