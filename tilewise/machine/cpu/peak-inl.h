// SPDX-License-Identifier: Apache-2.0
// The loops of peak.h, compiled once per target.
#include "tilewise/machine/cpu/peak_table.h"
#include "tilewise/machine/cpu/product-inl.h"
#include "tilewise/machine/cpu/simd.h"

namespace tilewise::machine::cpu::TILEWISE_TARGET {
namespace {

constexpr int kDepth = 32;  // instructions of each chain in one round: the loop's own cost vanishes

template <class Op, int N>
float loop(int64_t rounds) {
  const Vf a = broadcast(0.5f), b = broadcast(0.25f);
  Vf acc[N];
  for (int i = 0; i < N; ++i) acc[i] = broadcast(static_cast<float>(i));
  for (int64_t round = 0; round < rounds; ++round) {
    TILEWISE_UNROLL
    for (int step = 0; step < kDepth; ++step) {
      TILEWISE_UNROLL
      for (int i = 0; i < N; ++i) acc[i] = Op::multiply_add(acc[i], a, b);
    }
  }
  Vf total = zero();
  for (int i = 0; i < N; ++i) total = add(total, acc[i]);
  return reduce_add(total);
}

template <class Op>
float loop_of(int accumulators, int64_t rounds) {
  switch (accumulators) {
    case 6: return loop<Op, 6>(rounds);
    case 8: return loop<Op, 8>(rounds);
    case 10: return loop<Op, 10>(rounds);
    case 12: return loop<Op, 12>(rounds);
    case 14: return loop<Op, 14>(rounds);
    default: return loop<Op, 16>(rounds);
  }
}

float sum_of(const float* data, int64_t count) {
  constexpr int kVectors = 8;
  Vf acc[kVectors];
  for (int j = 0; j < kVectors; ++j) acc[j] = zero();
  int64_t i = 0;
  for (; i + kVectors * kWidth <= count; i += kVectors * kWidth) {
    TILEWISE_UNROLL
    for (int j = 0; j < kVectors; ++j) acc[j] = add(acc[j], load(data + i + j * kWidth));
  }
  for (; i < count; i += kWidth) acc[0] = add(acc[0], load_n(data + i, count - i < kWidth ? static_cast<int>(count - i) : kWidth));
  for (int j = 1; j < kVectors; ++j) acc[0] = add(acc[0], acc[j]);
  return reduce_add(acc[0]);
}

}  // namespace

extern const PeakTable peak_table;
const PeakTable peak_table{.width = kWidth,
                           .fma_f32 = &loop_of<F32>,
#if TILEWISE_TARGET_LEVEL >= 3
                           .dot_bf16 = &loop_of<Bf16Dot>,
#else
                           .dot_bf16 = nullptr,
#endif
                           .sum = &sum_of};

}  // namespace tilewise::machine::cpu::TILEWISE_TARGET
