// SPDX-License-Identifier: Apache-2.0
// The consumer warpgroups of a forward kernel: 64 queries each, streamed through online softmax.
#pragma once

#include "tilewise/attend/sm90/mask.cuh"
#include "tilewise/attend/sm90/merge_parts.cuh"
#include "tilewise/attend/sm90/softmax.cuh"

namespace tilewise::attend::sm90 {

/// The A operand of all k-steps of 16, read from rows of 128 bytes under the swizzle.
template <class C>
__device__ void load_q_registers(uint32_t (&q)[C::kHeadDim / 16][4], const uint8_t (&q_rows)[C::kBlocks][64 * 128]) {
  const int lane = threadIdx.x % 32;
  const int row = thread_index_again() / 32 % 4 * 16 + lane % 16;
#pragma unroll
  for (int step = 0; step < C::kHeadDim / 16; ++step) {
    const int chunk = step % 4 * 2 + lane / 16;
    ldmatrix_x4(q[step], smem_address(q_rows[step / 4]) + row * 128 + (chunk ^ row % 8) * 16);
  }
}

/// scores[64, tile_k] = q k^T; q from registers, or from shared memory.
template <class C>
__device__ void wgmma_qk(float (&scores)[C::kTileK / 2], const uint32_t (&q)[C::kHeadDim / 16][4], const uint8_t* k_tile) {
  const uint64_t b = wgmma_descriptor_k_major(smem_address(k_tile));
  wgmma_fence();
#pragma unroll
  for (int step = 0; step < C::kHeadDim / 16; ++step) {
    Wgmma<C::kTileK, typename C::Element>::template rs<false>(scores, q[step], b + (step / 4 * C::kTileK * 128 + step % 4 * 32) / 16, step > 0);
  }
  wgmma_commit_group();
}
template <class C>
__device__ void wgmma_qk(float (&scores)[C::kTileK / 2], const uint8_t* q_rows, const uint8_t* k_tile) {
  const uint64_t a = wgmma_descriptor_k_major(smem_address(q_rows));
  const uint64_t b = wgmma_descriptor_k_major(smem_address(k_tile));
  wgmma_fence();
#pragma unroll
  for (int step = 0; step < C::kHeadDim / 16; ++step) {
    Wgmma<C::kTileK, typename C::Element>::ss(scores, a + (step / 4 * 64 * 128 + step % 4 * 32) / 16,
                                              b + (step / 4 * C::kTileK * 128 + step % 4 * 32) / 16, step > 0);
  }
  wgmma_commit_group();
}

/// acc[64, D] += p v
template <class C>
__device__ void wgmma_pv(float (&acc)[C::kHeadDim / 2], const uint32_t (&p)[C::kTileK / 16][4], const uint8_t* v_tile) {
  using Mma = Wgmma<C::kHeadDim, typename C::Element>;
  const uint64_t b = wgmma_descriptor_mn_major(smem_address(v_tile), C::kTileK * 128);
  wgmma_fence();
#pragma unroll
  for (int step = 0; step < C::kTileK / 16; ++step) Mma::template rs<true>(acc, p[step], b + step * 16 * 128 / 16, true);
  wgmma_commit_group();
}

/// Probabilities as the A operand of PV: the accumulator layout is the operand layout.
template <class C>
__device__ void pack(uint32_t (&p)[C::kTileK / 16][4], const float (&scores)[C::kTileK / 2]) {
#pragma unroll
  for (int i = 0; i < C::kTileK / 4; ++i) p[i / 4][i % 4] = cvt_pack<typename C::Element>(scores[2 * i], scores[2 * i + 1]);
}

/// A warp's 16 rows into shared memory: `rows` is the warpgroup's [blocks][64][64].
template <class C>
__device__ void stage_output(uint8_t* rows, const float (&acc)[C::kHeadDim / 2]) {
  const int lane = threadIdx.x % 32, first_row = thread_index_again() / 32 % 4 * 16;
#pragma unroll
  for (int step = 0; step < C::kHeadDim / 16; ++step) {
    const int chunk = step % 4 * 2 + lane / 16, r = lane % 16;
    const float* a = &acc[step * 8];
    using T = typename C::Element;
    const uint32_t packed[4] = {cvt_pack<T>(a[0], a[1]), cvt_pack<T>(a[2], a[3]), cvt_pack<T>(a[4], a[5]), cvt_pack<T>(a[6], a[7])};
    stmatrix_x4(smem_address(rows) + (step / 4 * 64 + first_row + r) * 128 + (chunk ^ r % 8) * 16, packed);
  }
  fence_proxy_async();
  __syncwarp();
}

/// Output and lse of a plain item, 16 rows at a time; the copy engine leaves out what is past the last query.
template <class C>
__device__ void store(const typename C::Args& args, uint8_t* rows, const float (&acc)[C::kHeadDim / 2], const float (&lse)[2], const ItemInfo& item) {
  const int thread = thread_index_again(), lane = thread % 32;
  const int first_row = (thread - 128) / 32 * 16;
  const int query = item.first + first_row, head = item.head % args.heads_q, batch = item.head / args.heads_q;
  if (lane == 0) cp_async_bulk_wait_group_read<0>();  // the item before has left
  __syncwarp();
  stage_output<C>(rows, acc);
  if (lane == 0 && query < args.seqlen_q) {
#pragma unroll
    for (int block = 0; block < C::kBlocks; ++block) {
      cp_async_bulk_tensor_store(&args.out, {0, query, block, head, batch}, rows + (block * 64 + first_row % 64) * 128);
    }
    cp_async_bulk_commit_group();
  }
  const int mine_query = query + lane / 4 + lane % 2 * 8;  // two lanes of a quad write a row each
  if (args.lse && lane % 4 < 2 && mine_query < args.seqlen_q) {
    args.lse[batch * args.lse_stride_batch + head * args.lse_stride_head + mine_query] = lane % 2 ? lse[1] : lse[0];
  }
}

/// The token of a query of the item, -1 where there is none.
__device__ inline int query_token(const GeneralArgs& args, const ItemInfo& item, int row) {
  if (row >= item.count) return -1;
  return order_token(args.order_q, args.slots_q, item.head / args.heads_q, item.head % args.heads_q, args.heads_q, item.first + row);
}

/// Output and lse of any item, row by row where an order or the end of the item asks for it.
template <class C>
__device__ void store_general(const GeneralArgs& args, uint8_t* rows, const float (&acc)[C::kHeadDim / 2], const float (&lse)[2],
                              const ItemInfo& item) {
  const int lane = threadIdx.x % 32, first_row = (thread_index_again() - 128) / 32 * 16;
  const int head = item.head % args.heads_q, batch = item.head / args.heads_q;
  if (args.has_out) {
    stage_output<C>(rows, acc);
    const bool is_whole = !args.order_q.token && first_row + 16 <= item.count;
    const int token = lane < 16 ? query_token(args, item, first_row + lane) : -1;
    for (int block = 0; block < C::kBlocks; ++block) {
      uint8_t* const from = rows + (block * 64 + first_row % 64) * 128;
      if (is_whole) {
        if (lane == 0) cp_async_bulk_tensor_store(&args.out, box_at<C>(args.is_flat_v, block, item.first + first_row, head, batch), from);
      } else if (token >= 0) {
        cp_async_bulk_tensor_store(&args.out_token, box_at<C>(args.is_flat_v, block, token, head, batch), from + lane * 128);
      }
    }
    cp_async_bulk_commit_group();
    cp_async_bulk_wait_group_read<0>();  // the buffer holds the next item's queries next
  }
  const int token = query_token(args, item, first_row + lane / 4 + lane % 2 * 8);
  if (args.lse && lane % 4 < 2 && token >= 0) {
    args.lse[batch * args.lse_stride_batch + head * args.lse_stride_head + token] = lane % 2 ? lse[1] : lse[0];
  }
}

/// What consumers hold besides accumulators.
template <class C>
struct Consumer {
  const typename C::Args& args;
  Shared<C>& shared;
  const int group;
  RingPlace<1> q_place;
  RingPlace<C::kStagesK> k_place;
  RingPlace<C::kStagesV> v_place;

  template <class Place, class AnyRing>
  __device__ void release(Place& place, AnyRing& ring) const {
    if (threadIdx.x % 32 == 0) place.release(ring);
    place.advance();
  }
  /// The thread's first query of the item.
  __device__ static int first_row() {
    const int thread = thread_index_again();
    return (thread - 128) / 32 * 16 + thread % 32 / 4;
  }
  __device__ void mask(float (&scores)[C::kTileK / 2], const StageInfo& info, const ItemInfo& item) const {
    if (!info.is_tested) return;
    if constexpr (C::kIsGeneral) {
      const int row = first_row(), query[2] = {query_token(args, item, row), query_token(args, item, row + 8)};
      if constexpr (C::kHasPools) {
        StageInfo tested = info;
        tested.is_tested &= ~StageInfo::kHasBias;
        mask_general<C>(args, scores, tested, shared.keys[k_place.stage], item.head, row, query);
        if (info.is_tested & StageInfo::kHasBias) add_bias(scores, shared.keys[k_place.stage].bias, info.fill, args.score_of_bias);
      } else {
        mask_general<C>(args, scores, info, shared.keys[k_place.stage], item.head, row, query);
      }
    } else {
      mask_by_band<C::kTileK>(scores, info, args.band, int64_t{item.first} + first_row() + args.seqlen_k - args.seqlen_q);
    }
  }
};

/// One row after another; Q in shared memory, where the output takes its place.
template <class C>
__device__ void consume_row_by_row(const typename C::Args& args, Shared<C>& shared, int group) {
  Consumer<C> at = {args, shared, group, {}, {}, {}};
  uint8_t* const q_rows = shared.q[group][0];
  uint32_t q[C::kHeadDim / 16][4];
  uint32_t p[C::kTileK / 16][4];
  float scores[C::kTileK / 2];
  float acc[C::kHeadDim / 2];
  float lse[2];
  Softmax softmax;
  softmax.scale_log2 = args.scale_log2;
  softmax.threshold = args.rescale_threshold;
  const auto multiply = [&] {
    if constexpr (C::kHasQInRegisters) {
      wgmma_qk<C>(scores, q, shared.k[at.k_place.stage]);
    } else {
      wgmma_qk<C>(scores, q_rows, shared.k[at.k_place.stage]);
    }
  };
  const auto prepare = [&](const StageInfo& info, const ItemInfo& item) {  // the stage is let go of after its last read
    if constexpr (C::kIsGeneral) {
      if (args.softcap != 0) cap(scores, args.softcap, args.softcap_scale);
    }
    at.mask(scores, info, item);
    at.release(at.k_place, shared.k_ring);
  };
  while (true) {
    at.q_place.wait_full(shared.q_ring);
    const ItemInfo item = shared.item;
    if (item.first < 0) break;
    if constexpr (C::kHasQInRegisters) {
      load_q_registers<C>(q, shared.q[group]);
      __syncwarp();
      at.release(at.q_place, shared.q_ring);
    }
    softmax.reset();
    for (float& x : acc) x = 0;
    at.k_place.wait_full(shared.k_ring);
    StageInfo info = shared.stage[at.k_place.stage];
    multiply();
    wgmma_wait_group<0>(scores);
    prepare(info, item);
    softmax.raise_max(scores);
    softmax.exponentiate(scores);
    pack<C>(p, scores);
    if (info.has_next) at.k_place.wait_full(shared.k_ring);
    while (info.has_next) {
      multiply();  // of this stage
      at.v_place.wait_full(shared.v_ring);
      wgmma_pv<C>(acc, p, shared.v[at.v_place.stage]);  // of the stage before
      info = shared.stage[at.k_place.stage];
      wgmma_wait_group<1>(scores);
      prepare(info, item);
      const bool is_outgrown = softmax.raise_max(scores);  // while PV is in flight
      if (info.has_next) at.k_place.wait_full(shared.k_ring);  // here, so that nothing stands between the softmax and the next products
      wgmma_wait_group<0>(acc);
      at.release(at.v_place, shared.v_ring);
      if (is_outgrown) softmax.rescale(acc);
      // After the wait: meanwhile the other warpgroup's products fill the matrix units (docs/notes/sm90.md, "Who hides the softmax").
      softmax.exponentiate(scores);
      pack<C>(p, scores);
    }
    at.v_place.wait_full(shared.v_ring);
    wgmma_pv<C>(acc, p, shared.v[at.v_place.stage]);
    wgmma_wait_group<0>(acc);
    at.release(at.v_place, shared.v_ring);
    const float* sink = nullptr;
    if constexpr (C::kIsGeneral) {
      if (args.sink_logit) sink = args.sink_logit + item.head % args.heads_q;
    }
    softmax.finish(acc, lse, sink);
    if constexpr (C::kHasQInRegisters) {
      store<C>(args, shared.out + group * (C::kBlocks * 64 * 128), acc, lse, item);
    } else {
      group == 0 ? bar_sync(1, 128) : bar_sync(2, 128);  // the warpgroup has read its queries
      if constexpr (C::kIsGeneral) {
        store_general<C>(args, q_rows, acc, lse, item);
      } else {
        store<C>(args, q_rows, acc, lse, item);
        cp_async_bulk_wait_group_read<0>();
      }
      __syncwarp();
      at.release(at.q_place, shared.q_ring);
    }
  }
}

/// The same without a break between rows: the first product of a row is issued before the last PV of the row before, so that the matrix units
/// have work while that row is finished and stored.
template <class C>
__device__ void consume_across_rows(const typename C::Args& args, Shared<C>& shared, int group) {
  Consumer<C> at = {args, shared, group, {}, {}, {}};
  uint32_t q[C::kHeadDim / 16][4];
  uint32_t p[C::kTileK / 16][4];
  float scores[C::kTileK / 2];
  float acc[C::kHeadDim / 2];
  Softmax softmax;
  softmax.scale_log2 = args.scale_log2;
  softmax.threshold = args.rescale_threshold;
  const auto next_item = [&] {
    at.q_place.wait_full(shared.q_ring);
    const ItemInfo next = shared.item;
    if (next.first >= 0) {
      load_q_registers<C>(q, shared.q[group]);
      __syncwarp();
      at.release(at.q_place, shared.q_ring);
    }
    return next;
  };
  const auto store_row = [&](const ItemInfo& of, const float(&from)[C::kHeadDim / 2], const float(&lse)[2]) {
    store<C>(args, shared.out + group * (C::kBlocks * 64 * 128), from, lse, of);
  };
  const auto finish = [&](const ItemInfo& item) {
    bool is_row = true;
    if constexpr (C::kIsSplit) {
      is_row = item.head >= 0;
      if (!is_row) put_part<C>(args.split, group, ~item.head, shared.pending.first[group * 4 + thread_index_again() / 32 % 4], acc, softmax);
    }
    if (is_row) {
      float lse[2];
      softmax.finish(acc, lse, nullptr);
      store_row(item, acc, lse);
    }
    softmax.reset();
    for (float& x : acc) x = 0;
  };
  const auto probabilities = [&] {
    softmax.exponentiate(scores);
    pack<C>(p, scores);
  };
  if constexpr (C::kIsSplit) {
    if (threadIdx.x % 32 == 0) shared.pending.first[group * 4 + thread_index_again() / 32 % 4] = 0;
  }
  ItemInfo item = next_item();
  if (item.first < 0) return;
  softmax.reset();
  for (float& x : acc) x = 0;
  at.k_place.wait_full(shared.k_ring);
  StageInfo info = shared.stage[at.k_place.stage];
  wgmma_qk<C>(scores, q, shared.k[at.k_place.stage]);
  wgmma_wait_group<0>(scores);
  at.release(at.k_place, shared.k_ring);
  at.mask(scores, info, item);
  softmax.raise_max(scores);
  if (info.has_next) at.k_place.wait_full(shared.k_ring);
  probabilities();
  while (true) {
    while (info.has_next) {
      wgmma_qk<C>(scores, q, shared.k[at.k_place.stage]);  // of this stage
      at.v_place.wait_full(shared.v_ring);
      wgmma_pv<C>(acc, p, shared.v[at.v_place.stage]);     // of the stage before
      info = shared.stage[at.k_place.stage];
      wgmma_wait_group<1>(scores);
      at.release(at.k_place, shared.k_ring);
      at.mask(scores, info, item);
      const bool is_outgrown = softmax.raise_max(scores);  // while PV is in flight
      if (info.has_next) at.k_place.wait_full(shared.k_ring);  // here, so that nothing stands between the softmax and the next products
      wgmma_wait_group<0>(acc);
      at.release(at.v_place, shared.v_ring);
      if (is_outgrown) softmax.rescale(acc);
      // After the wait: meanwhile the other warpgroup's products fill the matrix units (docs/notes/sm90.md, "Who hides the softmax").
      probabilities();
    }
    ItemInfo next;
    if constexpr (C::kStoresUnderQk) {
      at.q_place.wait_full(shared.q_ring);
      next = shared.item;
      if (next.first < 0) break;
      at.v_place.wait_full(shared.v_ring);
      wgmma_pv<C>(acc, p, shared.v[at.v_place.stage]);  // of this row's last stage
      load_q_registers<C>(q, shared.q[group]);
      __syncwarp();
      at.release(at.q_place, shared.q_ring);
    } else {
      next = next_item();
      if (next.first < 0) break;
    }
    at.k_place.wait_full(shared.k_ring);
    wgmma_qk<C>(scores, q, shared.k[at.k_place.stage]);  // of the next row's first stage
    if constexpr (C::kStoresUnderQk) {
      info = shared.stage[at.k_place.stage];
      wgmma_wait_group<1>(acc);
      at.release(at.v_place, shared.v_ring);
      finish(item);
      wgmma_wait_group<0>(scores);
      at.release(at.k_place, shared.k_ring);
    } else {
      at.v_place.wait_full(shared.v_ring);
      wgmma_pv<C>(acc, p, shared.v[at.v_place.stage]);   // of this row's last
      info = shared.stage[at.k_place.stage];
      wgmma_wait_group<1>(scores);
      at.release(at.k_place, shared.k_ring);
      wgmma_wait_group<0>(acc);
      at.release(at.v_place, shared.v_ring);
      finish(item);
    }
    item = next;
    at.mask(scores, info, item);
    softmax.raise_max(scores);
    if (info.has_next) at.k_place.wait_full(shared.k_ring);
    probabilities();
  }
  at.v_place.wait_full(shared.v_ring);
  wgmma_pv<C>(acc, p, shared.v[at.v_place.stage]);
  wgmma_wait_group<0>(acc);
  at.release(at.v_place, shared.v_ring);
  finish(item);
  if constexpr (C::kIsSplit) merge_pending<C>(args, group, shared.pending.first[group * 4 + thread_index_again() / 32 % 4], store_row);
}

template <class C>
__device__ void consume(const typename C::Args& args, Shared<C>& shared, int group) {
  if constexpr (C::kRunsAcrossRows) {
    consume_across_rows<C>(args, shared, group);
  } else {
    consume_row_by_row<C>(args, shared, group);
  }
}

}  // namespace tilewise::attend::sm90
