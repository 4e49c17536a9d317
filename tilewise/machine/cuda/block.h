// SPDX-License-Identifier: Apache-2.0
#pragma once

// How kernels are written so that a test on the CPU runs the very lines that the GPU runs. A kernel is a template over a block of threads:
//   block.each([&](int thread) { ... })   a step of all threads, and a barrier behind it
//   block.get(word)                       a word of shared memory that an earlier step wrote, alike for all threads; a barrier behind it
//   block.match(keys, out)                with a barrier behind it: out[t] says how many threads of t's warp have its key, and how many of them stand before it
//   block.any([&](int thread) { ... })    a step that says yes or no for each thread, and whether any said yes
//   block.add, block.min, block.max, block.unite (bits)   atomic, on shared or global memory; add gives what was there
//   block.copy(shared, global)            8 bytes that arrive in the background: for the thread itself, behind its next block.wait_for_copies()
//   block.claim(word, value)              atomic: sets a word that is 0, and gives what it was
// For warps that compute on fragments (mma.h), without a barrier behind it:
//   block.warps([&](int warp) { ... })    a step of all warps, in which a warp's threads do their part by
//   block.lanes(warp, [&](int thread))    and meet in fold_lanes() and mma_16x8x16()
//   Block::Registers<T> own(block)        what each thread keeps from step to step: own[thread]
//   block.fold_lanes(warp, n, at, fold)   at(thread) of each n neighbouring lanes (2 or 4) becomes their fold
// What stands between the steps is computed alike by every thread and kept in its registers; what differs between threads goes through shared memory.
// DeviceBlock (device_block.cuh) runs a step once for its own thread. The tests' HostBlock runs it for one thread after another, in any order.

#if defined(__CUDACC__)
#define TILEWISE_DEVICE __device__
#define TILEWISE_HOST_DEVICE __host__ __device__
#define TILEWISE_UNROLL _Pragma("unroll")  // small arrays that are indexed by the loop then stay in registers
#define TILEWISE_NO_UNROLL _Pragma("unroll 1")  // for long bodies
#else
#define TILEWISE_DEVICE
#define TILEWISE_HOST_DEVICE
#define TILEWISE_UNROLL
#define TILEWISE_NO_UNROLL
#endif

namespace tilewise::machine::cuda {

/// What block.match() says of a thread.
struct Match {
  int rank, count;
};

/// Ints of shared memory that exclusive_sums() needs beside its values.
constexpr int sums_ints(int threads) { return threads / 8 + 1; }

/// Turns values[0 .. threads) of shared memory into the sums of those before each, and returns the sum of all. `threads` is a multiple of 8.
template <class Block>
TILEWISE_DEVICE int exclusive_sums(Block& block, int* values, int* sums) {
  const int groups = block.threads() / 8;
  block.each([&](int thread) {
    if (thread >= groups) return;
    int sum = 0;
    for (int i = 8 * thread; i < 8 * thread + 8; ++i) {
      const int value = values[i];
      values[i] = sum;
      sum += value;
    }
    sums[thread] = sum;
  });
  block.each([&](int thread) {
    if (thread != 0) return;
    int sum = 0;
    for (int i = 0; i < groups; ++i) {
      const int value = sums[i];
      sums[i] = sum;
      sum += value;
    }
    sums[groups] = sum;
  });
  block.each([&](int thread) { values[thread] += sums[thread / 8]; });
  return block.get(sums[groups]);
}

/// fold(fold(values[0], values[1]), ...) of shared memory, in a fixed order; the values are lost. `threads` is a multiple of 8.
template <class T, class Block, class Fold>
TILEWISE_DEVICE T folded(Block& block, T* values, const Fold& fold) {
  const int groups = block.threads() / 8;
  block.each([&](int thread) {
    if (thread >= groups) return;
    T sum = values[8 * thread];
    for (int i = 8 * thread + 1; i < 8 * thread + 8; ++i) sum = fold(sum, values[i]);
    values[8 * thread] = sum;
  });
  block.each([&](int thread) {
    if (thread != 0) return;
    T sum = values[0];
    for (int i = 1; i < groups; ++i) sum = fold(sum, values[8 * i]);
    values[0] = sum;
  });
  return block.get(values[0]);
}

/// Parts of a block's shared memory, taken one after another; with a null base it only counts.
class SharedParts {
 public:
  TILEWISE_HOST_DEVICE explicit SharedParts(unsigned char* base) : base_(base) {}
  template <class T>
  TILEWISE_HOST_DEVICE T* take(long count) {
    bytes_ = (bytes_ + sizeof(T) - 1) / sizeof(T) * sizeof(T);
    T* const part = base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + bytes_);
    bytes_ += static_cast<unsigned long>(count) * sizeof(T);
    return part;
  }
  TILEWISE_HOST_DEVICE unsigned long bytes() const { return bytes_; }

 private:
  unsigned char* base_;
  unsigned long bytes_ = 0;
};

}  // namespace tilewise::machine::cuda
