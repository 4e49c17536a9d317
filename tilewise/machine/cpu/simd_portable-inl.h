// SPDX-License-Identifier: Apache-2.0
#pragma once
// The portable bodies of simd.h: the 16-byte vector extension of GCC and Clang, which every 64-bit machine has registers for. Included by simd.h
// alone. What each function does stands in simd_avx512-inl.h.

namespace tilewise::machine::cpu::TILEWISE_TARGET {
namespace {

using Vf = float __attribute__((vector_size(16)));
using Vi = int32_t __attribute__((vector_size(16)));
using Mask = Vi;
inline constexpr int kWidth = 4;
inline constexpr bool kHasDotBf16 = false;

TILEWISE_INLINE Vf load(const float* p) {
  Vf x;
  __builtin_memcpy(&x, p, sizeof x);
  return x;
}
TILEWISE_INLINE void store(float* p, Vf x) { __builtin_memcpy(p, &x, sizeof x); }
TILEWISE_INLINE Vf load_n(const float* p, int n) {
  Vf x = {};
  for (int i = 0; i < n && i < 4; ++i) x[i] = p[i];
  return x;
}
TILEWISE_INLINE void store_n(float* p, Vf x, int n) {
  for (int i = 0; i < n && i < 4; ++i) p[i] = x[i];
}
TILEWISE_INLINE Vf broadcast(float x) { return Vf{x, x, x, x}; }
TILEWISE_INLINE Vf broadcast_at(const float* p) { return broadcast(*p); }
TILEWISE_INLINE Vf zero() { return Vf{}; }
TILEWISE_INLINE Vi load_i(const int32_t* p) {
  Vi x;
  __builtin_memcpy(&x, p, sizeof x);
  return x;
}
TILEWISE_INLINE void store_i(int32_t* p, Vi x) { __builtin_memcpy(p, &x, sizeof x); }
TILEWISE_INLINE Vi broadcast_i(int32_t x) { return Vi{x, x, x, x}; }

TILEWISE_INLINE Vf add(Vf a, Vf b) { return a + b; }
TILEWISE_INLINE Vf sub(Vf a, Vf b) { return a - b; }
TILEWISE_INLINE Vf mul(Vf a, Vf b) { return a * b; }
TILEWISE_INLINE Vf div(Vf a, Vf b) { return a / b; }
TILEWISE_INLINE Vf fma(Vf a, Vf b, Vf c) { return a * b + c; }
TILEWISE_INLINE Vf bits_and(Vf a, Vf b) { return (Vf)((Vi)a & (Vi)b); }
TILEWISE_INLINE Vf bits_or(Vf a, Vf b) { return (Vf)((Vi)a | (Vi)b); }
TILEWISE_INLINE Vf select(Mask m, Vf yes, Vf no) { return (Vf)((m & (Vi)yes) | (~m & (Vi)no)); }
TILEWISE_INLINE Vf max(Vf a, Vf b) { return select((Mask)(a > b), a, b); }
TILEWISE_INLINE Vf min(Vf a, Vf b) { return select((Mask)(a < b), a, b); }
TILEWISE_INLINE Vf round(Vf x) {
  // Adding and subtracting 1.5 * 2^23 rounds to nearest, ties to even, for |x| < 2^22; larger ones are integers, or far outside exp2's range.
  const Vf magic = broadcast(12582912.0f);
  const Vf rounded = (x + magic) - magic;
  const Vf magnitude = bits_and(x, (Vf)broadcast_i(0x7fffffff));
  return select((Mask)(magnitude < broadcast(4194304.0f)), rounded, x);
}

TILEWISE_INLINE Mask less_equal_i(Vi a, Vi b) { return a <= b; }
TILEWISE_INLINE Mask less(Vf a, Vf b) { return (Mask)(a < b); }
TILEWISE_INLINE Mask equal(Vf a, Vf b) { return (Mask)(a == b); }
TILEWISE_INLINE Mask is_nan(Vf a) { return (Mask)(a != a); }
TILEWISE_INLINE Mask mask_and(Mask a, Mask b) { return a & b; }
TILEWISE_INLINE Mask mask_of_bits(uint64_t bits) {
  const Vi bit = {1, 2, 4, 8};
  return (broadcast_i(static_cast<int32_t>(bits)) & bit) == bit;
}

TILEWISE_INLINE bool any(Mask m) { return (m[0] | m[1] | m[2] | m[3]) != 0; }
TILEWISE_INLINE Vf add_exponent(Vf p, Vf t) {
  using Vu = uint32_t __attribute__((vector_size(16)));
  return (Vf)((Vu)p + ((Vu)t << 23));
}
TILEWISE_INLINE void split_exponent(Vf x, Vf& m, Vf& e) {
  using Vu = uint32_t __attribute__((vector_size(16)));
  const Vi n = (Vi)((Vu)x - 0x3f3504f3u) >> 23;
  m = (Vf)((Vu)x - ((Vu)n << 23));
  e = __builtin_convertvector(n, Vf);
}
TILEWISE_INLINE Vf scale_exponent(Vf p, Vf r, Vf x) {
  const Mask is_tiny = (Mask)(x < broadcast(-126.0f));
  const Vf safe = select((Mask)(x >= broadcast(-126.0f)), r, zero());  // NaN and -inf must not reach the conversion
  const Vi exponent = __builtin_convertvector(safe, Vi) << 23;
  return (Vf)(~is_tiny & ((Vi)p + exponent));
}

TILEWISE_INLINE float reduce_add(Vf x) { return (x[0] + x[2]) + (x[1] + x[3]); }
TILEWISE_INLINE float reduce_max(Vf x) {
  const float a = x[0] > x[2] ? x[0] : x[2], b = x[1] > x[3] ? x[1] : x[3];
  return a > b ? a : b;
}

TILEWISE_INLINE void transpose(Vf (&rows)[4]) {
  Vf t[4];
  for (int i = 0; i < 4; ++i) t[i] = Vf{rows[0][i], rows[1][i], rows[2][i], rows[3][i]};
  for (int i = 0; i < 4; ++i) rows[i] = t[i];
}

TILEWISE_INLINE Vf broadcast_four(const float* p) { return load(p); }
TILEWISE_INLINE Vf sum_fours(Vf a, Vf b, Vf c, Vf d) {
  Vf rows[4] = {a, b, c, d};
  transpose(rows);
  return (rows[0] + rows[2]) + (rows[1] + rows[3]);
}
TILEWISE_INLINE Vf max_fours(Vf x) { return broadcast(reduce_max(x)); }

TILEWISE_INLINE Vf load_bf16_n(const uint16_t* p, int n) {
  Vi u = {};
  for (int i = 0; i < n && i < 4; ++i) u[i] = static_cast<int32_t>(static_cast<uint32_t>(p[i]) << 16);
  return (Vf)u;
}
TILEWISE_INLINE Vf load_bf16(const uint16_t* p) { return load_bf16_n(p, 4); }
TILEWISE_INLINE void load_bf16_pairs(const uint16_t* p, Vf& even, Vf& odd) {
  Vi bits;
  __builtin_memcpy(&bits, p, sizeof bits);
  using Vu = uint32_t __attribute__((vector_size(16)));
  even = (Vf)((Vu)bits << 16);
  odd = (Vf)((Vu)bits & 0xffff0000u);
}
TILEWISE_INLINE void interleave(Vf even, Vf odd, Vf& low, Vf& high) {
  low = Vf{even[0], odd[0], even[1], odd[1]};
  high = Vf{even[2], odd[2], even[3], odd[3]};
}
TILEWISE_INLINE Vf load_f16_n(const uint16_t* p, int n) {
  // Exponent and fraction moved into place are the number times 2^-112, subnormals included; the largest exponent stands for infinity and NaN.
  Vi u = {};
  for (int i = 0; i < n && i < 4; ++i) u[i] = p[i];
  const Vi magnitude = (u & 0x7fff) << 13;
  const Vf number = (Vf)magnitude * broadcast(0x1p112f);
  const Vf bits = select((Mask)(magnitude > 0x0f7fffff), (Vf)(magnitude | 0x7f800000), number);
  return bits_or(bits, select((Mask)((u & 0x8000) != 0), broadcast(-0.0f), zero()));
}
TILEWISE_INLINE Vf load_f16(const uint16_t* p) { return load_f16_n(p, 4); }
TILEWISE_INLINE void store_f16_n(uint16_t* p, Vf x, int n) {
  using Vu = uint32_t __attribute__((vector_size(16)));
  const Vu sign = ((Vu)x >> 16) & 0x8000u, u = (Vu)x & 0x7fffffffu;
  // From 2^-14 on: the exponent moves by 112, and what rounds past the largest number is infinity. Below, adding 1/2 rounds to multiples of 2^-24.
  const Vu normal = ((u + 0xfffu + ((u >> 13) & 1u)) >> 13) - (112u << 10);
  const Vu bounded = (Vu)select((Mask)(normal > 0x7c00u), (Vf)broadcast_i(0x7c00), (Vf)normal);
  const Vu tiny = (Vu)((Vf)u + broadcast(0.5f)) - 0x3f000000u;
  const Vu finite = (Vu)select((Mask)(u < 0x38800000u), (Vf)tiny, (Vf)bounded);
  const Vu bits = sign | (Vu)select(is_nan(x), (Vf)(0x7e00u | ((u >> 13) & 0x3ffu)), (Vf)finite);
  for (int i = 0; i < n && i < 4; ++i) p[i] = static_cast<uint16_t>(bits[i]);
}
TILEWISE_INLINE Vi round_to_bf16(Vf x) {
  using Vu = uint32_t __attribute__((vector_size(16)));
  const Vu u = (Vu)x;
  const Vu rounded = u + 0x7fffu + ((u >> 16) & 1u);
  return (Vi)select(is_nan(x), (Vf)(u | 0x400000u), (Vf)rounded);
}
TILEWISE_INLINE void store_bf16_n(uint16_t* p, Vf x, int n) {
  const Vi u = round_to_bf16(x);
  for (int i = 0; i < n && i < 4; ++i) p[i] = static_cast<uint16_t>(static_cast<uint32_t>(u[i]) >> 16);
}

TILEWISE_INLINE Vf load_i8_n(const int8_t* p, int n) {
  Vf x = {};
  for (int i = 0; i < n && i < 4; ++i) x[i] = static_cast<float>(p[i]);
  return x;
}
TILEWISE_INLINE Vf load_i8(const int8_t* p) { return load_i8_n(p, 4); }
TILEWISE_INLINE Vf load_u4_n(const uint8_t* p, int n) {
  Vf x = {};
  for (int i = 0; i < n && i < 4; ++i) x[i] = static_cast<float>(i % 2 == 0 ? p[i / 2] & 15 : p[i / 2] >> 4);
  return x;
}
TILEWISE_INLINE Vf load_u4(const uint8_t* p) { return load_u4_n(p, 4); }

}  // namespace
}  // namespace tilewise::machine::cpu::TILEWISE_TARGET
