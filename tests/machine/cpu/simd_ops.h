// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>

// One target's operations of simd.h over arrays, so that a plain test can hold them against scalars.
namespace tilewise::machine::cpu::simd_test {

struct Ops {
  int width;
  // Each handles `width` numbers.
  void (*binary)(int op, const float* a, const float* b, float* out);           // add sub mul div max min bits_and bits_or
  void (*multiply_add)(const float* a, const float* b, const float* c, float* out);
  void (*unary)(int op, const float* a, float* out);                            // exp2 exp2_clamped tanh
  void (*compare)(int op, const float* a, const float* b, int32_t* out);        // less equal is_nan(a): 1 or 0
  void (*less_equal_i)(const int32_t* a, const int32_t* b, int32_t* out);
  void (*mask_of_bits)(uint64_t bits, int32_t* out);
  bool (*any)(uint64_t bits);
  float (*reduce)(int op, const float* a);                                      // add max
  void (*transpose)(const float* in, float* out);                               // width x width
  void (*fours)(int op, const float* in, float* out);                           // broadcast_four; sum_fours of four vectors; max_fours
  void (*bf16_pairs)(const uint16_t* in, float* even, float* odd, float* in_order);  // 2 width numbers
  void (*load_store_n)(const float* in, float* out, int n);
  void (*bf16_round_trip)(const float* in, uint16_t* bits, float* back, int n);
  void (*f16_round_trip)(const float* in, uint16_t* bits, float* back, int n);
  bool (*exp2_of_product)(const float* s, float scale, float m, float* out);  // whether it strayed
  void (*log)(const float* x, float n, float* out);
  void (*narrow_pairs)(const float* even, const float* odd, float* out);        // null without the dot instruction
  void (*dot_bf16)(const float* acc, const float* a, const float* b, float* out);
  void (*interleave)(const uint16_t* even, const uint16_t* odd, int n, uint16_t* out);
};

extern const Ops portable_ops, avx2_ops, avx512_ops, avx512bf16_ops;

}  // namespace tilewise::machine::cpu::simd_test
