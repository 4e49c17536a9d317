// SPDX-License-Identifier: Apache-2.0
// The producer warps of a forward kernel: one claims items and copies queries, one copies keys, one copies values, into rings of stages. The latter
// two walk the runs of a row and cut them alike; apart, because to cut and copy a stage of several short runs takes a warp as long as the products
// with it, and a claim is a chain of four loads.
#pragma once

#include "tilewise/attend/sm90/run_cursor.cuh"

namespace tilewise::attend::sm90 {

enum class Side { keys, values };

/// One stage of K or of V while it is filled.
template <class C>
struct Target {
  uint32_t tile, full;  // addresses in shared memory
  const CUtensorMap* whole;
  const CUtensorMap* piece;
  int head, batch;
  bool is_flat;

  /// kTileK tokens; by one lane.
  __device__ void copy_tile(int token) const {
    if constexpr (C::kIsGeneral) {
#pragma unroll
      for (int block = 0; block < C::kBlocks; ++block) {
        cp_async_bulk_tensor_load(tile + block * C::kTileK * 128, whole, box_at<C>(is_flat, block, token, head, batch), full);
      }
    } else {
      cp_async_bulk_tensor_load(tile, whole, {0, token, 0, head, batch}, full);
    }
  }
  /// `tokens` tokens to row `first` of the stage: a box per set bit and column block, a lane each (two boxes of 64 for a full stage of 128).
  __device__ void copy_run(int token, int first, int tokens) const {
    const int lane = threadIdx.x % 32, bit = lane % 8, block = lane / 8;
    if (block >= C::kBlocks || !((bit < 6 ? tokens >> bit & 1 : bit == 6 ? tokens >= 64 : tokens >= 128))) return;
    const int before = bit >= 6 ? (bit - 6) * 64 : tokens >> (bit + 1) << (bit + 1);
    cp_async_bulk_tensor_load(tile + (block * C::kTileK + first + before) * 128, &piece[min(bit, 6)],
                              box_at<C>(is_flat, block, token + before, head, batch), full);
  }
  /// One token, by any lane.
  __device__ void copy_token(int token, int row) const {
#pragma unroll
    for (int block = 0; block < C::kBlocks; ++block) {
      cp_async_bulk_tensor_load(tile + (block * C::kTileK + row) * 128, &piece[0], box_at<C>(is_flat, block, token, head, batch), full);
    }
  }
};

/// Fills the stage from single keys and runs of one kind; the side of the keys notes what each of them is.
template <class C, Side kSide>
__device__ void fill_general(const typename C::Args& args, Shared<C>& shared, const Item& item, RunCursor<C>& keys, int stage,
                             const Target<C>& target, StageInfo& info) {
  const int lane = threadIdx.x % 32;
  const RunKind kind = keys.kind();
  info.is_tested = kind == masked_runs ? 2 : kind == picked_runs ? 3 : 0;
  const auto note = [&](int row, int token, const uint64_t(&rows)[2]) {
    if constexpr (kSide == Side::keys) {
      auto& noted = shared.keys[stage];
      noted.token[row] = token;
      noted.rows[row][0] = rows[0];
      noted.rows[row][1] = rows[1];
      if constexpr (C::kHasPools) noted.bias[row] = 0;
    }
  };
  // Pooled keys lie behind the slots of k in the plan, and in tensors with all heads of k.
  [[maybe_unused]] Target<C> pooled = target;
  if constexpr (C::kHasPools) {
    pooled.piece = kSide == Side::keys ? args.pooled_k_piece : args.pooled_v_piece;
    pooled.head = item.head / args.heads_per_group;
    if (kind == picked_runs) info.is_tested |= StageInfo::kHasBias;
  }
  [[maybe_unused]] const auto note_pooled = [&](int row, int index, const uint64_t(&rows)[2]) {
    if constexpr (C::kHasPools && kSide == Side::keys) {
      const int64_t at = (int64_t{item.batch} * (args.heads_q / args.heads_per_group) + pooled.head) * args.pooled + index;
      note(row, args.pooled_token[at], rows);
      shared.keys[stage].bias[row] = logf(fmaxf(args.pooled_count[at], 1));
    }
  };
  const auto copy_slot = [&](int slot, int row, const uint64_t(&rows)[2]) {
    if constexpr (C::kHasPools) {
      if (slot >= args.order_k_slots) {
        pooled.copy_token(slot - args.order_k_slots, row);
        note_pooled(row, slot - args.order_k_slots, rows);
        return;
      }
    }
    const int token = order_token(args.order_k, args.order_k_slots, item.batch, item.head, args.heads_q, slot);
    target.copy_token(token < 0 ? args.past_k : token, row);  // past the end: zeros
    note(row, token, rows);
  };
  do {
    if (kind == picked_runs) {
      int index;
      RunChunk<true> mine;
      const int count = keys.take_picked(C::kTileK - info.fill, index, mine);
      if (index >= 0) copy_slot(mine.start, info.fill + index, mine.rows);
      info.fill += count;
    } else {
      const int tokens = min(keys.left(), C::kTileK - info.fill);
      const uint64_t rows[2] = {keys.rows(0), keys.rows(1)};
      bool is_pooled = false;
      if constexpr (C::kHasPools) is_pooled = keys.key() >= args.order_k_slots;
      if (is_pooled) {
        const int index = keys.key() - args.order_k_slots;
        pooled.copy_run(index, info.fill, tokens);
        for (int i = lane; i < tokens; i += 32) note_pooled(info.fill + i, index + i, rows);
        info.is_tested = (kind == masked_runs ? 2 : 3) | StageInfo::kHasBias;
      } else if (args.order_k.token) {
        for (int i = lane; i < tokens; i += 32) copy_slot(keys.key() + i, info.fill + i, rows);
      } else {
        target.copy_run(keys.key(), info.fill, tokens);
        for (int i = lane; i < tokens; i += 32) note(info.fill + i, keys.key() + i, rows);
      }
      info.fill += tokens;
      keys.take(tokens);
    }
    __syncwarp();
  } while (info.fill < C::kTileK && keys.more() && keys.kind() == kind);
}

/// Keys or values of one item. A row without a key gets one stage of zeros, so that consumers know stages alone.
template <class C, Side kSide, class Place, class AnyRing>
__device__ void produce_side(const typename C::Args& args, Shared<C>& shared, const Item& item, RunCursor<C>& keys, Place& place, AnyRing& ring) {
  constexpr bool kIsKeys = kSide == Side::keys;
  const int lane = threadIdx.x % 32;
  const int head_k = item.head / args.heads_per_group, head = kIsKeys ? head_k : head_k * args.head_v_step;
  bool is_flat = false;
  if constexpr (C::kIsGeneral) is_flat = kIsKeys ? args.is_flat_q : args.is_flat_v;
  do {
    StageInfo info = {keys.key(), 0, 0, 0};
    const bool is_masked = keys.kind() == masked_runs;
    const bool has_keys = keys.more();
    const bool reads_to_end = keys.key() + keys.left() == args.seqlen_k;  // past the end the copy engine itself fills in zeros
    bool is_whole_box = has_keys && (keys.left() >= C::kTileK || reads_to_end);
    if constexpr (C::kIsGeneral) is_whole_box &= keys.kind() == whole_runs && !args.order_k.token;
    if constexpr (C::kHasPools) is_whole_box &= keys.key() < args.order_k_slots;
    place.wait_empty(ring);
    uint8_t* const tile = kIsKeys ? shared.k[place.stage] : shared.v[place.stage];
    uint64_t* const full = &ring.full[place.stage];
    const Target<C> target = {
        smem_address(tile), smem_address(full), kIsKeys ? &args.k : &args.v, kIsKeys ? args.k_piece : args.v_piece, head, item.batch, is_flat};
    if (is_whole_box) {
      if (lane == 0) target.copy_tile(info.key);
      info.fill = min(keys.left(), C::kTileK);
      keys.take(info.fill);
      info.is_tested = is_masked ? 2 : info.fill < C::kTileK;
    } else {  // ends of runs: what is skipped is not copied, and runs of `whole` share a stage
      if (has_keys) {
        if constexpr (C::kIsGeneral) {
          fill_general<C, kSide>(args, shared, item, keys, place.stage, target, info);
        } else {
          do {
            const int tokens = min(keys.left(), C::kTileK - info.fill);
            target.copy_run(keys.key(), info.fill, tokens);
            info.fill += tokens;
            keys.take(tokens);
          } while (info.fill < C::kTileK && !is_masked && keys.more());
          info.is_tested = is_masked ? 2 : 0;
        }
      }
      // 0 * NaN is NaN: the rest of V is zeros, copied from past the end. Scores against the rest of K are masked.
      if (!kIsKeys && info.fill < C::kTileK) target.copy_run(args.past_k, info.fill, C::kTileK - info.fill);
      if (info.is_tested == 0) info.is_tested = info.fill < C::kTileK;
    }
    info.has_next = keys.more();
    __syncwarp();
    if (lane == 0) {
      if (kIsKeys) shared.stage[place.stage] = info;
      mbarrier_arrive_expect_tx(full, is_whole_box || !kIsKeys ? C::kTileBytes : info.fill * C::kRowBytes);
    }
    place.advance();
  } while (keys.more());
}

/// The same by a plain counter, for keys in multiples of kTileK.
template <class C, Side kSide, class Place, class AnyRing>
__device__ void produce_by_counter(const ForwardArgs& args, Shared<C>& shared, const Item& item, Place& place, AnyRing& ring) {
  constexpr bool kIsKeys = kSide == Side::keys;
  const int head_k = item.head / args.heads_per_group, head = kIsKeys ? head_k : head_k * args.head_v_step;
  for (int key = 0; key < args.seqlen_k; key += C::kTileK) {
    place.wait_empty(ring);
    if (threadIdx.x % 32 == 0) {
      uint64_t* const full = &ring.full[place.stage];
      if (kIsKeys) shared.stage[place.stage] = {key, C::kTileK, key + C::kTileK < args.seqlen_k, 0};
      mbarrier_arrive_expect_tx(full, C::kTileBytes);
      cp_async_bulk_tensor_load(smem_address(kIsKeys ? shared.k[place.stage] : shared.v[place.stage]), kIsKeys ? &args.k : &args.v,
                                {0, key, 0, head, item.batch}, smem_address(full));
    }
    place.advance();
  }
}

/// The queries of an item; by all lanes.
template <class C>
__device__ void produce_queries(const typename C::Args& args, Shared<C>& shared, const Item& item) {
  const int lane = threadIdx.x % 32;
  const uint32_t full = smem_address(&shared.q_ring.full[0]);
  bool is_by_token = false;
  if constexpr (C::kIsGeneral) {
    is_by_token = args.order_q.token;
    if (is_by_token) {  // zeros past the item: a warp rescales all of its rows together, so bits would depend on what was there before
      for (int i = lane; i < C::kTileQ; i += 32) {
        const int token = i < item.count ? order_token(args.order_q, args.slots_q, item.batch, item.head, args.heads_q, item.first + i) : -1;
        for (int block = 0; block < C::kBlocks; ++block) {
          cp_async_bulk_tensor_load(smem_address(&shared.q[i / 64][block][i % 64 * 128]), &args.q_token,
                                    box_at<C>(args.is_flat_q, block, token < 0 ? args.seqlen_q : token, item.head, item.batch), full);
        }
      }
    }
  }
  __syncwarp();
  if (lane == 0) {
    shared.item = {item.batch * args.heads_q + item.head, item.first, item.count, item.row_word};
    if constexpr (C::kIsSplit) {
      if (item.part >= 0) shared.item.head = ~item.part;
    }
    mbarrier_arrive_expect_tx(&shared.q_ring.full[0], sizeof(shared.q));
    if (!is_by_token) {
#pragma unroll
      for (int group = 0; group < C::kConsumers; ++group) {
        const int first = item.first + group * 64;
        if constexpr (C::kIsGeneral) {
          for (int block = 0; block < C::kBlocks; ++block) {
            cp_async_bulk_tensor_load(smem_address(shared.q[group][block]), &args.q, box_at<C>(args.is_flat_q, block, first, item.head, item.batch),
                                      full);
          }
        } else {
          cp_async_bulk_tensor_load(smem_address(shared.q[group][0]), &args.q, {0, first, 0, item.head, item.batch}, full);
        }
      }
    }
  }
  __syncwarp();
}

/// The warp that claims items, up to C::kItems ahead of those that copy.
template <class C>
__device__ void claim_items(const typename C::Args& args, Shared<C>& shared) {
  const int lane = threadIdx.x % 32;
  RingPlace<1> q_place;
  RingPlace<C::kItems> place;
  ItemWalk<C> items(args);
  RunChunk<C::kIsGeneral> first;
  RunsOf<C> row;
  const auto publish = [&](int number) {
    place.wait_empty(shared.item_ring);
    ClaimedItem<C>& claimed = shared.claimed[place.stage];
    claimed.runs[lane] = first;
    if (lane == 0) {
      claimed.number = number;
      claimed.row = row;
    }
    __syncwarp();
    if (lane == 0) mbarrier_arrive(&shared.item_ring.full[place.stage]);
    place.advance();
  };
  int number;
  while (items.advance(number, row, first)) {
    Item item = item_of<C>(args, number);
    if constexpr (C::kIsGeneral) {
      if (item.count <= 0) continue;  // a row of less than its most slots has no second part
    }
    if constexpr (C::kIsSplit) item.part = row.part;
    publish(number);
    q_place.wait_empty(shared.q_ring);
    produce_queries<C>(args, shared, item);
    q_place.advance();
  }
  publish(-1);
  q_place.wait_empty(shared.q_ring);
  if (lane == 0) {
    shared.item = {0, -1, 0, 0};
    mbarrier_arrive(&shared.q_ring.full[0]);
  }
  items.close();
}

/// The warps that copy what is claimed.
template <class C, Side kSide, class AnyRing, class Place>
__device__ void produce(const typename C::Args& args, Shared<C>& shared, AnyRing& ring, Place place) {
  RingPlace<C::kItems> item_place;
  while (true) {
    item_place.wait_full(shared.item_ring);
    const ClaimedItem<C>& claimed = shared.claimed[item_place.stage];
    const int number = claimed.number;
    if (number < 0) break;
    const RunsOf<C> row = claimed.row;
    const RunChunk<C::kIsGeneral> first = claimed.runs[threadIdx.x % 32];
    __syncwarp();
    if (threadIdx.x % 32 == 0) item_place.release(shared.item_ring);
    item_place.advance();
    const Item item = item_of<C>(args, number);
    if (C::kIsProof && args.is_by_counter) {
      produce_by_counter<C, kSide>(args, shared, item, place, ring);
    } else {
      RunCursor<C> keys(args, row, first);
      produce_side<C, kSide>(args, shared, item, keys, place, ring);
    }
  }
}

}  // namespace tilewise::attend::sm90
