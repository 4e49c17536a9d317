// SPDX-License-Identifier: Apache-2.0
#pragma once
// Vectors of 32-bit lanes, one inline function per instruction, one body per target. A unit says which target it is compiled for before it
// includes anything:
//
//   #define TILEWISE_TARGET avx2          // a namespace inside tilewise::machine::cpu
//   #define TILEWISE_TARGET_LEVEL 1       // 0 portable, 1 avx2, 2 avx512, 3 avx512bf16
//
// Everything here has internal linkage. A weak symbol compiled with AVX-512 could be the copy that the linker keeps for everyone, so such units also
// include no standard containers or algorithms (tests/machine/cpu/weak_symbols_test reads the object files).
//
//   Vf, Vi, Mask            kWidth floats, int32s, truths
//   load store load_n store_n broadcast broadcast_at zero load_i store_i broadcast_i
//   add sub mul div fma max min round scale_exponent  bits_and bits_or
//   less_equal_i less equal is_nan  mask_and mask_of_bits  select
//   reduce_add reduce_max transpose  broadcast_four sum_fours max_fours  prefetch
//   load_bf16 load_bf16_pairs interleave store_bf16 narrow narrow_pairs  (and dot_bf16 where kHasDotBf16)
//   load_f16 store_f16 load_i8 load_u4
//   exp2 exp2_clamped exp2_of_product log tanh: made of the above
#include <cstdint>

#if !defined(TILEWISE_TARGET) || !defined(TILEWISE_TARGET_LEVEL)
#error "define TILEWISE_TARGET and TILEWISE_TARGET_LEVEL first"
#endif

#define TILEWISE_INLINE static inline __attribute__((always_inline))
#if defined(__clang__)
#define TILEWISE_UNROLL _Pragma("clang loop unroll(full)")
#define TILEWISE_UNROLL_BY_4 _Pragma("clang loop unroll_count(4)")
#else
#define TILEWISE_UNROLL _Pragma("GCC unroll 32")
#define TILEWISE_UNROLL_BY_4 _Pragma("GCC unroll 4")
#endif

#if TILEWISE_TARGET_LEVEL >= 2
#include "tilewise/machine/cpu/simd_avx512-inl.h"
#elif TILEWISE_TARGET_LEVEL == 1
#include "tilewise/machine/cpu/simd_avx2-inl.h"
#else
#include "tilewise/machine/cpu/simd_portable-inl.h"
#endif

namespace tilewise::machine::cpu::TILEWISE_TARGET {
namespace {

inline constexpr float kLog2E = 1.44269504088896341f;
inline constexpr float kInfinity = __builtin_inff();

/// Asks for `bytes` of memory ahead of time.
TILEWISE_INLINE void prefetch(const void* from, int64_t bytes) {
  const char* const p = static_cast<const char*>(from);
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(p + i, 0, 2);
}

/// 2^x for x <= 127. Relative error 2.2e-7 (polynomial 7.5e-8, the rest is rounding); below -126 it is 0 or nearly so; NaN stays NaN.
/// The coefficients are minimax polynomials of degree 5 (Remez), rounded to f32.
TILEWISE_INLINE Vf exp2(Vf x) {
#if TILEWISE_TARGET_LEVEL >= 2
  // 2^x = 2^(x - floor(x)) * 2^floor(x): one instruction for each of the two halves, infinities included.
  const Vf f = fraction(x);
  Vf p = broadcast(0.0018775766948238015f);
  p = fma(p, f, broadcast(0.00898933969438076f));
  p = fma(p, f, broadcast(0.05582631751894951f));
  p = fma(p, f, broadcast(0.24015361070632935f));
  p = fma(p, f, broadcast(0.6931530833244324f));
  p = fma(p, f, broadcast(0.9999999403953552f));
  return scale_by_floor(p, x);
#else
  const Vf r = round(x);
  const Vf f = sub(x, r);  // [-1/2, 1/2]
  Vf p = broadcast(0.0013276472454890609f);
  p = fma(p, f, broadcast(0.009675540961325169f));
  p = fma(p, f, broadcast(0.05550713092088699f));
  p = fma(p, f, broadcast(0.24022120237350464f));
  p = fma(p, f, broadcast(0.6931469440460205f));
  p = fma(p, f, broadcast(1.0000001192092896f));
  return scale_exponent(p, r, x);
#endif
}

/// As exp2, but 2^-126 for anything below -126, -infinity included: fewer instructions, and less of them on the ports that multiply.
TILEWISE_INLINE Vf exp2_clamped(Vf x) {
  const Vf clamped = max(broadcast(-126.0f), x);       // NaN passes
  const Vf magic = broadcast(12582912.0f);             // 1.5 * 2^23: the sum's low bits are x rounded to an integer
  const Vf t = add(clamped, magic);
  const Vf f = sub(clamped, sub(t, magic));            // [-1/2, 1/2]
  Vf p = broadcast(0.0013276472454890609f);
  p = fma(p, f, broadcast(0.009675540961325169f));
  p = fma(p, f, broadcast(0.05550713092088699f));
  p = fma(p, f, broadcast(0.24022120237350464f));
  p = fma(p, f, broadcast(0.6931469440460205f));
  p = fma(p, f, broadcast(1.0000001192092896f));
  return add_exponent(p, t);
}

/// The powers that exp2_of_product takes: 2^kLeastPower to 2^(kLeastPower + 127).
inline constexpr int kLeastPower = -112;
/// What it wants m taken from. At the magic number a sum's last bit is 1/32 (512 bits) or 1.
inline constexpr float kExp2Magic = TILEWISE_TARGET_LEVEL >= 2 ? 393216.0f : 12582912.0f;  // 1.5 * 2^18, 1.5 * 2^23
inline constexpr float kExp2Offset = kExp2Magic - kLeastPower;

/// 2^(s * scale - m) for a whole number m, at most 2^16 either way, given as offset = kExp2Offset - m. Relative error 1.5e-7 with 512 bits, else 2.2e-7.
/// Where the power is out of range the result is rubbish: ask strays() of the least and the largest s. NaN stays NaN.
/// With 512 bits it is 2^(n / 32), n the nearest, from a table in two registers, times a polynomial of degree 2 (5.3e-8 on [-1/64, 1/64]): that spares two of
/// the instructions that multiply.
TILEWISE_INLINE Vf exp2_of_product(Vf s, Vf scale, Vf offset) {
  const Vf t = fma(s, scale, offset);
  const Vf r = fma(s, scale, sub(offset, t));  // what rounding t left over, with one rounding of its own
#if TILEWISE_TARGET_LEVEL >= 2
  const Vf power = power_of_32nds(t);
  const Vf slope = fma(broadcast(0.24022886157035828f), r, broadcast(0.6931573152542114f));
  return fma(mul(power, r), slope, power);
#else
  constexpr float kUnit = 1.925929944387236e-34f;  // 2^kLeastPower: the whole numbers in t count from there
  Vf p = broadcast(kUnit * 0.0013276472454890609f);
  p = fma(p, r, broadcast(kUnit * 0.009675540961325169f));
  p = fma(p, r, broadcast(kUnit * 0.05550713092088699f));
  p = fma(p, r, broadcast(kUnit * 0.24022120237350464f));
  p = fma(p, r, broadcast(kUnit * 0.6931469440460205f));
  p = fma(p, r, broadcast(kUnit * 1.0000001192092896f));
  return add_exponent(p, t);
#endif
}
/// Whether some lane of s lies outside what exp2_of_product takes. NaN does not.
TILEWISE_INLINE bool strays(Vf s, Vf scale, Vf offset) {
  const Vf t = fma(s, scale, offset);
  return any(less(t, broadcast(kExp2Magic))) || any(less(broadcast(kExp2Magic + 127), t));
}

/// Natural logarithm of x * 2^n for a normal x above 0 and a whole number n, |n| <= 2^15. Error 1e-7 of the result, 1e-7 where it is small. NaN and infinity stay.
/// log(1 + f) is f - f^2 / 2 + f^3 times a minimax polynomial of degree 8 (7.5e-10).
TILEWISE_INLINE Vf log(Vf x, Vf n) {
  Vf m, e;
  split_exponent(x, m, e);
  e = add(e, n);
  const Vf f = sub(m, broadcast(1.0f)), f2 = mul(f, f);
  Vf p = broadcast(0.06746640056371689f);
  p = fma(p, f, broadcast(-0.11675652116537094f));
  p = fma(p, f, broadcast(0.11888162046670914f));
  p = fma(p, f, broadcast(-0.1240558922290802f));
  p = fma(p, f, broadcast(0.14219552278518677f));
  p = fma(p, f, broadcast(-0.1666799634695053f));
  p = fma(p, f, broadcast(0.2000211924314499f));
  p = fma(p, f, broadcast(-0.25000008940696716f));
  p = fma(p, f, broadcast(0.3333331346511841f));
  const Vf rest = fma(mul(f, f2), p, fma(e, broadcast(-0.00021219444170128554f), mul(f2, broadcast(-0.5f))));
  const Vf result =
      add(mul(e, broadcast(0.693359375f)), add(f, rest));  // log(2) in two parts: the first has few enough bits that e times it is exact
  return select(less(x, broadcast(kInfinity)), result, x);
}

/// tanh, relative error 5e-7: an odd polynomial (minimax, degree 9) up to 0.63, (1 - t) / (1 + t) with t = exp(-2 |x|) beyond.
TILEWISE_INLINE Vf tanh(Vf x) {
  const Vf sign = bits_and(x, broadcast(-0.0f));
  const Vf magnitude = max(sub(zero(), x), x);
  const Vf t = exp2(mul(magnitude, broadcast(-2 * kLog2E)));
  const Vf one = broadcast(1.0f);
  const Vf far = bits_or(div(sub(one, t), add(one, t)), sign);
  const Vf y = mul(x, x);
  Vf p = broadcast(-0.005660789553076029f);
  p = fma(p, y, broadcast(0.02060200832784176f));
  p = fma(p, y, broadcast(-0.05372922867536545f));
  p = fma(p, y, broadcast(0.13331328332424164f));
  p = fma(p, y, broadcast(-0.33333277702331543f));
  const Vf near = fma(mul(p, y), x, x);
  return select(less(magnitude, broadcast(0.63f)), near, far);
}

}  // namespace
}  // namespace tilewise::machine::cpu::TILEWISE_TARGET
