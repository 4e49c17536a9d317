// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <bit>
#include <cstdint>

#include "tilewise/machine/cuda/block.h"
#if defined(__CUDACC__)
#include <cuda_fp16.h>
#endif

// 16-bit floats in kernels that run on the CPU, too: bits in, bits out, rounded to nearest even.
namespace tilewise::machine::cuda {

enum class Half : int { bf16, f16 };

TILEWISE_HOST_DEVICE inline float float_of_bf16(uint16_t bits) { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }
TILEWISE_HOST_DEVICE inline float float_of_f16(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000U) << 16, rest = bits & 0x7fffU;
  if (rest >= 0x7c00U) return std::bit_cast<float>(sign | 0x7f800000U | (rest & 0x3ffU) << 13);
  if (rest >= 0x400U) return std::bit_cast<float>(sign | ((rest << 13) + 0x38000000U));
  const float small = static_cast<float>(rest) * 0x1p-24f;
  return sign != 0 ? -small : small;
}

TILEWISE_HOST_DEVICE inline uint16_t bf16_of_float(float value) {
  const uint32_t u = std::bit_cast<uint32_t>(value);
  if ((u & 0x7fffffffU) > 0x7f800000U) return static_cast<uint16_t>((u >> 16) | 0x40U);
  return static_cast<uint16_t>((u + 0x7fffU + ((u >> 16) & 1U)) >> 16);
}
TILEWISE_HOST_DEVICE inline uint16_t f16_of_float(float value) {
#if defined(__CUDA_ARCH__)
  return __half_as_ushort(__float2half_rn(value));
#else
  const uint32_t u = std::bit_cast<uint32_t>(value), sign = u >> 16 & 0x8000U, rest = u & 0x7fffffffU;
  if (rest > 0x7f800000U) return static_cast<uint16_t>(sign | 0x7e00U);
  if (rest >= 0x477ff000U) return static_cast<uint16_t>(sign | 0x7c00U);  // 65520 and above round to infinity
  if (rest < 0x38800000U) {  // subnormal, in units of 2^-24: adding 2^23 rounds to a whole number
    const float units = std::bit_cast<float>(rest) * 0x1p24f + 0x1p23f;
    return static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(units) & 0x7fffffU));
  }
  return static_cast<uint16_t>(sign | (rest + 0xfffU + (rest >> 13 & 1U) - 0x38000000U) >> 13);
#endif
}

/// Elements of tensors.
struct Bf16 {
  using Bits = uint16_t;
  static constexpr Half kHalf = Half::bf16;
  TILEWISE_HOST_DEVICE static float wide(uint16_t bits) { return float_of_bf16(bits); }
  TILEWISE_HOST_DEVICE static uint16_t narrow(float value) { return bf16_of_float(value); }
  /// Two of them in a word, the first in its low half.
  TILEWISE_HOST_DEVICE static uint32_t pair(float first, float second) {
#if defined(__CUDA_ARCH__)
    uint32_t word;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(second), "f"(first));
    return word;
#else
    return narrow(first) | static_cast<uint32_t>(narrow(second)) << 16;
#endif
  }
};
struct F16 {
  using Bits = uint16_t;
  static constexpr Half kHalf = Half::f16;
  TILEWISE_HOST_DEVICE static float wide(uint16_t bits) { return float_of_f16(bits); }
  TILEWISE_HOST_DEVICE static uint16_t narrow(float value) { return f16_of_float(value); }
  /// Two of them in a word, the first in its low half.
  TILEWISE_HOST_DEVICE static uint32_t pair(float first, float second) {
#if defined(__CUDA_ARCH__)
    uint32_t word;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(second), "f"(first));
    return word;
#else
    return narrow(first) | static_cast<uint32_t>(narrow(second)) << 16;
#endif
  }
};
struct F32 {
  using Bits = float;
  TILEWISE_HOST_DEVICE static float wide(float value) { return value; }
  TILEWISE_HOST_DEVICE static float narrow(float value) { return value; }
};

}  // namespace tilewise::machine::cuda
