// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <bit>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "tilewise/base/api.h"

TILEWISE_BEGIN_PUBLIC

enum class Dtype : uint8_t { f32, f64, bf16, f16, i8, u8, i32, i64, u64, boolean };

/// 16-bit floats as storage; arithmetic converts to float first.
struct bf16 {
  uint16_t bits = 0;
  bf16() = default;
  explicit bf16(float value) {
    const uint32_t u = std::bit_cast<uint32_t>(value);
    const bool is_nan = (u & 0x7fffffffu) > 0x7f800000u;
    // Round to nearest, ties to even; a NaN keeps its sign and stays quiet.
    bits = is_nan ? static_cast<uint16_t>((u >> 16) | 0x40u) : static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
  }
  explicit operator float() const { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }
};

struct f16 {
  uint16_t bits = 0;
  f16() = default;
  TILEWISE_API explicit f16(float value);
  TILEWISE_API explicit operator float() const;
};

/// Bytes of one element.
TILEWISE_API size_t size_of(Dtype dtype);
/// "f32", "bf16", ...
TILEWISE_API std::string_view name(Dtype dtype);

template <class T>
inline constexpr Dtype kDtypeOf = [] {
  static_assert(sizeof(T) == 0, "this type has no Dtype");
  return Dtype::f32;
}();
template <> inline constexpr Dtype kDtypeOf<float> = Dtype::f32;
template <> inline constexpr Dtype kDtypeOf<double> = Dtype::f64;
template <> inline constexpr Dtype kDtypeOf<bf16> = Dtype::bf16;
template <> inline constexpr Dtype kDtypeOf<f16> = Dtype::f16;
template <> inline constexpr Dtype kDtypeOf<int8_t> = Dtype::i8;
template <> inline constexpr Dtype kDtypeOf<uint8_t> = Dtype::u8;
template <> inline constexpr Dtype kDtypeOf<int32_t> = Dtype::i32;
template <> inline constexpr Dtype kDtypeOf<int64_t> = Dtype::i64;
template <> inline constexpr Dtype kDtypeOf<uint64_t> = Dtype::u64;
template <> inline constexpr Dtype kDtypeOf<bool> = Dtype::boolean;

TILEWISE_END_PUBLIC
