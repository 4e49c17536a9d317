// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "tilewise/attend/sm90/backward_steps_args.h"

// Last part of the backward's order of work: in which order an item meets its tiles of queries, and the rank of each meeting among those of its query tile.
namespace tilewise::attend::sm90 {

constexpr int32_t kNever = 0x7fffffff;
/// How many steps should pass before another item adds to the dq of a query tile: a sum takes about one to arrive and to be known.
constexpr int32_t kGap = 2;
/// From how many of its next query tiles an item chooses for that, at most; and how often it takes note of more.
constexpr int kAhead = 32, kFillEvery = 8;
/// How often an item chooses again at one time where others want the same, and items of a thread block that are looked up at once.
constexpr int kRounds = 8, kLookedUp = 8;

/// An item of the head that is walked: its meetings, and when it begins with them.
struct WalkItem {
  int64_t step;  // where the first is written
  int32_t list, start;
  MeetingList meetings;
};

struct WalkParts {
  uint64_t* ahead;  // [kAhead][threads]: a ring of the next meetings of each thread block's item
  WalkItem* items;  // [kLookedUp][threads]: the thread block's next items of this head
  int64_t* step;  // where the next step is written
  int *next_item, *last_item;  // of the thread block's items, the first that has not been looked up; past the last
  int *used, *looked_up;  // of `items`
  int *start, *count, *done;  // when the item begins with this head's meetings, how many they are, how many are done
  int *noted, *head, *num;  // noted: meetings that came into the ring or are on their way; num: are there
  int *choice, *tile, *state;
  int *last, *rank, *claim;  // of the query tiles, where they fit: when it was met last, meetings so far, who wants it at this time
  int* shared;

  TILEWISE_HOST_DEVICE WalkParts(machine::cuda::SharedParts& parts, int threads, int tiles) {
    ahead = parts.take<uint64_t>(long{kAhead} * threads);
    items = parts.take<WalkItem>(long{kLookedUp} * threads);
    step = parts.take<int64_t>(threads);
    for (int** of : {&next_item, &last_item, &used, &looked_up, &start, &count, &done, &noted, &head, &num, &choice, &tile, &state})
      *of = parts.take<int>(threads);
    for (int** of : {&last, &rank, &claim}) *of = parts.take<int>(tiles);
    shared = parts.take<int>(1);
  }
};

inline int walk_threads(const StepsArgs& args) { return (args.thread_blocks + 31) / 32 * 32; }
inline unsigned long walk_shared_bytes(const StepsArgs& args) {
  machine::cuda::SharedParts parts(nullptr);
  WalkParts(parts, walk_threads(args), args.tile_state == nullptr ? args.q_tiles : 0);
  return parts.bytes();
}
inline long walk_blocks(const StepsArgs& args) { return long{args.batch} * args.heads_q; }

/// The meetings of one head of q, while the clock runs: a thread stands for a thread block of the backward.
template <class Block>
class Walk {
 public:
  TILEWISE_DEVICE Walk(Block& block, const StepsArgs& args, const WalkParts& at) : block_(block), args_(args), at_(at) {
    const auto of = static_cast<int>(block.index());
    b_ = of / args.heads_q;
    head_ = of % args.heads_q;
    group_ = args.heads_q / args.heads_kv;
    head_kv_ = head_ / group_;
  }

  TILEWISE_DEVICE void run() {
    block_.each([&](int thread) {
      for (int tile = thread; tile < args_.q_tiles; tile += block_.threads()) {
        at_.last[tile] = -kGap;
        at_.rank[tile] = 0;
        at_.claim[tile] = kNever;
      }
      at_.start[thread] = kNever;
      at_.count[thread] = at_.done[thread] = at_.num[thread] = at_.noted[thread] = at_.used[thread] = at_.looked_up[thread] = 0;
      at_.next_item[thread] = at_.last_item[thread] = 0;
      if (thread >= args_.thread_blocks) return;
      at_.next_item[thread] = args_.first_item[thread];
      at_.last_item[thread] = args_.first_item[thread + 1];
      advance(thread);
      fill(thread);
    });
    for (int time = first_start(), tick = 1; time != kNever; ++tick) time = step(time, tick) ? time + 1 : first_start();
  }

 private:
  enum State { kIdle, kClaims, kForced };

  TILEWISE_DEVICE int first_start() {
    block_.each([&](int thread) {
      if (thread == 0) *at_.shared = kNever;
      block_.wait_for_copies();
      at_.num[thread] = at_.noted[thread] - at_.done[thread];
    });
    block_.each([&](int thread) {
      if (at_.start[thread] != kNever) block_.min(at_.shared, at_.start[thread]);
    });
    return block_.get(*at_.shared);
  }

  TILEWISE_DEVICE WalkItem& item(int thread) const { return at_.items[at_.used[thread] * block_.threads() + thread]; }

  /// The thread block's next items that have meetings with this head.
  TILEWISE_DEVICE void look_up(int thread) const {
    const int section = (b_ * args_.heads_kv + head_kv_) / args_.section;
    int i = at_.next_item[thread], found = 0;
    for (; i < at_.last_item[thread] && found < kLookedUp; ++i) {
      const BackwardItem& item = args_.items[i];
      if ((item.batch * args_.heads_kv + item.head_kv) / args_.section > section) {  // items lie by sections
        i = at_.last_item[thread];
        break;
      }
      if (item.batch != b_ || item.head_kv != head_kv_) continue;
      int before = 0;  // steps with the heads of the group that come first
      for (int head = head_kv_ * group_; head < head_; ++head)
        before += args_.list[args_.reader_of(b_, head) * args_.key_tiles + item.key_tile].count;
      const auto list = static_cast<int32_t>(args_.reader_of(b_, head_) * args_.key_tiles + item.key_tile);
      const MeetingList meetings = args_.list[list];
      if (meetings.count > 0) at_.items[found++ * block_.threads() + thread] = {item.first_step + before, list, args_.start_of[i] + before, meetings};
    }
    at_.next_item[thread] = i;
    at_.looked_up[thread] = found;
    at_.used[thread] = 0;
  }
  /// On to the next of them.
  TILEWISE_DEVICE void advance(int thread) const {
    if (at_.count[thread] > 0) ++at_.used[thread];
    if (at_.used[thread] == at_.looked_up[thread]) look_up(thread);
    const bool has_one = at_.looked_up[thread] > 0;
    at_.done[thread] = at_.noted[thread] = at_.head[thread] = at_.num[thread] = 0;
    at_.start[thread] = has_one ? item(thread).start : kNever;
    at_.count[thread] = has_one ? item(thread).meetings.count : 0;
    if (has_one) at_.step[thread] = item(thread).step;
  }
  TILEWISE_DEVICE uint64_t& ahead(int thread, int i) const { return at_.ahead[(at_.head[thread] + i) % kAhead * block_.threads() + thread]; }

  /// Orders meetings until the ring is full. They are counted as there by who waits for them.
  TILEWISE_DEVICE void fill(int thread) const {
    const int count = at_.count[thread];
    if (count == 0) return;
    const int begin = item(thread).meetings.begin;
    const uint64_t* const from = args_.meeting + int64_t{item(thread).list} * args_.q_tiles;
    int noted = at_.noted[thread];
    for (int i = noted - at_.done[thread]; i < kAhead && noted < count; ++i, ++noted) {
      block_.copy(&ahead(thread, i), from + (begin + noted < count ? begin + noted : begin + noted - count));
    }
    at_.noted[thread] = noted;
  }
  /// After a thread's part in a step. What it orders arrives while the next step is taken: an item begins some steps after the one before has ended.
  TILEWISE_DEVICE void finish(int thread, int time, int tick) const {
    static_assert(kAhead > 2 * kFillEvery);
    block_.wait_for_copies();
    at_.num[thread] = at_.noted[thread] - at_.done[thread];
    const bool has_ended = at_.start[thread] <= time && at_.done[thread] == at_.count[thread];
    if (has_ended) advance(thread);
    if (has_ended || tick % kFillEvery == 0) fill(thread);
  }
  TILEWISE_DEVICE int tile_at(int thread, int i) const { return static_cast<int>(ahead(thread, i) & 0xffffffffu); }

  /// Of its next tiles that nobody has claimed, the first that has rested, else the one that has rested longest; where all are claimed, the one of all that has,
  /// with whomever else. `asks_claims`: else there are none yet.
  TILEWISE_DEVICE void choose(int thread, int time, bool asks_claims) const {
    int longest = -1, of_all = 0;
    for (int i = 0; i < at_.num[thread]; ++i) {
      const int tile = tile_at(thread, i);
      if (at_.last[tile] < at_.last[tile_at(thread, of_all)]) of_all = i;
      if (asks_claims && at_.claim[tile] != kNever) continue;
      if (time - at_.last[tile] >= kGap) return take(thread, i, kClaims);
      if (longest < 0 || at_.last[tile] < at_.last[tile_at(thread, longest)]) longest = i;
    }
    if (longest >= 0) {
      take(thread, longest, kClaims);
    } else {
      take(thread, of_all, kForced);
    }
  }
  TILEWISE_DEVICE void take(int thread, int choice, State state) const {
    at_.choice[thread] = choice;
    at_.tile[thread] = tile_at(thread, choice);
    at_.state[thread] = state;
  }
  TILEWISE_DEVICE bool has_claim(int thread) const { return at_.claim[at_.tile[thread]] == thread; }
  TILEWISE_DEVICE bool is_whole(int thread) const { return item(thread).meetings.is_whole != 0; }

  TILEWISE_DEVICE void write(int thread, int rank) const {
    const int choice = at_.choice[thread];
    const uint64_t meeting = ahead(thread, choice);
    BackwardStep step{};
    step.tile = static_cast<uint32_t>(meeting);
    step.rank = static_cast<uint32_t>(rank);
    step.member = static_cast<uint32_t>(head_ % group_);
    step.pattern = static_cast<uint32_t>(meeting >> 32);
    args_.steps[at_.step[thread]++] = step.pack();
    for (int i = choice; i > 0; --i) ahead(thread, i) = ahead(thread, i - 1);
    at_.head[thread] = (at_.head[thread] + 1) % kAhead;
    ++at_.done[thread];
  }

  /// One step of every item at work; false: there is none. Who may choose claims a tile, the lowest thread block wins, the others choose once more; who is left
  /// meets a tile after those that claimed it, thread block by thread block.
  TILEWISE_DEVICE bool step(int time, int tick) const {
    const bool has_work = block_.any([&](int thread) {
      at_.state[thread] = kIdle;
      if (at_.start[thread] > time) return false;
      if (is_whole(thread)) {
        take(thread, 0, kClaims);
      } else {
        choose(thread, time, false);
      }
      if (at_.state[thread] == kClaims) block_.min(&at_.claim[at_.tile[thread]], thread);
      return true;
    });
    if (!has_work) return false;
    for (int round = 0; round < kRounds; ++round) {
      const bool has_lost = block_.any([&](int thread) {
        if (at_.state[thread] != kClaims || has_claim(thread)) return false;
        if (is_whole(thread) || round == kRounds - 1) {
          at_.state[thread] = kForced;
        } else {
          choose(thread, time, true);
        }
        return at_.state[thread] == kClaims;
      });
      if (!has_lost) break;
      block_.each([&](int thread) {
        if (at_.state[thread] == kClaims && !has_claim(thread)) block_.min(&at_.claim[at_.tile[thread]], thread);
      });
    }
    const bool has_forced = block_.any([&](int thread) {
      if (at_.state[thread] == kForced) return true;
      if (at_.state[thread] == kClaims) {
        const int tile = at_.tile[thread];
        at_.claim[tile] = kNever;
        at_.last[tile] = time;
        write(thread, at_.rank[tile]++);
      }
      finish(thread, time, tick);
      return false;
    });
    if (!has_forced) return true;
    block_.each([&](int thread) {
      if (at_.state[thread] != kForced) return;
      const int tile = at_.tile[thread];
      int rank = at_.rank[tile];
      for (int other = 0; other < thread; ++other) rank += at_.state[other] == kForced && at_.tile[other] == tile ? 1 : 0;
      write(thread, rank);
    });
    block_.each([&](int thread) {
      if (at_.state[thread] != kForced) return;
      block_.add(&at_.rank[at_.tile[thread]], 1);
      block_.max(&at_.last[at_.tile[thread]], time);
      finish(thread, time, tick);
    });
    return true;
  }

  Block& block_;
  const StepsArgs& args_;
  const WalkParts& at_;
  int b_, head_, head_kv_, group_;
};

template <class Block>
TILEWISE_DEVICE void walk_kernel(Block& block, const StepsArgs& args) {
  if (args.first_item[args.thread_blocks] == 0) return;  // no item, or no room
  machine::cuda::SharedParts parts(block.shared());
  WalkParts at(parts, block.threads(), args.tile_state == nullptr ? args.q_tiles : 0);
  if (args.tile_state != nullptr) {
    int32_t* const of_head = args.tile_state + block.index() * 3 * args.q_tiles;
    at.last = of_head;
    at.rank = of_head + args.q_tiles;
    at.claim = of_head + 2 * int64_t{args.q_tiles};
  }
  Walk<Block>(block, args, at).run();
}

}  // namespace tilewise::attend::sm90
