// SPDX-License-Identifier: Apache-2.0
// Forward attention over a plan on Hopper. A thread block owns a row of the plan at a time: one producer warp walks the row's runs and
// copies keys and values into rings of stages, two consumer warpgroups own 64 queries each and stream the stages through online softmax.
#pragma once

#include "tilewise/attend/sm90/forward_args.h"
#include "tilewise/attend/sm90/run_cursor.cuh"
#include "tilewise/attend/sm90/softmax.cuh"
#include "tilewise/machine/sm90/pipeline.cuh"
#include "tilewise/machine/sm90/wgmma.cuh"

namespace tilewise::attend::sm90 {

using namespace machine::sm90;

template <int HeadDim, class T, int Variant>
struct ForwardConfig {
  using Element = T;
  static constexpr int kHeadDim = HeadDim;
  static constexpr int kBlocks = HeadDim / 64;  // column blocks of 128 bytes
  static constexpr int kTileQ = 128, kTileK = 128;
  // V is let go of one step later than K, so it has the spare stage.
  static constexpr int kStagesK = 2, kStagesV = 3;
  static constexpr bool kIsByCounter = Variant & kByCounter;
  static constexpr bool kHasQInRegisters = !(Variant & kQInSmem);
  static constexpr bool kHasTurns = Variant & kPingPong;
  static constexpr bool kHasOverlap = !(Variant & kNoOverlap);
  static constexpr int kConsumers = kTileQ / 64;
  static constexpr int kThreads = 128 * (1 + kConsumers);
  static constexpr int kRowBytes = HeadDim * 2;
  static constexpr int kTileBytes = kTileK * kRowBytes;
};

/// What the consumers must know of a stage of keys.
struct StageInfo {
  int key;        // token of the first key (masked stages hold neighbouring keys)
  int fill;       // keys in the stage; the rest are to be masked
  int has_next;   // the row has another stage
  int is_tested;  // 2: every pair by the mask; 1: keys past `fill`; 0: nothing
};
/// What they must know of a row; q_tile < 0: no more rows.
struct RowInfo {
  int head;  // b * Hq + h: one number, since a register too many would spill
  int q_tile, has_keys;
};

template <class C>
struct alignas(1024) Shared {  // 1024: the period of the 128-byte swizzle
  uint8_t q[C::kTileQ * C::kRowBytes];
  uint8_t out[C::kTileQ * C::kRowBytes];
  uint8_t k[C::kStagesK][C::kTileBytes];
  uint8_t v[C::kStagesV][C::kTileBytes];
  Ring<1> q_ring;
  Ring<C::kStagesK> k_ring;
  Ring<C::kStagesV> v_ring;
  alignas(16) RowInfo row;
  alignas(16) StageInfo stage[C::kStagesK];
};

// ---- producer ----

/// Copies `tokens` (1 to 64) tokens as one box per set bit, and one per column block: lane b + 7 * block owns bit b.
template <class C>
__device__ void copy_pieces(uint8_t* tile, const CUtensorMap* piece, int token, int first, int tokens, int head, int batch, uint64_t* full) {
  const int lane = threadIdx.x % 32;
  const int bit = lane % ForwardArgs::kPieces, block = lane / ForwardArgs::kPieces;
  if (block < C::kBlocks && (tokens >> bit & 1)) {
    const int before = tokens >> (bit + 1) << (bit + 1);
    cp_async_bulk_tensor_load(tile + (block * C::kTileK + first + before) * 128, &piece[bit], {0, token + before, block, head, batch}, full);
  }
}

template <class C>
__device__ void produce_row_of_plan(const ForwardArgs& args, Shared<C>& shared, RowWalk& rows, const RowHead& row, RunCursor& keys,
                                    RingPlace<C::kStagesK>& k_place, RingPlace<C::kStagesV>& v_place) {
  const int lane = threadIdx.x % 32;
  const int head_kv = row.head / args.heads_per_group;
  while (keys.more()) {
    k_place.wait_empty(shared.k_ring);
    v_place.wait_empty(shared.v_ring);
    uint8_t* const k_tile = shared.k[k_place.stage];
    uint8_t* const v_tile = shared.v[v_place.stage];
    uint64_t* const k_full = &shared.k_ring.full[k_place.stage];
    uint64_t* const v_full = &shared.v_ring.full[v_place.stage];
    const bool is_masked = keys.is_masked();
    StageInfo info = {keys.key(), 0, 0, 0};
    int k_bytes = C::kTileBytes;
    const bool reads_to_end = keys.key() + keys.left() == args.seqlen_k;  // past the end the copy engine itself fills in zeros
    if (keys.left() >= C::kTileK || reads_to_end) {
      if (lane == 0) {
        cp_async_bulk_tensor_load(k_tile, &args.k, {0, info.key, 0, head_kv, row.batch}, k_full);
        cp_async_bulk_tensor_load(v_tile, &args.v, {0, info.key, 0, head_kv, row.batch}, v_full);
      }
      info.fill = min(keys.left(), C::kTileK);
      keys.take(info.fill);
    } else {  // ends of runs: what is skipped is not copied, and runs of `whole` share a stage
      do {
        const int tokens = min(keys.left(), C::kTileK - info.fill);
        copy_pieces<C>(k_tile, args.k_piece, keys.key(), info.fill, tokens, head_kv, row.batch, k_full);
        copy_pieces<C>(v_tile, args.v_piece, keys.key(), info.fill, tokens, head_kv, row.batch, v_full);
        info.fill += tokens;
        keys.take(tokens);
      } while (info.fill < C::kTileK && !is_masked && keys.more());
      // 0 * NaN is NaN: the rest of V is zeros, copied from past the end. Scores against the rest of K are masked.
      copy_pieces<C>(v_tile, args.v_piece, args.seqlen_k, info.fill, C::kTileK - info.fill, head_kv, row.batch, v_full);
      k_bytes = info.fill * C::kRowBytes;
    }
    info.has_next = keys.more();
    info.is_tested = is_masked ? 2 : info.fill < C::kTileK;
    __syncwarp();
    if (lane == 0) {
      shared.stage[k_place.stage] = info;
      mbarrier_arrive_expect_tx(k_full, k_bytes);
      mbarrier_arrive_expect_tx(v_full, C::kTileBytes);
    }
    k_place.advance();
    v_place.advance();
    rows.work_ahead();
  }
}

/// The same by a plain counter, for keys in multiples of kTileK.
template <class C>
__device__ void produce_row_by_counter(const ForwardArgs& args, Shared<C>& shared, RowWalk& rows, const RowHead& row, RingPlace<C::kStagesK>& k_place,
                                       RingPlace<C::kStagesV>& v_place) {
  const int head_kv = row.head / args.heads_per_group;
  for (int key = 0; key < args.seqlen_k; key += C::kTileK) {
    k_place.wait_empty(shared.k_ring);
    v_place.wait_empty(shared.v_ring);
    if (threadIdx.x % 32 == 0) {
      mbarrier_arrive_expect_tx(&shared.k_ring.full[k_place.stage], C::kTileBytes);
      cp_async_bulk_tensor_load(shared.k[k_place.stage], &args.k, {0, key, 0, head_kv, row.batch}, &shared.k_ring.full[k_place.stage]);
      mbarrier_arrive_expect_tx(&shared.v_ring.full[v_place.stage], C::kTileBytes);
      cp_async_bulk_tensor_load(shared.v[v_place.stage], &args.v, {0, key, 0, head_kv, row.batch}, &shared.v_ring.full[v_place.stage]);
    }
    k_place.advance();
    v_place.advance();
    rows.work_ahead();
  }
}

template <class C>
__device__ void produce(const ForwardArgs& args, Shared<C>& shared) {
  const int lane = threadIdx.x % 32;
  RingPlace<1> q_place;
  RingPlace<C::kStagesK> k_place;
  RingPlace<C::kStagesV> v_place;
  RowWalk rows(args);
  RowHead row;
  RunChunk first;
  while (rows.advance(row, first)) {
    RunCursor keys(args, row, first);
    q_place.wait_empty(shared.q_ring);
    if (lane == 0) {
      shared.row = {row.batch * args.heads_q + row.head, row.q_tile, C::kIsByCounter || keys.more()};
      mbarrier_arrive_expect_tx(&shared.q_ring.full[0], sizeof(shared.q));
      cp_async_bulk_tensor_load(shared.q, &args.q, {0, row.q_tile * C::kTileQ, 0, row.head, row.batch}, &shared.q_ring.full[0]);
    }
    q_place.advance();
    if constexpr (C::kIsByCounter) {
      produce_row_by_counter<C>(args, shared, rows, row, k_place, v_place);
    } else {
      produce_row_of_plan<C>(args, shared, rows, row, keys, k_place, v_place);
    }
  }
  q_place.wait_empty(shared.q_ring);
  if (lane == 0) {
    shared.row = {0, -1, 0};
    mbarrier_arrive(&shared.q_ring.full[0]);
  }
  rows.close();
}

// ---- consumers ----

/// Turns of the consumer warpgroups at the matrix units: while one multiplies, the other does its softmax.
template <bool kEnabled>
struct Turns {
  static constexpr uint32_t kFirstBarrier = 1;
  int group;

  __device__ void open() const {  // the first turn is group 0's
    if (kEnabled && group == 1) bar_arrive(kFirstBarrier, 256);
  }
  __device__ void take() const {
    if (kEnabled) bar_sync(kFirstBarrier + group, 256);
  }
  __device__ void pass() const {
    if (kEnabled) bar_arrive(kFirstBarrier + 1 - group, 256);
  }
  __device__ void close() const {  // nobody leaves with a turn unclaimed
    if (kEnabled && group == 0) bar_sync(kFirstBarrier, 256);
  }
};

/// The A operand of one k-step of 16, read from rows of 128 bytes under the swizzle.
template <class C>
__device__ void load_q_registers(uint32_t (&q)[C::kHeadDim / 16][4], const uint8_t* q_tile, int first_row) {
  const int lane = threadIdx.x % 32;
  const int row = first_row + lane % 16;
#pragma unroll
  for (int step = 0; step < C::kHeadDim / 16; ++step) {
    const int chunk = step % 4 * 2 + lane / 16;
    ldmatrix_x4(q[step], smem_address(q_tile) + (step / 4 * C::kTileQ + row) * 128 + (chunk ^ row % 8) * 16);
  }
}

/// scores[64, tile_k] = q k^T
template <class C>
__device__ void wgmma_qk(float (&scores)[C::kTileK / 2], const uint32_t (&q)[C::kHeadDim / 16][4], const uint8_t* q_rows, const uint8_t* k_tile) {
  using Mma = Wgmma<C::kTileK, typename C::Element>;
  const uint64_t a = wgmma_descriptor_k_major(smem_address(q_rows));
  const uint64_t b = wgmma_descriptor_k_major(smem_address(k_tile));
  wgmma_fence();
#pragma unroll
  for (int step = 0; step < C::kHeadDim / 16; ++step) {
    const uint64_t b_step = b + (step / 4 * C::kTileK * 128 + step % 4 * 32) / 16;
    if constexpr (C::kHasQInRegisters) {
      Mma::template rs<false>(scores, q[step], b_step, step > 0);
    } else {
      Mma::ss(scores, a + (step / 4 * C::kTileQ * 128 + step % 4 * 32) / 16, b_step, step > 0);
    }
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

/// -inf where the stage holds no key, or the mask hides it. A thread's 32 columns of a row are a word of bits.
template <class C>
__device__ void mask(float (&scores)[C::kTileK / 2], const StageInfo& info, const Band& band, int64_t token) {
  static_assert(C::kTileK == 128, "32 columns a thread and row");
  const int lane_column = threadIdx.x % 4 * 2;
  const auto below = [&](int64_t key) {  // bits of this thread's columns that hold keys < key
    const int column = static_cast<int>(min(max(key - info.key, int64_t{0}), int64_t{C::kTileK})) - lane_column;
    const int bits = column <= 0 ? 0 : column / 8 * 2 + min(column % 8, 2);
    return static_cast<uint32_t>((uint64_t{1} << bits) - 1);
  };
  uint32_t seen[2];
  for (int r = 0; r < 2; ++r) {
    seen[r] = below(int64_t{info.key} + info.fill);
    if (info.is_tested == 2) seen[r] &= below(token + 8 * r + band.right + 1) & (~below(token + 8 * r - band.left) | below(band.sink));
  }
#pragma unroll
  for (int i = 0; i < C::kTileK / 2; ++i) {
    if (!(seen[i / 2 % 2] >> (i / 4 * 2 + i % 2) & 1)) scores[i] = -INFINITY;
  }
}

/// A warp's 16 rows, through its own part of shared memory.
template <class C>
__device__ void store(const ForwardArgs& args, uint8_t* out, const float (&acc)[C::kHeadDim / 2], const float (&lse)[2], const RowInfo& row) {
  const int thread = thread_index_again(), lane = thread % 32;
  const int first_row = (thread - 128) / 32 * 16;
  const int query = row.q_tile * C::kTileQ + first_row;
  uint8_t* const mine = out + first_row * C::kRowBytes;
  if (lane == 0) cp_async_bulk_wait_group_read<0>();  // the row before has left
  __syncwarp();
#pragma unroll
  for (int step = 0; step < C::kHeadDim / 16; ++step) {
    const int chunk = step % 4 * 2 + lane / 16, r = lane % 16;
    const float* a = &acc[step * 8];
    using T = typename C::Element;
    const uint32_t packed[4] = {cvt_pack<T>(a[0], a[1]), cvt_pack<T>(a[2], a[3]), cvt_pack<T>(a[4], a[5]), cvt_pack<T>(a[6], a[7])};
    stmatrix_x4(smem_address(mine) + (step / 4 * 16 + r) * 128 + (chunk ^ r % 8) * 16, packed);
  }
  fence_proxy_async();
  __syncwarp();
  if (lane == 0 && query < args.seqlen_q) {
    cp_async_bulk_tensor_store(&args.out, {0, query, 0, row.head % args.heads_q, row.head / args.heads_q}, mine);
    cp_async_bulk_commit_group();
  }
  const int mine_query = query + lane / 4 + lane % 2 * 8;  // two lanes of a quad write a row each
  if (args.lse && lane % 4 < 2 && mine_query < args.seqlen_q) {
    args.lse[static_cast<int64_t>(row.head) * args.seqlen_q + mine_query] = lane % 2 ? lse[1] : lse[0];
  }
}

/// A stage's info: from the producer, or by the counter.
template <class C>
__device__ StageInfo read_stage(const ForwardArgs& args, const Shared<C>& shared, int stage, int step) {
  if constexpr (C::kIsByCounter) {
    return {step * C::kTileK, C::kTileK, (step + 1) * C::kTileK < args.seqlen_k, 0};
  } else {
    return shared.stage[stage];
  }
}

template <class C>
__device__ void consume(const ForwardArgs& args, Shared<C>& shared, int group) {
  const int lane = threadIdx.x % 32;
  const uint8_t* const q_rows = shared.q + group * 64 * 128;
  const Turns<C::kHasTurns> turns = {group};
  RingPlace<1> q_place;
  RingPlace<C::kStagesK> k_place;
  RingPlace<C::kStagesV> v_place;
  uint32_t q[C::kHeadDim / 16][4];
  uint32_t p[C::kTileK / 16][4];
  float scores[C::kTileK / 2];
  float acc[C::kHeadDim / 2];
  float lse[2];
  Softmax softmax;
  softmax.scale_log2 = args.scale_log2;
  softmax.threshold = args.rescale_threshold;
  const auto release = [&](auto& place, auto& ring) {
    if (lane == 0) place.release(ring);
    place.advance();
  };
  const auto mask_if_partial = [&](const StageInfo& info, const RowInfo& row) {
    if constexpr (!C::kIsByCounter) {
      if (info.is_tested) {
        const int thread = thread_index_again(), query = (thread - 128) / 32 * 16 + thread % 32 / 4;
        mask<C>(scores, info, args.band, int64_t{row.q_tile} * C::kTileQ + query + args.seqlen_k - args.seqlen_q);
      }
    }
  };
  turns.open();
  while (true) {
    q_place.wait_full(shared.q_ring);
    const RowInfo row = shared.row;
    if (row.q_tile < 0) break;
    if constexpr (C::kHasQInRegisters) {
      load_q_registers<C>(q, shared.q, group * 64 + thread_index_again() / 32 % 4 * 16);
      __syncwarp();
      release(q_place, shared.q_ring);
    }
    softmax.reset();
    for (float& x : acc) x = 0;
    if (row.has_keys) {
      int step = 0;
      k_place.wait_full(shared.k_ring);
      StageInfo info = read_stage<C>(args, shared, k_place.stage, step);
      turns.take();
      wgmma_qk<C>(scores, q, q_rows, shared.k[k_place.stage]);
      turns.pass();
      wgmma_wait_group<0>(scores);
      release(k_place, shared.k_ring);
      mask_if_partial(info, row);
      softmax.raise_max(scores);
      softmax.exponentiate(scores);
      pack<C>(p, scores);
      if (info.has_next) k_place.wait_full(shared.k_ring);
      while (info.has_next) {
        turns.take();
        if constexpr (C::kHasOverlap) {
          wgmma_qk<C>(scores, q, q_rows, shared.k[k_place.stage]);  // of this stage
          v_place.wait_full(shared.v_ring);
          wgmma_pv<C>(acc, p, shared.v[v_place.stage]);             // of the stage before
          turns.pass();
          info = read_stage<C>(args, shared, k_place.stage, ++step);
          wgmma_wait_group<1>(scores);
        } else {
          v_place.wait_full(shared.v_ring);
          wgmma_pv<C>(acc, p, shared.v[v_place.stage]);
          wgmma_wait_group<0>(acc);
          wgmma_qk<C>(scores, q, q_rows, shared.k[k_place.stage]);
          turns.pass();
          info = read_stage<C>(args, shared, k_place.stage, ++step);
          wgmma_wait_group<0>(scores);
        }
        release(k_place, shared.k_ring);
        mask_if_partial(info, row);
        const bool is_outgrown = softmax.raise_max(scores);  // while PV is in flight
        if (info.has_next) k_place.wait_full(shared.k_ring);  // here, so that nothing stands between the softmax and the next products
        wgmma_wait_group<0>(acc);
        release(v_place, shared.v_ring);
        if (is_outgrown) softmax.rescale(acc);
        // After the wait: meanwhile the other warpgroup's products fill the matrix units (docs/notes/sm90.md, "Who hides the softmax").
        softmax.exponentiate(scores);
        pack<C>(p, scores);
      }
      v_place.wait_full(shared.v_ring);
      wgmma_pv<C>(acc, p, shared.v[v_place.stage]);
      wgmma_wait_group<0>(acc);
      release(v_place, shared.v_ring);
    }
    if constexpr (!C::kHasQInRegisters) release(q_place, shared.q_ring);
    softmax.finish(acc, lse);
    store<C>(args, shared.out, acc, lse, row);
  }
  turns.close();
}

template <class C>
__global__ void __launch_bounds__(C::kThreads, 1) attend_sm90_forward_kernel(const __grid_constant__ ForwardArgs args) {
  extern __shared__ __align__(1024) uint8_t dynamic_shared[];
  Shared<C>& shared = *reinterpret_cast<Shared<C>*>(dynamic_shared);
  if (threadIdx.x == 0) {
    shared.q_ring.init(4 * C::kConsumers);
    shared.k_ring.init(4 * C::kConsumers);
    shared.v_ring.init(4 * C::kConsumers);
    fence_mbarrier_init();
  }
  __syncthreads();
  const int warpgroup = __shfl_sync(kAllLanes, threadIdx.x / 128, 0);
  if (warpgroup == 0) {
    setmaxnreg_dec<56>();
    if (threadIdx.x < 32) produce<C>(args, shared);
  } else {
    setmaxnreg_inc<224>();
    consume<C>(args, shared, warpgroup - 1);
    if (threadIdx.x % 32 == 0) cp_async_bulk_wait_group_read<0>();  // shared memory outlives the last store
  }
}

}  // namespace tilewise::attend::sm90
