// SPDX-License-Identifier: Apache-2.0
// A ring of shared-memory stages between a producer (copy engine) and consumers (warps of the matrix warpgroups).
#pragma once

#include "tilewise/machine/sm90/ptx.cuh"

namespace tilewise::machine::sm90 {

/// Barriers of a ring. A stage is full when its bytes have come, empty when every consumer warp has let go of it.
template <int kStages>
struct Ring {
  uint64_t full[kStages];
  uint64_t empty[kStages];

  __device__ void init(int consumer_warps) {
    for (int stage = 0; stage < kStages; ++stage) {
      mbarrier_init(&full[stage], 1);
      mbarrier_init(&empty[stage], consumer_warps);
    }
  }
};

/// A place in a ring: which stage, and the parity of its current round.
template <int kStages>
struct RingPlace {
  int stage = 0;
  uint32_t round = 0;

  __device__ void advance() {
    if (++stage == kStages) {
      stage = 0;
      round ^= 1;
    }
  }
  __device__ void wait_full(Ring<kStages>& ring) const { mbarrier_wait(&ring.full[stage], round); }
  /// True at once in the first round, when no consumer has had the stage yet.
  __device__ void wait_empty(Ring<kStages>& ring) const { mbarrier_wait(&ring.empty[stage], round ^ 1); }
  /// One lane of each consumer warp, after the warp's last read of the stage.
  __device__ void release(Ring<kStages>& ring) const { mbarrier_arrive(&ring.empty[stage]); }
};

}  // namespace tilewise::machine::sm90
