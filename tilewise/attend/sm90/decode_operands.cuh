// SPDX-License-Identifier: Apache-2.0
// How 16 keys of a stage become operands of the matrix units. Keys are the 16 rows of the first product and channels those of the second, so both
// stored sides are the A operand; queries and probabilities are the B operand with 8 rows of work as its columns.
//
// Lane 4 g + t of a warp holds, of an A operand, rows g and g + 8 and four of the 16 columns. Which channels those are is free as long as q has the
// same order, so integers are read 16 bytes a lane and never moved between lanes. In the product with values the rows are channels: lane group g
// then has neighbouring channels of the four keys that t names.
#pragma once

#include "tilewise/attend/sm90/decode_config.cuh"

namespace tilewise::attend::sm90 {

/// Keys or values of a chunk. `base`: of its first row in shared memory; `block_bytes` from one column block to the next.
struct DecodeTile {
  uint32_t base;
  uint32_t block_bytes;
};

__device__ inline uint32_t load_shared_32(uint32_t address) {
  uint32_t x;
  asm volatile("ld.shared.b32 %0, [%1];" : "=r"(x) : "r"(address) : "memory");
  return x;
}
__device__ inline void load_shared(uint32_t (&x)[1], uint32_t address) { x[0] = load_shared_32(address); }
__device__ inline void load_shared(uint32_t (&x)[2], uint32_t address) {
  asm volatile("ld.shared.v2.b32 {%0, %1}, [%2];" : "=r"(x[0]), "=r"(x[1]) : "r"(address) : "memory");
}
__device__ inline void load_shared(uint32_t (&x)[4], uint32_t address) {
  asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];" : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3]) : "r"(address) : "memory");
}

/// Byte `x` of row `row` under the swizzle of rows of kWidth bytes: 16-byte units change places by the number of their 128-byte line.
template <int kWidth>
__device__ uint32_t swizzled(int row, int x) {
  const uint32_t offset = row * kWidth + x;
  return offset ^ ((offset >> 7 & (kWidth / 16 - 1)) << 4);
}

__device__ inline uint32_t sub_bf16x2(uint32_t a, uint32_t b) {
  const __nv_bfloat162 difference = __hsub2(reinterpret_cast<const __nv_bfloat162&>(a), reinterpret_cast<const __nv_bfloat162&>(b));
  return reinterpret_cast<const uint32_t&>(difference);
}
/// Signed bytes 0 and 2 as bf16: the low seven bits over 128, less 128 or 256 for the sign; both are exact.
__device__ inline uint32_t bf16_of_bytes(uint32_t x) { return sub_bf16x2((x & 0x007F007Fu) | 0x43004300u, (x & 0x00800080u) | 0x43004300u); }
/// Half-bytes 0 and 4, which stand for themselves less 8.
__device__ inline uint32_t bf16_of_nibbles(uint32_t x) { return sub_bf16x2((x & 0x000F000Fu) | 0x43004300u, 0x43084308u); }

/// Channel of half `half` (0, 1: columns 2 t and on, or 2 t + 8 and on) and place `place` (0, 1) of step `step` of the first product.
template <class C>
__device__ int channel_of_step(int step, int t, int half, int place) {
  if constexpr (C::kStorage == DecodeStorage::plain) return step * 16 + half * 8 + t * 2 + place;
  if constexpr (C::kStorage == DecodeStorage::int8) return step / 4 * 64 + t * 16 + step % 4 * 4 + half + place * 2;  // bytes 0, 2; 1, 3 of a word
  constexpr int kWords = C::kHeadDim == 64 ? 2 : 4;                                                                   // of a lane at once
  const int word = step / 2;
  return word / kWords * 32 * kWords + t * 8 * kWords + word % kWords * 8 + step % 2 * 2 + half + place * 4;
}

/// Channel of row g (half 0) or g + 8 (half 1) of step `step` of the second product.
template <class C>
__device__ int channel_of_sum(int step, int g, int half) {
  if constexpr (C::kStorage == DecodeStorage::plain) return step * 16 + half * 8 + g;
  if constexpr (C::kStorage == DecodeStorage::int8 && C::kHeadDim == 256) return step / 8 * 128 + g * 16 + step % 8 * 2 + half;
  return g * (C::kHeadDim / 8) + step * 2 + half;
}

/// body(step, a): a holds keys g and g + 8.
template <class C, class Body>
__device__ void for_each_key_operand(const DecodeTile& tile, const Body& body) {
  const int lane = threadIdx.x % 32;
  if constexpr (C::kStorage == DecodeStorage::plain) {
    const int row = lane % 16;
#pragma unroll
    for (int step = 0; step < C::kSteps; ++step) {
      uint32_t a[4];
      machine::sm90::ldmatrix_x4(a, tile.base + step / 4 * tile.block_bytes + swizzled<128>(row, (step % 4 * 2 + lane / 16) * 16));
      body(step, a);
    }
  } else {
    const int g = lane / 4, t = lane % 4;
    constexpr int kWords = C::kStorage == DecodeStorage::int4 && C::kHeadDim == 64 ? 2 : 4;
    constexpr int kLoads = C::kRowBytes / (4 * 4 * kWords);
#pragma unroll
    for (int load = 0; load < kLoads; ++load) {
      uint32_t low[kWords], high[kWords];
      const int byte = load * 16 * kWords + t * 4 * kWords, block = byte / C::kWidth, x = byte % C::kWidth;
      load_shared(low, tile.base + block * tile.block_bytes + swizzled<C::kWidth>(g, x));
      load_shared(high, tile.base + block * tile.block_bytes + swizzled<C::kWidth>(g + 8, x));
#pragma unroll
      for (int word = 0; word < kWords; ++word) {
        if constexpr (C::kStorage == DecodeStorage::int8) {
          const uint32_t a[4] = {bf16_of_bytes(low[word]), bf16_of_bytes(high[word]), bf16_of_bytes(low[word] >> 8), bf16_of_bytes(high[word] >> 8)};
          body(load * 4 + word, a);
        } else {
#pragma unroll
          for (int pair = 0; pair < 2; ++pair) {
            const uint32_t l = low[word] >> (8 * pair), h = high[word] >> (8 * pair);
            const uint32_t a[4] = {bf16_of_nibbles(l), bf16_of_nibbles(h), bf16_of_nibbles(l >> 4), bf16_of_nibbles(h >> 4)};
            body((load * kWords + word) * 2 + pair, a);
          }
        }
      }
    }
  }
}

/// body(step, a): a holds the channels that channel_of_sum() names. Plain values of keys outside of [low, high) become zeros, since a row that is
/// not to be read may hold anything.
template <class C, class Body>
__device__ void for_each_value_operand(const DecodeTile& tile, int low, int high, const Body& body) {
  const int lane = threadIdx.x % 32;
  if constexpr (C::kStorage == DecodeStorage::plain) {
    const int row = lane % 8 + lane / 16 * 8, t = lane % 4;
    const auto kept = [&](int key) { return (key >= low && key < high ? 0xFFFFu : 0u) | (key + 1 >= low && key + 1 < high ? 0xFFFF0000u : 0u); };
    const uint32_t kept_low = kept(2 * t), kept_high = kept(2 * t + 8);
#pragma unroll
    for (int step = 0; step < C::kSteps; ++step) {
      uint32_t a[4];
      machine::sm90::ldmatrix_x4_trans(a, tile.base + step / 4 * tile.block_bytes + swizzled<128>(row, (step % 4 * 2 + lane / 8 % 2) * 16));
      a[0] &= kept_low;
      a[1] &= kept_low;
      a[2] &= kept_high;
      a[3] &= kept_high;
      body(step, a);
    }
  } else {
    const int g = lane / 4, t = lane % 4;
    constexpr int kBytes = C::kRowBytes / 8 < 16 ? C::kRowBytes / 8 : 16;  // of a lane at once
    constexpr int kWords = kBytes / 4, kLoads = C::kRowBytes / 8 / kBytes;
#pragma unroll
    for (int load = 0; load < kLoads; ++load) {
      uint32_t x[4][kWords];  // keys 2 t, 2 t + 1, 2 t + 8, 2 t + 9
      const int byte = load * 8 * kBytes + g * kBytes, block = byte / C::kWidth;
#pragma unroll
      for (int key = 0; key < 4; ++key) {
        load_shared(x[key], tile.base + block * tile.block_bytes + swizzled<C::kWidth>(2 * t + key % 2 + key / 2 * 8, byte % C::kWidth));
      }
#pragma unroll
      for (int word = 0; word < kWords; ++word) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const uint32_t selector = half == 0 ? 0x5410 : 0x7632;
          const uint32_t first = __byte_perm(x[0][word], x[1][word], selector), second = __byte_perm(x[2][word], x[3][word], selector);
          const int at = (load * kWords + word) * 2 + half;
          if constexpr (C::kStorage == DecodeStorage::int8) {
            const uint32_t a[4] = {bf16_of_bytes(first), bf16_of_bytes(first >> 8), bf16_of_bytes(second), bf16_of_bytes(second >> 8)};
            body(at, a);
          } else {
#pragma unroll
            for (int pair = 0; pair < 2; ++pair) {
              const uint32_t f = first >> (8 * pair), s = second >> (8 * pair);
              const uint32_t a[4] = {bf16_of_nibbles(f), bf16_of_nibbles(f >> 4), bf16_of_nibbles(s), bf16_of_nibbles(s >> 4)};
              body(at * 2 + pair, a);
            }
          }
        }
      }
    }
  }
}

}  // namespace tilewise::attend::sm90
