// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

#include "tilewise/attend/cuda/mask.h"
#include "tilewise/attend/cuda/plan_view.h"
#include "tilewise/attend/sm90/backward_item.h"
#include "tilewise/plan/cuda/axis_view.h"
#include "tilewise/plan/cuda/lists_space.h"
#include "tilewise/plan/cuda/run_list.h"
#include "tilewise/plan/groups.h"

// What the kernels that make the order of work of the Hopper backward are launched with, from a plan whose arrays may lie on a device: no CUDA in it, so
// that the CPU's tests launch the same.
namespace tilewise::attend::sm90 {

/// What is known on the device alone.
struct StepsRoom {
  int64_t steps = 0;
  int64_t patterns = 0;  // places of a hash table: of n patterns that differ, 3/2 n hold all for sure
};

/// An item while the order is made.
struct DealtItem {
  int32_t block, number;  // the thread block that takes it, and how many it takes before
  int32_t start;  // on the clock
  int64_t steps_before;  // of that thread block
};

/// How the items of a tile of keys begin: the meetings of a reader (what reads the same lists under the same mask) with a tile of keys.
struct MeetingList {
  int32_t count, begin;  // the order begins with the `begin`th and goes round
  int32_t is_whole;  // no hole from the first to the last: taken in order
};

/// Kernel parameter.
struct StepsArgs : cuda::MaskView {
  plan::cuda::RunListView lists[3];  // whole, masked, picked
  plan::cuda::AxisView queries, keys;
  plan::cuda::RowsView rows;
  int seqlen_q = 0, seqlen_k = 0;  // tokens
  int slots_q = 0, slots_k = 0;  // slots_k: the backward's, with a copy of a pooled key for each of its members, pool by pool behind the others
  int slots_k_proper = 0;  // without those
  int batch = 1, heads_q = 1, heads_kv = 1;
  int tile_q = 64, q_tiles = 0, key_tiles = 0, thread_blocks = 1;
  int reader_batch = 1, reader_groups = 1;
  int section = 1;  // heads of k whose items are sorted among themselves: their queries, gradients and sums fit L2 together
  StepsRoom room;
  // Scratch.
  uint32_t* cell;  // [readers][key tiles][q tiles]: 0, or 1 + the pattern
  unsigned int* live;  // [readers][key tiles][4]
  unsigned long long* known;  // [patterns][2]: hash of the pattern in this place, 0: none
  uint64_t* meeting;  // [readers][key tiles][q tiles]: tile, pattern << 32
  MeetingList* list;  // [readers][key tiles]
  int32_t* item_steps;  // [items], b, head, key tile
  int32_t* bucket;  // [items]
  int32_t* sorted;  // [items]
  DealtItem* dealt;  // [items] as sorted
  int32_t* start_of;  // [items] as in `items`
  int32_t* tile_state;  // [B * Hq][3][q tiles]; null: in shared memory
  // Made.
  BackwardItem* items;
  int32_t* first_item;  // [thread blocks + 1]
  uint64_t* steps;
  uint64_t* patterns;  // [patterns][kKeyTile][tile_q / 64]
  unsigned long long* status;  // [kStatusWords]

  TILEWISE_HOST_DEVICE int64_t readers() const { return int64_t{reader_batch} * reader_groups; }
  TILEWISE_HOST_DEVICE int64_t reader_of(int b, int head) const {
    return int64_t{reader_batch == 1 ? 0 : b} * reader_groups + static_cast<int64_t>(head) * reader_groups / heads_q;
  }
  TILEWISE_HOST_DEVICE int64_t num_items() const { return int64_t{batch} * heads_kv * key_tiles; }
  TILEWISE_HOST_DEVICE int words() const { return tile_q / 64; }
};

constexpr int kTilesThreads = kKeyTile, kListThreads = 128, kSortItemsThreads = 256, kDealThreads = 256;
constexpr int kMostThreadBlocks = kDealThreads;  // that share the items
constexpr int kMostTilesInShared = 4096;  // of queries, while their meetings are put in order

/// A pooled key of m members weighs as m keys that equal it, each of which hands its gradients on to a member: so the backward runs over these.
inline int64_t backward_slots_k(const PlanData& plan) { return plan::slots_k(plan) * (1 + static_cast<int64_t>(plan.pools.size())); }

/// Sizes and views of the plan; no memory yet. Errors: unsupported, what the packed fields or the kernels do not hold.
inline StepsArgs steps_args(const PlanData& plan, int heads_kv, int tile_q, int thread_blocks) {
  StepsArgs args;
  const int64_t slots_q = plan::slots_q(plan), slots_k = backward_slots_k(plan);
  const int64_t q_tiles = (slots_q + tile_q - 1) / tile_q, key_tiles = (slots_k + kKeyTile - 1) / kKeyTile;
  const auto fits = [](int64_t value, int64_t most, const char* what) {
    check(value <= most, Error::Kind::unsupported, "attend_backward: sm90: ", value, " ", what, ", takes at most ", most);
  };
  fits(q_tiles, int64_t{1} << BackwardStep::kTileBits, "tiles of queries");
  fits(key_tiles, int64_t{1} << BackwardStep::kRankBits, "tiles of keys");
  fits(plan.heads_q / heads_kv, int64_t{1} << BackwardStep::kMemberBits, "query heads to a head of k");
  fits(plan.batch * heads_kv * key_tiles, int64_t{1} << 30, "tiles of keys of all heads and batch entries");
  fits(thread_blocks, kMostThreadBlocks, "thread blocks");
  // The clock, and the longest item.
  fits(
      (plan.batch * plan.heads_q * q_tiles * key_tiles + plan.batch * heads_kv * key_tiles * 2) / thread_blocks + q_tiles * (plan.heads_q / heads_kv),
      int64_t{1} << 30, "steps of a thread block");
  if (auto reason = cuda::refusal_of_arrays(plan, plan.by_query)) fail(Error::Kind::unsupported, "attend_backward: sm90: ", *reason);
  const Lists& lists = plan.by_query;
  args.lists[0] = plan::cuda::run_list(lists.whole);
  args.lists[1] = plan::cuda::run_list(lists.masked);
  args.lists[2] = plan::cuda::run_list(lists.picked);
  args.queries = plan::cuda::query_axis(plan);
  args.keys = plan::cuda::key_axis(plan);
  args.rows = plan::cuda::rows_view(lists, slots_q);
  cuda::set_mask(args, plan.mask);
  args.seqlen_q = static_cast<int>(plan.seqlen_q);
  args.seqlen_k = static_cast<int>(plan.seqlen_k);
  args.slots_q = static_cast<int>(slots_q);
  args.slots_k = static_cast<int>(slots_k);
  args.slots_k_proper = static_cast<int>(plan::slots_k(plan));
  args.batch = static_cast<int>(plan.batch);
  args.heads_q = plan.heads_q;
  args.heads_kv = heads_kv;
  args.tile_q = tile_q;
  args.q_tiles = static_cast<int>(q_tiles);
  args.key_tiles = static_cast<int>(key_tiles);
  args.thread_blocks = thread_blocks;
  std::vector<TensorView> views{lists.whole.begin,  lists.whole.count,  lists.masked.begin, lists.masked.count,
                                lists.picked.begin, lists.picked.count, plan.order_q.token, plan.order_k.token};
  const plan::Groups groups = plan::common_groups(views, plan.heads_q);
  const bool has_batched_spans = plan.mask.spans.has_value() && plan.mask.spans.dim(1) > 1;
  args.reader_batch = static_cast<int>(has_batched_spans ? plan.batch : groups.batch);
  args.reader_groups = plan.mask.head_class.empty() ? groups.groups : plan.heads_q;
  const int64_t head_bytes = std::max<int64_t>(1, slots_q) * 8 * (tile_q == 128 ? 64 : 128);
  args.section = static_cast<int>(std::clamp<int64_t>((int64_t{1} << 25) / head_bytes, 1, std::max<int64_t>(1, plan.batch * heads_kv)));
  return args;
}

/// Room that no lists of the plan's shape outgrow.
inline StepsRoom most_steps_room(const StepsArgs& args) {
  const int64_t cells = int64_t{args.q_tiles} * args.key_tiles;
  return {.steps = int64_t{args.batch} * args.heads_q * cells,
          .patterns = std::min<int64_t>(BackwardStep::kEvery, args.readers() * cells + args.readers() * cells / 2)};
}

/// Lays the scratch out in `memory` (aligned to 16) and gives its bytes; with a null memory it only counts.
inline size_t place_steps_scratch(StepsArgs& args, void* memory) {
  plan::cuda::MemoryParts parts(memory);
  const int64_t lists = args.readers() * args.key_tiles, cells = lists * args.q_tiles, items = args.num_items();
  // These two begin as zeros: steps_zero_bytes() of them.
  args.known = parts.take<unsigned long long>(2 * args.room.patterns);
  args.live = parts.take<unsigned int>(4 * lists);
  args.cell = parts.take<uint32_t>(cells);
  args.meeting = parts.take<uint64_t>(cells);
  args.dealt = parts.take<DealtItem>(items);
  args.list = parts.take<MeetingList>(lists);
  args.item_steps = parts.take<int32_t>(items);
  args.bucket = parts.take<int32_t>(items);
  args.sorted = parts.take<int32_t>(items);
  args.start_of = parts.take<int32_t>(items);
  args.tile_state = args.q_tiles > kMostTilesInShared ? parts.take<int32_t>(int64_t{args.batch} * args.heads_q * 3 * args.q_tiles) : nullptr;
  return parts.bytes();
}
/// Bytes at the scratch's beginning that are zeros before the kernels run, as all of `status` is.
inline size_t steps_zero_bytes(const StepsArgs& args) {
  const int64_t lists = args.readers() * args.key_tiles;
  return static_cast<size_t>(args.room.patterns * 16 + lists * 16 + lists * args.q_tiles * 4);
}

/// The same of what is made: items, and apart from them what the room is for, which may be sized when the rest is known.
inline size_t place_items(StepsArgs& args, void* memory) {
  plan::cuda::MemoryParts parts(memory);
  args.status = parts.take<unsigned long long>(kStatusWords);
  args.items = parts.take<BackwardItem>(args.num_items());
  args.first_item = parts.take<int32_t>(args.thread_blocks + 1);
  return parts.bytes();
}
inline size_t pattern_bytes(const StepsArgs& args) { return static_cast<size_t>(args.room.patterns * kKeyTile * args.words()) * sizeof(uint64_t); }
inline size_t step_bytes(const StepsArgs& args) { return static_cast<size_t>(args.room.steps) * sizeof(uint64_t); }

}  // namespace tilewise::attend::sm90
