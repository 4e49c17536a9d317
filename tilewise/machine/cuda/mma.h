// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <cstring>

#include "tilewise/machine/cuda/numbers.h"

// Products of a warp on its tensor cores (any GPU from Ampere on), and copies into shared memory that run beside them. On the CPU the same calls are loops
// over the 32 lanes with the layout that the hardware documents, for the tests of block.h.
namespace tilewise::machine::cuda {

struct MmaA {
  uint32_t word[4];
};
struct MmaB {
  uint32_t word[2];
};

/// d += a b for d [16, 8] f32, a [16, 16] and b [16, 8] of halves, of a warp together. With g = lane / 4 and c = lane % 4 a lane holds
///   d(thread)  float[4]: rows g, g, g + 8, g + 8, columns 2c, 2c + 1, 2c, 2c + 1
///   a(thread)  MmaA: rows g, g + 8, g, g + 8 at the depths 2c, 2c, 2c + 8, 2c + 8, two neighbouring depths a word, the smaller one low
///   b(thread)  MmaB: column g at the depths 2c, 2c + 8, likewise.
/// Depths may be any permutation of the sixteen, as long as a and b have the same.
template <Half kHalf, class D, class A, class B>
TILEWISE_DEVICE void mma_16x8x16([[maybe_unused]] int warp, const D& d, const A& a, const B& b) {
#if defined(__CUDA_ARCH__)
  const int thread = static_cast<int>(threadIdx.x);
  float(&sum)[4] = d(thread);
  const MmaA x = a(thread);
  const MmaB y = b(thread);
  if constexpr (kHalf == Half::bf16) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
                 : "r"(x.word[0]), "r"(x.word[1]), "r"(x.word[2]), "r"(x.word[3]), "r"(y.word[0]), "r"(y.word[1]));
  } else {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
                 : "r"(x.word[0]), "r"(x.word[1]), "r"(x.word[2]), "r"(x.word[3]), "r"(y.word[0]), "r"(y.word[1]));
  }
#else
  const auto wide = [](uint32_t word, int half) {
    const auto bits = static_cast<uint16_t>(word >> (16 * half));
    return kHalf == Half::bf16 ? float_of_bf16(bits) : float_of_f16(bits);
  };
  float rows[16][16], columns[8][16];
  for (int lane = 0; lane < 32; ++lane) {
    const int g = lane / 4, c = lane % 4;
    const MmaA x = a(warp * 32 + lane);
    const MmaB y = b(warp * 32 + lane);
    for (int half = 0; half < 2; ++half) {
      for (int word = 0; word < 4; ++word) rows[g + 8 * (word % 2)][2 * c + 8 * (word / 2) + half] = wide(x.word[word], half);
      for (int word = 0; word < 2; ++word) columns[g][2 * c + 8 * word + half] = wide(y.word[word], half);
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    float(&sum)[4] = d(warp * 32 + lane);
    for (int i = 0; i < 4; ++i) {
      float total = 0;
      for (int depth = 0; depth < 16; ++depth) total += rows[lane / 4 + 8 * (i / 2)][depth] * columns[2 * (lane % 4) + i % 2][depth];
      sum[i] += total;
    }
  }
#endif
}

/// Begins a copy of 16 bytes from global into shared memory, both aligned to 16; zeros where there is nothing to copy, and `from` is not read.
TILEWISE_DEVICE inline void begin_copy_16(void* to, const void* from, bool is_there) {
#if defined(__CUDA_ARCH__)
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from), "r"(is_there ? 16 : 0) : "memory");
#else
  if (is_there)
    std::memcpy(to, from, 16);
  else
    std::memset(to, 0, 16);
#endif
}
/// What the thread has begun since the last call becomes one group.
TILEWISE_DEVICE inline void commit_copies() {
#if defined(__CUDA_ARCH__)
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
/// Waits until at most kPending of the thread's newest groups are under way. Other threads see the copies behind the next barrier.
template <int kPending>
TILEWISE_DEVICE void wait_copies() {
#if defined(__CUDA_ARCH__)
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
#endif
}

}  // namespace tilewise::machine::cuda
