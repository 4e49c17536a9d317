// SPDX-License-Identifier: Apache-2.0
#include "tests/machine/cpu/simd_ops.h"
#include "tilewise/machine/cpu/simd.h"

namespace tilewise::machine::cpu::TILEWISE_TARGET {
namespace {

void binary(int op, const float* a, const float* b, float* out) {
  const Vf x = load(a), y = load(b);
  switch (op) {
    case 0: return store(out, add(x, y));
    case 1: return store(out, sub(x, y));
    case 2: return store(out, mul(x, y));
    case 3: return store(out, div(x, y));
    case 4: return store(out, max(x, y));
    case 5: return store(out, min(x, y));
    case 6: return store(out, bits_and(x, y));
    default: return store(out, bits_or(x, y));
  }
}
void multiply_add(const float* a, const float* b, const float* c, float* out) { store(out, fma(load(a), load(b), load(c))); }
void unary(int op, const float* a, float* out) { store(out, op == 0 ? exp2(load(a)) : op == 1 ? exp2_clamped(load(a)) : tanh(load(a))); }
void write(Mask m, int32_t* out) {
  float lanes[kWidth];
  store(lanes, select(m, broadcast(1.0f), zero()));
  for (int i = 0; i < kWidth; ++i) out[i] = lanes[i] != 0;
}
void compare(int op, const float* a, const float* b, int32_t* out) {
  write(op == 0 ? less(load(a), load(b)) : op == 1 ? equal(load(a), load(b)) : is_nan(load(a)), out);
}
void less_equal(const int32_t* a, const int32_t* b, int32_t* out) {
  write(mask_and(less_equal_i(load_i(a), load_i(b)), mask_of_bits(~uint64_t{0})), out);
}
void of_bits(uint64_t bits, int32_t* out) { write(mask_of_bits(bits), out); }
bool any_bit(uint64_t bits) { return any(mask_of_bits(bits)); }
float reduce(int op, const float* a) { return op == 0 ? reduce_add(load(a)) : reduce_max(load(a)); }
void turn(const float* in, float* out) {
  Vf rows[kWidth];
  for (int i = 0; i < kWidth; ++i) rows[i] = load(in + i * kWidth);
  transpose(rows);
  for (int i = 0; i < kWidth; ++i) store(out + i * kWidth, rows[i]);
}
void fours(int op, const float* in, float* out) {
  store(out, op == 0   ? broadcast_four(in)
             : op == 1 ? sum_fours(load(in), load(in + kWidth), load(in + 2 * kWidth), load(in + 3 * kWidth))
                       : max_fours(load(in)));
}
void bf16_pairs(const uint16_t* in, float* even, float* odd, float* in_order) {
  Vf a, b, low, high;
  load_bf16_pairs(in, a, b);
  interleave(a, b, low, high);
  store(even, a);
  store(odd, b);
  store(in_order, low);
  store(in_order + kWidth, high);
}
void load_store(const float* in, float* out, int n) { store_n(out, load_n(in, n), n); }
void round_trip(const float* in, uint16_t* bits, float* back, int n) {
  store_bf16_n(bits, load(in), n);
  store(back, load_bf16_n(bits, n));
}
void round_trip_f16(const float* in, uint16_t* bits, float* back, int n) {
  store_f16_n(bits, load(in), n);
  store(back, load_f16_n(bits, n));
}
bool power_of_product(const float* s, float scale, float m, float* out) {
  const Vf offset = broadcast(kExp2Offset - m);
  store(out, exp2_of_product(load(s), broadcast(scale), offset));
  return strays(load(s), broadcast(scale), offset);
}
void logarithm(const float* x, float n, float* out) { store(out, log(load(x), broadcast(n))); }
#if TILEWISE_TARGET_LEVEL >= 3
void pairs(const float* even, const float* odd, float* out) { store(out, narrow_pairs(load(even), load(odd))); }
void dot(const float* acc, const float* a, const float* b, float* out) { store(out, dot_bf16(load(acc), load(a), load(b))); }
void interleave_rows(const uint16_t* even, const uint16_t* odd, int n, uint16_t* out) { interleave_bf16(even, odd, n, out); }
#endif

constexpr simd_test::Ops kOps{.width = kWidth,
                              .binary = &binary,
                              .multiply_add = &multiply_add,
                              .unary = &unary,
                              .compare = &compare,
                              .less_equal_i = &less_equal,
                              .mask_of_bits = &of_bits,
                              .any = &any_bit,
                              .reduce = &reduce,
                              .transpose = &turn,
                              .fours = &fours,
                              .bf16_pairs = &bf16_pairs,
                              .load_store_n = &load_store,
                              .bf16_round_trip = &round_trip,
                              .f16_round_trip = &round_trip_f16,
                              .exp2_of_product = &power_of_product,
                              .log = &logarithm,
#if TILEWISE_TARGET_LEVEL >= 3
                              .narrow_pairs = &pairs,
                              .dot_bf16 = &dot,
                              .interleave = &interleave_rows
#else
                              .narrow_pairs = nullptr,
                              .dot_bf16 = nullptr,
                              .interleave = nullptr
#endif
};

}  // namespace
}  // namespace tilewise::machine::cpu::TILEWISE_TARGET
