// SPDX-License-Identifier: Apache-2.0
#pragma once
// The avx2 bodies of simd.h (AVX2, FMA). Included by it alone. What each function does stands in simd_avx512-inl.h.
#include <immintrin.h>

namespace tilewise::machine::cpu::TILEWISE_TARGET {
namespace {

using Vf = __m256;
using Vi = __m256i;
using Mask = __m256;  // all bits of a lane
inline constexpr int kWidth = 8;
inline constexpr bool kHasDotBf16 = false;

TILEWISE_INLINE Vi lane_numbers() { return _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7); }
TILEWISE_INLINE Vi first_lanes(int n) { return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), lane_numbers()); }

TILEWISE_INLINE Vf load(const float* p) { return _mm256_loadu_ps(p); }
TILEWISE_INLINE void store(float* p, Vf x) { _mm256_storeu_ps(p, x); }
TILEWISE_INLINE Vf load_n(const float* p, int n) { return _mm256_maskload_ps(p, first_lanes(n)); }
TILEWISE_INLINE void store_n(float* p, Vf x, int n) { _mm256_maskstore_ps(p, first_lanes(n), x); }
TILEWISE_INLINE Vf broadcast(float x) { return _mm256_set1_ps(x); }
TILEWISE_INLINE Vf broadcast_at(const float* p) { return _mm256_broadcast_ss(p); }
TILEWISE_INLINE Vf zero() { return _mm256_setzero_ps(); }
TILEWISE_INLINE Vi load_i(const int32_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
TILEWISE_INLINE void store_i(int32_t* p, Vi x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), x); }
TILEWISE_INLINE Vi broadcast_i(int32_t x) { return _mm256_set1_epi32(x); }

TILEWISE_INLINE Vf add(Vf a, Vf b) { return _mm256_add_ps(a, b); }
TILEWISE_INLINE Vf sub(Vf a, Vf b) { return _mm256_sub_ps(a, b); }
TILEWISE_INLINE Vf mul(Vf a, Vf b) { return _mm256_mul_ps(a, b); }
TILEWISE_INLINE Vf div(Vf a, Vf b) { return _mm256_div_ps(a, b); }
TILEWISE_INLINE Vf fma(Vf a, Vf b, Vf c) { return _mm256_fmadd_ps(a, b, c); }
TILEWISE_INLINE Vf max(Vf a, Vf b) { return _mm256_max_ps(a, b); }
TILEWISE_INLINE Vf min(Vf a, Vf b) { return _mm256_min_ps(a, b); }
TILEWISE_INLINE Vf round(Vf x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
TILEWISE_INLINE Vf bits_and(Vf a, Vf b) { return _mm256_and_ps(a, b); }
TILEWISE_INLINE Vf bits_or(Vf a, Vf b) { return _mm256_or_ps(a, b); }

TILEWISE_INLINE Mask less_equal_i(Vi a, Vi b) {  // not (a > b)
  return _mm256_castsi256_ps(_mm256_xor_si256(_mm256_cmpgt_epi32(a, b), _mm256_set1_epi32(-1)));
}
TILEWISE_INLINE Mask less(Vf a, Vf b) { return _mm256_cmp_ps(a, b, _CMP_LT_OQ); }
TILEWISE_INLINE Mask equal(Vf a, Vf b) { return _mm256_cmp_ps(a, b, _CMP_EQ_OQ); }
TILEWISE_INLINE Mask is_nan(Vf a) { return _mm256_cmp_ps(a, a, _CMP_UNORD_Q); }
TILEWISE_INLINE Mask mask_and(Mask a, Mask b) { return _mm256_and_ps(a, b); }
TILEWISE_INLINE Mask mask_of_bits(uint64_t bits) {
  const Vi bit = _mm256_sllv_epi32(_mm256_set1_epi32(1), lane_numbers());
  return _mm256_castsi256_ps(_mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(static_cast<int32_t>(bits)), bit), bit));
}
TILEWISE_INLINE Vf select(Mask m, Vf yes, Vf no) { return _mm256_blendv_ps(no, yes, m); }

TILEWISE_INLINE bool any(Mask m) { return _mm256_movemask_ps(m) != 0; }
TILEWISE_INLINE Vf add_exponent(Vf p, Vf t) {
  return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), _mm256_slli_epi32(_mm256_castps_si256(t), 23)));
}
TILEWISE_INLINE void split_exponent(Vf x, Vf& m, Vf& e) {
  const Vi bits = _mm256_castps_si256(x);
  const Vi n = _mm256_srai_epi32(_mm256_sub_epi32(bits, _mm256_set1_epi32(0x3f3504f3)), 23);
  m = _mm256_castsi256_ps(_mm256_sub_epi32(bits, _mm256_slli_epi32(n, 23)));
  e = _mm256_cvtepi32_ps(n);
}
/// p * 2^r, where r = round(x) <= 127; 0 for x below -126. NaN passes through p.
TILEWISE_INLINE Vf scale_exponent(Vf p, Vf r, Vf x) {
  const Vi exponent = _mm256_slli_epi32(_mm256_cvtps_epi32(r), 23);
  const Vf scaled = _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), exponent));
  // Below -126 the exponent would wrap; -inf converts to INT32_MIN. A NaN in x: the sum adds 0x80000000 << 23 = 0, so p, a NaN, stays.
  const Vf is_tiny = _mm256_cmp_ps(x, _mm256_set1_ps(-126.0f), _CMP_LT_OQ);
  return _mm256_andnot_ps(is_tiny, scaled);
}

TILEWISE_INLINE float reduce_add(Vf x) {
  __m128 h = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  h = _mm_add_ps(h, _mm_movehl_ps(h, h));
  return _mm_cvtss_f32(_mm_add_ss(h, _mm_movehdup_ps(h)));
}
TILEWISE_INLINE float reduce_max(Vf x) {
  __m128 h = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  h = _mm_max_ps(h, _mm_movehl_ps(h, h));
  return _mm_cvtss_f32(_mm_max_ss(h, _mm_movehdup_ps(h)));
}

TILEWISE_INLINE void transpose(Vf (&rows)[8]) {
  Vf t[8];
  TILEWISE_UNROLL
  for (int i = 0; i < 8; i += 2) {
    t[i] = _mm256_unpacklo_ps(rows[i], rows[i + 1]);
    t[i + 1] = _mm256_unpackhi_ps(rows[i], rows[i + 1]);
  }
  TILEWISE_UNROLL
  for (int i = 0; i < 8; i += 4) {
    rows[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
    rows[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
    rows[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
    rows[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
  }
  TILEWISE_UNROLL
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm256_permute2f128_ps(rows[i], rows[4 + i], 0x20);
    t[4 + i] = _mm256_permute2f128_ps(rows[i], rows[4 + i], 0x31);
  }
  TILEWISE_UNROLL
  for (int i = 0; i < 8; ++i) rows[i] = t[i];
}

TILEWISE_INLINE Vf broadcast_four(const float* p) { return _mm256_broadcast_ps(reinterpret_cast<const __m128*>(p)); }
TILEWISE_INLINE Vf sum_fours(Vf a, Vf b, Vf c, Vf d) {
  const Vf ab = add(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b)), cd = add(_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
  return add(_mm256_shuffle_ps(ab, cd, 0x44), _mm256_shuffle_ps(ab, cd, 0xee));
}
TILEWISE_INLINE Vf max_fours(Vf x) {
  x = max(x, _mm256_permute_ps(x, 0xb1));
  return max(x, _mm256_permute_ps(x, 0x4e));
}

TILEWISE_INLINE Vf load_bf16(const uint16_t* p) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))), 16));
}
TILEWISE_INLINE Vf load_bf16_n(const uint16_t* p, int n) {
  if (n >= 8) return load_bf16(p);
  uint16_t whole[8] = {};
  for (int i = 0; i < n; ++i) whole[i] = p[i];
  return load_bf16(whole);
}
TILEWISE_INLINE void load_bf16_pairs(const uint16_t* p, Vf& even, Vf& odd) {
  const Vi bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  even = _mm256_castsi256_ps(_mm256_slli_epi32(bits, 16));
  odd = _mm256_castsi256_ps(_mm256_and_si256(bits, _mm256_set1_epi32(static_cast<int32_t>(0xffff0000u))));
}
TILEWISE_INLINE void interleave(Vf even, Vf odd, Vf& low, Vf& high) {
  const Vf a = _mm256_unpacklo_ps(even, odd), b = _mm256_unpackhi_ps(even, odd);  // each half of 128 bits by itself
  low = _mm256_permute2f128_ps(a, b, 0x20);
  high = _mm256_permute2f128_ps(a, b, 0x31);
}
TILEWISE_INLINE Vf load_f16(const uint16_t* p) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
TILEWISE_INLINE Vf load_f16_n(const uint16_t* p, int n) {
  if (n >= 8) return load_f16(p);
  uint16_t whole[8] = {};
  for (int i = 0; i < n; ++i) whole[i] = p[i];
  return load_f16(whole);
}
TILEWISE_INLINE void store_f16_n(uint16_t* p, Vf x, int n) {
  const __m128i packed = _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  if (n >= 8) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), packed);
    return;
  }
  uint16_t whole[8];
  _mm_storeu_si128(reinterpret_cast<__m128i*>(whole), packed);
  for (int i = 0; i < n; ++i) p[i] = whole[i];
}
TILEWISE_INLINE Vi round_to_bf16(Vf x) {
  const Vi u = _mm256_castps_si256(x);
  const Vi odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
  const Vi rounded = _mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const Vi quiet = _mm256_or_si256(u, _mm256_set1_epi32(0x400000));
  return _mm256_blendv_epi8(rounded, quiet, _mm256_castps_si256(is_nan(x)));
}
TILEWISE_INLINE void store_bf16_n(uint16_t* p, Vf x, int n) {
  const Vi high = _mm256_srli_epi32(round_to_bf16(x), 16);
  const __m128i packed = _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1));
  if (n >= 8) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), packed);
    return;
  }
  uint16_t whole[8];
  _mm_storeu_si128(reinterpret_cast<__m128i*>(whole), packed);
  for (int i = 0; i < n; ++i) p[i] = whole[i];
}

TILEWISE_INLINE Vf load_i8(const int8_t* p) { return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)))); }
TILEWISE_INLINE Vf load_i8_n(const int8_t* p, int n) {
  if (n >= 8) return load_i8(p);
  int8_t whole[8] = {};
  for (int i = 0; i < n; ++i) whole[i] = p[i];
  return load_i8(whole);
}
TILEWISE_INLINE Vf load_u4(const uint8_t* p) {
  int32_t four;
  __builtin_memcpy(&four, p, sizeof four);
  const Vi wide = _mm256_cvtepu8_epi64(_mm_cvtsi32_si128(four));
  return _mm256_cvtepi32_ps(_mm256_and_si256(_mm256_or_si256(wide, _mm256_slli_epi64(wide, 28)), _mm256_set1_epi32(15)));
}
TILEWISE_INLINE Vf load_u4_n(const uint8_t* p, int n) {
  uint8_t whole[4] = {};
  for (int i = 0; i < n / 2 && i < 4; ++i) whole[i] = p[i];
  return load_u4(whole);
}

}  // namespace
}  // namespace tilewise::machine::cpu::TILEWISE_TARGET
