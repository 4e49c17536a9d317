// SPDX-License-Identifier: Apache-2.0
// The smallest programs whose synchronisation compute-sanitizer's racecheck may not follow, one a kernel, as attend/sm90 has them. Each is right, and says so.
//   nvcc -std=c++20 -I. -gencode=arch=compute_90a,code=sm_90a tests/attend/sm90/racecheck_kinds.cu -o racecheck_kinds
//   for kind in 1 2 3 4; do compute-sanitizer --tool racecheck ./racecheck_kinds $kind; done
#include <cstdio>
#include <cstdlib>

#include "tilewise/machine/sm90/pipeline.cuh"

using namespace tilewise::machine::sm90;

// 1: all lanes of a warp write, __syncwarp, one lane arrives, the other warp waits and reads. So: ClaimedItem::runs, StageKeys.
__global__ void lanes_then_one_arrival(int* out) {
  __shared__ int values[32];
  __shared__ Ring<1> ring;
  if (threadIdx.x == 0) {
    ring.init(1);
    fence_mbarrier_init();
  }
  __syncthreads();
  const int lane = threadIdx.x % 32;
  if (threadIdx.x < 32) {
    values[lane] = lane;
    __syncwarp();
    if (lane == 0) mbarrier_arrive(&ring.full[0]);
  } else {
    RingPlace<1>().wait_full(ring);
    out[lane] = values[31 - lane];
  }
}

// 2: the same, and every lane arrives for itself: what is left of kind 1 if racecheck knows mbarriers but not that __syncwarp orders memory.
__global__ void every_lane_arrives(int* out) {
  __shared__ int values[32];
  __shared__ uint64_t full;
  if (threadIdx.x == 0) {
    mbarrier_init(&full, 32);
    fence_mbarrier_init();
  }
  __syncthreads();
  const int lane = threadIdx.x % 32;
  if (threadIdx.x < 32) {
    values[lane] = lane;
    mbarrier_arrive(&full);
  } else {
    mbarrier_wait(&full, 0);
    out[lane] = values[31 - lane];
  }
}

// 3: one lane writes and arrives, all lanes of another warp read, and release the place by one lane after __syncwarp; written again. So: item, stage.
__global__ void written_again(int* out) {
  __shared__ int value;
  __shared__ Ring<1> ring;
  if (threadIdx.x == 0) {
    ring.init(1);
    fence_mbarrier_init();
  }
  __syncthreads();
  const int lane = threadIdx.x % 32;
  RingPlace<1> place;
  int sum = 0;
  for (int round = 0; round < 4; ++round, place.advance()) {
    if (threadIdx.x < 32) {
      place.wait_empty(ring);
      if (lane == 0) {
        value = round;
        mbarrier_arrive(&ring.full[0]);
      }
      __syncwarp();
    } else {
      place.wait_full(ring);
      sum += value;
      __syncwarp();
      if (lane == 0) place.release(ring);
    }
  }
  if (threadIdx.x >= 32) out[lane] = sum;
}

// 4: a barrier's words, set by one thread before __syncthreads and waited for by all: initialisation against waits.
__global__ void initialised_and_waited_for(int* out) {
  __shared__ uint64_t full;
  if (threadIdx.x == 0) {
    mbarrier_init(&full, 1);
    fence_mbarrier_init();
  }
  __syncthreads();
  if (threadIdx.x == 0) mbarrier_arrive(&full);
  mbarrier_wait(&full, 0);
  if (threadIdx.x >= 32) out[threadIdx.x % 32] = 1;
}

int main(int argc, char** argv) {
  const int kind = argc > 1 ? std::atoi(argv[1]) : 1;
  int* out = nullptr;
  int host[32];
  if (cudaMalloc(&out, sizeof host) != cudaSuccess) return 2;
  if (kind == 1) lanes_then_one_arrival<<<1, 64>>>(out);
  if (kind == 2) every_lane_arrives<<<1, 64>>>(out);
  if (kind == 3) written_again<<<1, 64>>>(out);
  if (kind == 4) initialised_and_waited_for<<<1, 64>>>(out);
  if (cudaMemcpy(host, out, sizeof host, cudaMemcpyDeviceToHost) != cudaSuccess) return 2;
  for (int lane = 0; lane < 32; ++lane) {
    const int expected = kind <= 2 ? 31 - lane : kind == 3 ? 6 : 1;
    if (host[lane] != expected) return std::printf("kind %d: lane %d has %d, expected %d\n", kind, lane, host[lane], expected), 1;
  }
  std::printf("kind %d: right\n", kind);
  return 0;
}
