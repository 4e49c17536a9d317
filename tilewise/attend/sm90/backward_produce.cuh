// SPDX-License-Identifier: Apache-2.0
// The producer threads of a backward kernel, a lane of a warp each: one walks the items and copies keys, queries and their gradients into shared memory,
// one takes dq from there to the sums in device memory, each query tile's in the order of its ranks.
#pragma once

#include "tilewise/attend/sm90/backward_config.cuh"

namespace tilewise::attend::sm90 {

/// The steps of an item, each fetched while the one before is worked on.
class StepWalk {
 public:
  __device__ explicit StepWalk(const uint64_t* steps) : next_(steps), fetched_(__ldg(steps)) {}
  /// `has_next`: there is another.
  __device__ uint64_t take(bool has_next) {
    const uint64_t step = fetched_;
    if (has_next) fetched_ = __ldg(++next_);
    return step;
  }

 private:
  const uint64_t* next_;
  uint64_t fetched_;
};

/// Head of q, and the query tile's number among those of all heads and batch entries.
__device__ inline int head_of_step(const BackwardArgs& args, const ItemInfo& item, uint64_t step) {
  return item.head_kv * args.heads_per_group + static_cast<int>(BackwardStep::unpack(step).member);
}
__device__ inline int tile_number(const BackwardArgs& args, const ItemInfo& item, uint64_t step) {
  return (item.batch * args.heads_q + head_of_step(args, item, step)) * args.q_tiles + static_cast<int>(BackwardStep::unpack(step).tile);
}

/// Of an item without steps only the places pass from hand to hand: its gradients go out through them.
template <class C>
__device__ void load_keys(const BackwardArgs& args, BackwardShared<C>& shared, const ItemInfo& item, uint32_t round) {
  const auto load = [&](Ring<1>& ring, const CUtensorMap* map, bool is_flat, uint8_t(&rows)[C::kBlocks][C::kKeyBlockBytes]) {
    mbarrier_wait(&ring.empty[0], round ^ 1);
    mbarrier_arrive_expect_tx(&ring.full[0], item.steps > 0 ? sizeof(rows) : 0);
    if (item.steps == 0) return;
#pragma unroll
    for (int block = 0; block < C::kBlocks; ++block) {
      cp_async_bulk_tensor_load(smem_address(rows[block]), map, box_of(is_flat, block, item.key_first, item.head_kv, item.batch),
                                smem_address(&ring.full[0]));
    }
  };
  load(shared.k_ring, &args.k, args.is_flat_q, shared.k);
  load(shared.v_ring, &args.v, args.is_flat_v, shared.v);
}

/// One stage of queries.
template <class C>
__device__ void load_step(const BackwardArgs& args, BackwardShared<C>& shared, const ItemInfo& item, uint64_t step, int stage) {
  const uint32_t full = smem_address(&shared.row_ring.full[stage]);
  const uint32_t pattern = BackwardStep::unpack(step).pattern;
  shared.pattern[stage] = pattern == BackwardStep::kEvery ? -1 : static_cast<int>(pattern);
  mbarrier_arrive_expect_tx(&shared.row_ring.full[stage], 2 * C::kBlocks * C::kRowBlockBytes + sizeof(shared.row_facts[0]));
  cp_async_bulk_load(smem_address(shared.row_facts[stage]), args.row_facts + int64_t{tile_number(args, item, step)} * (C::kTileQ * 2),
                     sizeof(shared.row_facts[0]), full);
  const int head = head_of_step(args, item, step), token = static_cast<int>(BackwardStep::unpack(step).tile) * C::kTileQ;
#pragma unroll
  for (int block = 0; block < C::kBlocks; ++block) {
    cp_async_bulk_tensor_load(smem_address(shared.q[stage][block]), &args.q, box_of(args.is_flat_q, block, token, head, item.batch), full);
    cp_async_bulk_tensor_load(smem_address(shared.dout[stage][block]), &args.dout, box_of(args.is_flat_v, block, token, head, item.batch), full);
  }
}

/// The thread that loads.
template <class C>
__device__ void load_rows(const BackwardArgs& args, BackwardShared<C>& shared) {
  RingPlace<C::kStages> place;
  const int first = args.first_item[blockIdx.x];
  for (int count = 0;; ++count) {
    mbarrier_wait(&shared.item_ring.empty[count % 2], count / 2 % 2 ^ 1);
    ItemInfo& item = shared.item[count % 2];
    if (first + count == args.first_item[blockIdx.x + 1]) {
      item.steps = -1;
      mbarrier_arrive(&shared.item_ring.full[count % 2]);
      return;
    }
    const BackwardItem& from = args.items[first + count];
    item = {from.batch, from.head_kv, from.key_tile * C::kTileK, from.steps, {from.live[0], from.live[1]}, from.first_step};
    mbarrier_arrive(&shared.item_ring.full[count % 2]);
    if (item.steps > 0) {
      StepWalk steps(args.steps + item.first_step);
      for (int left = item.steps; left > 0; --left) {
        const uint64_t step = steps.take(left > 1);
        place.wait_empty(shared.row_ring);
        load_step<C>(args, shared, item, step, place.stage);
        place.advance();
        if (left == item.steps) load_keys<C>(args, shared, item, count % 2);
      }
    } else {
      load_keys<C>(args, shared, item, count % 2);
    }
  }
}

/// A thread that adds dq: of every C::kWriters-th step.
template <class C>
__device__ void write_dq(const BackwardArgs& args, BackwardShared<C>& shared, uint32_t writer) {
  constexpr int kHalf = 64 * 64, kHalfBytes = kHalf * 4;
  uint32_t steps = 0;  // of all items so far
  for (int count = 0;; ++count) {
    mbarrier_wait(&shared.item_ring.full[count % 2], count / 2 % 2);
    const ItemInfo& item = shared.item[count % 2];
    if (item.steps < 0) break;
    const uint32_t end = steps + item.steps;
    const uint64_t* const first = args.steps + item.first_step;
    for (uint32_t i = steps + (writer + C::kWriters - steps % C::kWriters) % C::kWriters; i < end; i += C::kWriters) {
      const uint64_t step = __ldg(first + (i - steps));
      const int number = tile_number(args, item, step), rank = static_cast<int>(BackwardStep::unpack(step).rank);
      const Watchdog watchdog;
      while (ld_acquire(args.turn + number) != rank) watchdog.look();
      fence_proxy_async_all();
      const uint32_t stage = i % C::kStagesDq;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float* const to = args.dq_sums + (int64_t{number} * 2 + half) * kHalf;
        mbarrier_wait(&shared.dq_full[writer][half], i / C::kWriters % 2);
        if (rank == 0) {
          cp_async_bulk_store(to, shared.dq[stage][half], kHalfBytes);
        } else {
          cp_reduce_async_bulk_add(to, shared.dq[stage][half], kHalfBytes);
        }
        cp_async_bulk_commit_group();
      }
      cp_async_bulk_wait_group_read<1>();
      mbarrier_arrive(&shared.dq_empty[stage][0]);
      cp_async_bulk_wait_group_read<0>();
      mbarrier_arrive(&shared.dq_empty[stage][1]);
      cp_async_bulk_wait_group<0>();
      fence_proxy_async_all();
      st_release(args.turn + number, rank + 1);
    }
    steps = end;
    mbarrier_arrive(&shared.item_ring.empty[count % 2]);
  }
}

}  // namespace tilewise::attend::sm90
