// SPDX-License-Identifier: Apache-2.0
#pragma once
// The avx512 and avx512bf16 bodies of simd.h (F, BW, DQ, VL; level 3 adds BF16). Included by it alone.
#include <immintrin.h>

namespace tilewise::machine::cpu::TILEWISE_TARGET {
namespace {

using Vf = __m512;
using Vi = __m512i;
using Mask = __mmask16;
inline constexpr int kWidth = 16;
inline constexpr bool kHasDotBf16 = TILEWISE_TARGET_LEVEL >= 3;

TILEWISE_INLINE Mask first_lanes(int n) { return static_cast<Mask>(n >= 16 ? 0xffffu : (1u << n) - 1u); }

TILEWISE_INLINE Vf load(const float* p) { return _mm512_loadu_ps(p); }
TILEWISE_INLINE void store(float* p, Vf x) { _mm512_storeu_ps(p, x); }
/// The first n lanes; the others are 0, and their memory is not touched.
TILEWISE_INLINE Vf load_n(const float* p, int n) { return _mm512_maskz_loadu_ps(first_lanes(n), p); }
TILEWISE_INLINE void store_n(float* p, Vf x, int n) { _mm512_mask_storeu_ps(p, first_lanes(n), x); }
TILEWISE_INLINE Vf broadcast(float x) { return _mm512_set1_ps(x); }
TILEWISE_INLINE Vf broadcast_at(const float* p) { return _mm512_set1_ps(*p); }
TILEWISE_INLINE Vf zero() { return _mm512_setzero_ps(); }
TILEWISE_INLINE Vi load_i(const int32_t* p) { return _mm512_loadu_si512(p); }
TILEWISE_INLINE void store_i(int32_t* p, Vi x) { _mm512_storeu_si512(p, x); }
TILEWISE_INLINE Vi broadcast_i(int32_t x) { return _mm512_set1_epi32(x); }

TILEWISE_INLINE Vf add(Vf a, Vf b) { return _mm512_add_ps(a, b); }
TILEWISE_INLINE Vf sub(Vf a, Vf b) { return _mm512_sub_ps(a, b); }
TILEWISE_INLINE Vf mul(Vf a, Vf b) { return _mm512_mul_ps(a, b); }
TILEWISE_INLINE Vf div(Vf a, Vf b) { return _mm512_div_ps(a, b); }
/// a * b + c
TILEWISE_INLINE Vf fma(Vf a, Vf b, Vf c) { return _mm512_fmadd_ps(a, b, c); }
/// Where a lane of either is NaN: b.
TILEWISE_INLINE Vf max(Vf a, Vf b) { return _mm512_max_ps(a, b); }
TILEWISE_INLINE Vf min(Vf a, Vf b) { return _mm512_min_ps(a, b); }
TILEWISE_INLINE Vf bits_and(Vf a, Vf b) { return _mm512_and_ps(a, b); }
TILEWISE_INLINE Vf bits_or(Vf a, Vf b) { return _mm512_or_ps(a, b); }

TILEWISE_INLINE Mask less_equal_i(Vi a, Vi b) { return _mm512_cmple_epi32_mask(a, b); }
TILEWISE_INLINE Mask less(Vf a, Vf b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
TILEWISE_INLINE Mask equal(Vf a, Vf b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
TILEWISE_INLINE Mask is_nan(Vf a) { return _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q); }
TILEWISE_INLINE Mask mask_and(Mask a, Mask b) { return static_cast<Mask>(a & b); }
/// Lane i is bit i.
TILEWISE_INLINE Mask mask_of_bits(uint64_t bits) { return static_cast<Mask>(bits); }
TILEWISE_INLINE Vf select(Mask m, Vf yes, Vf no) { return _mm512_mask_blend_ps(m, no, yes); }

TILEWISE_INLINE bool any(Mask m) { return m != 0; }
/// p * 2^n, n the integer in the low bits of t (and within the exponent's range): an integer addition to the exponent.
TILEWISE_INLINE Vf add_exponent(Vf p, Vf t) {
  return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(p), _mm512_slli_epi32(_mm512_castps_si512(t), 23)));
}
/// 2^(n / 32 - 112) for the integer n in the low bits of t (and within the exponent's range). Entry i of the table is 2^(i / 32 - 112) less what adding
/// n << 18 adds for i.
TILEWISE_INLINE Vf power_of_32nds(Vf t) {
  const Vi low = _mm512_set_epi32(0x077523f6, 0x0775583f, 0x0775a15b, 0x0775fed7, 0x07767043, 0x0776f532, 0x07778d3a, 0x077837f0, 0x0778f4f0,
                                  0x0779c3d3, 0x077aa43a, 0x077b95c2, 0x077c980f, 0x077daac3, 0x077ecd87, 0x07800000);
  const Vi high = _mm512_set_epi32(0x077e83b3, 0x077d257d, 0x077be4ba, 0x077ac0c7, 0x0779b907, 0x0778ccdf, 0x0777fbb8, 0x077744fd, 0x0776a81e,
                                   0x0776248c, 0x0775b9be, 0x0775672a, 0x07752c4d, 0x077508a4, 0x0774fbaf, 0x077504f3);
  const Vi n = _mm512_castps_si512(t);
  return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_permutex2var_epi32(low, n, high), _mm512_slli_epi32(n, 18)));
}
/// x = m * 2^e for a normal x above 0, m in [sqrt(1/2), sqrt(2)), e a whole number.
TILEWISE_INLINE void split_exponent(Vf x, Vf& m, Vf& e) {
  const Vi bits = _mm512_castps_si512(x);
  const Vi n = _mm512_srai_epi32(_mm512_sub_epi32(bits, _mm512_set1_epi32(0x3f3504f3)), 23);
  m = _mm512_castsi512_ps(_mm512_sub_epi32(bits, _mm512_slli_epi32(n, 23)));
  e = _mm512_cvtepi32_ps(n);
}
TILEWISE_INLINE Vf round(Vf x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
/// p * 2^r for a whole number r; x is r too: other targets look at it.
TILEWISE_INLINE Vf scale_exponent(Vf p, Vf r, Vf) { return _mm512_scalef_ps(p, r); }
/// x - floor(x), in [0, 1); of an infinity 0.
TILEWISE_INLINE Vf fraction(Vf x) { return _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC); }
/// p * 2^floor(x).
TILEWISE_INLINE Vf scale_by_floor(Vf p, Vf x) { return _mm512_scalef_ps(p, x); }

TILEWISE_INLINE float reduce_add(Vf x) { return _mm512_reduce_add_ps(x); }
TILEWISE_INLINE float reduce_max(Vf x) { return _mm512_reduce_max_ps(x); }

/// rows[i] lane j <-> rows[j] lane i.
TILEWISE_INLINE void transpose(Vf (&rows)[16]) {
  Vf t[16];
  TILEWISE_UNROLL
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_ps(rows[i], rows[i + 1]);
    t[i + 1] = _mm512_unpackhi_ps(rows[i], rows[i + 1]);
  }
  TILEWISE_UNROLL
  for (int i = 0; i < 16; i += 4) {
    rows[i] = _mm512_shuffle_ps(t[i], t[i + 2], 0x44);
    rows[i + 1] = _mm512_shuffle_ps(t[i], t[i + 2], 0xee);
    rows[i + 2] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0x44);
    rows[i + 3] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0xee);
  }
  TILEWISE_UNROLL
  for (int i = 0; i < 4; ++i) {  // now 4x4 blocks of 128 bits
    const Vf a = _mm512_shuffle_f32x4(rows[i], rows[4 + i], 0x88), b = _mm512_shuffle_f32x4(rows[i], rows[4 + i], 0xdd);
    const Vf c = _mm512_shuffle_f32x4(rows[8 + i], rows[12 + i], 0x88), d = _mm512_shuffle_f32x4(rows[8 + i], rows[12 + i], 0xdd);
    t[i] = _mm512_shuffle_f32x4(a, c, 0x88);
    t[4 + i] = _mm512_shuffle_f32x4(b, d, 0x88);
    t[8 + i] = _mm512_shuffle_f32x4(a, c, 0xdd);
    t[12 + i] = _mm512_shuffle_f32x4(b, d, 0xdd);
  }
  TILEWISE_UNROLL
  for (int i = 0; i < 16; ++i) rows[i] = t[i];
}

/// Four floats in every four lanes.
TILEWISE_INLINE Vf broadcast_four(const float* p) { return _mm512_broadcast_f32x4(_mm_loadu_ps(p)); }
/// Lane 4 i + j: the sum of lanes 4 i to 4 i + 3 of the j-th vector.
TILEWISE_INLINE Vf sum_fours(Vf a, Vf b, Vf c, Vf d) {
  const Vf ab = add(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b)), cd = add(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
  return add(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xee));
}
/// In every lane the maximum of the four lanes that it is one of.
TILEWISE_INLINE Vf max_fours(Vf x) {
  x = max(x, _mm512_permute_ps(x, 0xb1));
  return max(x, _mm512_permute_ps(x, 0x4e));
}

TILEWISE_INLINE Vf load_bf16(const uint16_t* p) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))), 16));
}
TILEWISE_INLINE Vf load_bf16_n(const uint16_t* p, int n) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(first_lanes(n), p)), 16));
}
/// 2 kWidth channels: even ones and odd ones, by one instruction each; interleave() puts their sums in order.
TILEWISE_INLINE void load_bf16_pairs(const uint16_t* p, Vf& even, Vf& odd) {
  const Vi bits = _mm512_loadu_si512(p);
  even = _mm512_castsi512_ps(_mm512_slli_epi32(bits, 16));
  odd = _mm512_castsi512_ps(_mm512_and_si512(bits, _mm512_set1_epi32(static_cast<int32_t>(0xffff0000u))));
}
/// low: even[0], odd[0], even[1], ... of the first half; high: of the second.
TILEWISE_INLINE void interleave(Vf even, Vf odd, Vf& low, Vf& high) {
  const Vi places = _mm512_set_epi32(23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  low = _mm512_permutex2var_ps(even, places, odd);
  high = _mm512_permutex2var_ps(even, _mm512_add_epi32(places, _mm512_set1_epi32(8)), odd);
}
TILEWISE_INLINE Vf load_f16(const uint16_t* p) { return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
TILEWISE_INLINE Vf load_f16_n(const uint16_t* p, int n) { return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first_lanes(n), p)); }
/// Rounded to f16 (nearest, ties to even); too large: infinity.
TILEWISE_INLINE void store_f16_n(uint16_t* p, Vf x, int n) {
  _mm256_mask_storeu_epi16(p, first_lanes(n), _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
/// The bits of x rounded to bf16 (nearest, ties to even), in the high half; the low half holds rubbish. NaN stays NaN.
TILEWISE_INLINE Vi round_to_bf16(Vf x) {
  const Vi u = _mm512_castps_si512(x);
  const Vi odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
  const Vi rounded = _mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  return _mm512_mask_or_epi32(rounded, is_nan(x), u, _mm512_set1_epi32(0x400000));
}
TILEWISE_INLINE void store_bf16_n(uint16_t* p, Vf x, int n) {
  _mm256_mask_storeu_epi16(p, first_lanes(n), _mm512_cvtepi32_epi16(_mm512_srli_epi32(round_to_bf16(x), 16)));
}
#if TILEWISE_TARGET_LEVEL >= 3
/// Two vectors rounded to bf16 and laid side by side: 32-bit lane i holds even[i] low, odd[i] high.
TILEWISE_INLINE Vf narrow_pairs(Vf even, Vf odd) {
  const Vi places =
      _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  return _mm512_castsi512_ps(_mm512_permutexvar_epi16(places, (Vi)_mm512_cvtne2ps_pbh(odd, even)));
}
/// 1 in every bf16.
TILEWISE_INLINE Vf bf16_ones() { return _mm512_castsi512_ps(_mm512_set1_epi16(0x3f80)); }

/// Two vectors rounded to bf16, one behind the other: 16-bit lane i holds low[i], lane 16 + i high[i].
TILEWISE_INLINE Vf narrow(Vf low, Vf high) { return _mm512_castsi512_ps((Vi)_mm512_cvtne2ps_pbh(high, low)); }

/// Copies n bf16 of two rows, one beside the other: out[2 i] = even[i], out[2 i + 1] = odd[i].
TILEWISE_INLINE void interleave_bf16(const uint16_t* even, const uint16_t* odd, int n, uint16_t* out) {
  const Vi low =
      _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6, 37, 5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
  const Vi high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
  int i = 0;
  for (; i + 32 <= n; i += 32) {
    const Vi a = _mm512_loadu_si512(even + i), b = _mm512_loadu_si512(odd + i);
    _mm512_storeu_si512(out + 2 * i, _mm512_permutex2var_epi16(a, low, b));
    _mm512_storeu_si512(out + 2 * i + 32, _mm512_permutex2var_epi16(a, high, b));
  }
  if (i == n) return;
  const int left = n - i;
  const __mmask32 m = (__mmask32{1} << left) - 1;
  const Vi a = _mm512_maskz_loadu_epi16(m, even + i), b = _mm512_maskz_loadu_epi16(m, odd + i);
  _mm512_mask_storeu_epi32(out + 2 * i, first_lanes(left), _mm512_permutex2var_epi16(a, low, b));
  if (left > 16) _mm512_mask_storeu_epi32(out + 2 * i + 32, first_lanes(left - 16), _mm512_permutex2var_epi16(a, high, b));
}

/// acc + products of the two bf16 that each 32-bit lane of a and b holds.
TILEWISE_INLINE Vf dot_bf16(Vf acc, Vf a, Vf b) { return _mm512_dpbf16_ps(acc, (__m512bh)a, (__m512bh)b); }
#endif

/// Signed bytes as numbers.
TILEWISE_INLINE Vf load_i8(const int8_t* p) { return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))); }
TILEWISE_INLINE Vf load_i8_n(const int8_t* p, int n) { return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(first_lanes(n), p))); }
/// Halves of bytes as numbers 0 to 15, the low half of a byte first. n is even; lanes from n on are 0.
TILEWISE_INLINE Vf halves_of(__m128i bytes) {
  const Vi wide = _mm512_cvtepu8_epi64(bytes);
  return _mm512_cvtepi32_ps(_mm512_and_si512(_mm512_or_si512(wide, _mm512_slli_epi64(wide, 28)), _mm512_set1_epi32(15)));
}
TILEWISE_INLINE Vf load_u4(const uint8_t* p) { return halves_of(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))); }
TILEWISE_INLINE Vf load_u4_n(const uint8_t* p, int n) { return halves_of(_mm_maskz_loadu_epi8(first_lanes(n / 2), p)); }

}  // namespace
}  // namespace tilewise::machine::cpu::TILEWISE_TARGET
