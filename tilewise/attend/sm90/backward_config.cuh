// SPDX-License-Identifier: Apache-2.0
// What the parts of a backward kernel agree on. Plan of registers, shared memory and barriers: docs/notes/sm90.md, "Backward".
#pragma once

#include "tilewise/attend/sm90/backward_args.h"
#include "tilewise/machine/sm90/pipeline.cuh"
#include "tilewise/machine/sm90/wgmma.cuh"

namespace tilewise::attend::sm90 {

using namespace machine::sm90;

/// HeadDim: 64 or 128, to which fewer channels are filled up with zeros.
template <int HeadDim, class T, bool HasSoftcap>
struct BackwardConfig {
  using Element = T;
  static constexpr int kHeadDim = HeadDim, kBlocks = HeadDim / 64;
  static constexpr bool kHasSoftcap = HasSoftcap;
  static constexpr int kTileQ = backward_tile_q(HeadDim), kTileK = kKeyTile;
  static constexpr int kQBlocks = kTileQ / 64;
  static constexpr int kStages = HeadDim == 64 ? 2 : 3;  // of q and dout
  static constexpr int kStagesDs = 2;  // how far dS may run ahead of dq
  static constexpr int kStagesDq = 1;
  static constexpr int kWriters = 2;  // of dq, in turn: one waits for its turn while the other's sums arrive
  static constexpr int kThreads = 3 * 128;  // producer, two of keys
  static constexpr int kKeyRegisters = 240, kProducerRegisters = 24;  // 2 * 240 + 24 = 504 of 512
  static constexpr int kRowBlockBytes = kTileQ * 128, kKeyBlockBytes = kTileK * 128;
};

/// A tile of keys on its way from the warp that loads to those that compute; steps < 0: no more.
struct ItemInfo {
  int batch, head_kv, key_first, steps;
  uint64_t live[2];  // keys that are read at all: the others may hold NaN
  int64_t first_step;

  __device__ bool has_dead() const { return (live[0] & live[1]) != ~uint64_t{0}; }
};

template <class C>
struct alignas(1024) BackwardShared {  // 1024: the period of the 128-byte swizzle
  uint8_t k[C::kBlocks][C::kKeyBlockBytes];
  uint8_t v[C::kBlocks][C::kKeyBlockBytes];
  uint8_t q[C::kStages][C::kBlocks][C::kRowBlockBytes];
  uint8_t dout[C::kStages][C::kBlocks][C::kRowBlockBytes];
  uint8_t ds[C::kStagesDs][C::kQBlocks][C::kKeyBlockBytes];  // dS^T: rows are keys
  float dq[C::kStagesDq][2][64 * 64];                        // halves: of channels, or of queries where a tile has 128
  alignas(16) float row_facts[C::kStages][C::kTileQ * 2];
  int pattern[C::kStages];  // of the step; -1: every pair counts
  alignas(16) ItemInfo item[2];
  Ring<2> item_ring;
  Ring<1> k_ring, v_ring;
  Ring<C::kStages> row_ring;
  Ring<C::kStagesDs> ds_ring;
  uint64_t dq_full[C::kWriters][2], dq_empty[C::kStagesDq][2];
};

constexpr uint32_t kAllThreads = 0xFFFFFFFFu;
/// Named barriers: of each key warpgroup, and of all that read keys.
enum BarrierId : uint32_t { first_keys_barrier = 1, second_keys_barrier, readers_barrier };

/// Where a column block is to the copy engine.
__device__ inline Coordinate5 box_of(bool is_flat, int block, int token, int head, int batch) {
  return is_flat ? Coordinate5{block * 64, token, 0, head, batch} : Coordinate5{0, token, block, head, batch};
}

/// Read again each time: a lane number kept in a register is one too many.
__device__ inline int lane_of_warp() { return static_cast<int>(thread_index_again() % 32); }

/// A warp's way along the items, in one register: how many it has had.
struct ItemPlace {
  int count = 0;

  template <class C>
  __device__ const ItemInfo& wait(BackwardShared<C>& shared) const {
    mbarrier_wait(&shared.item_ring.full[count % 2], count / 2 % 2);
    return shared.item[count % 2];
  }
  /// Of the tile of keys.
  __device__ void wait_keys(Ring<1>& ring) const { mbarrier_wait(&ring.full[0], count % 2); }
  /// After the warp's last look at the item.
  template <class C>
  __device__ void advance(BackwardShared<C>& shared) {
    __syncwarp();
    if (lane_of_warp() == 0) mbarrier_arrive(&shared.item_ring.empty[count % 2]);
    ++count;
  }
};

}  // namespace tilewise::attend::sm90
