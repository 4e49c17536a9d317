// SPDX-License-Identifier: Apache-2.0
#pragma once
// The one inner loop of the CPU kernels: R rows that lie anywhere, times V vectors of lanes. Rows are only broadcast, from where they lie; only the
// lanes' operand is packed.
//
// Units are 32 bits: one f32, or two bf16 whose products are added (Bf16Dot). Everything is addressed through const float*.

#include "tilewise/machine/cpu/simd.h"

namespace tilewise::machine::cpu::TILEWISE_TARGET {
namespace {

struct F32 {
  static constexpr int kPerUnit = 1;
  TILEWISE_INLINE Vf multiply_add(Vf acc, Vf a, Vf b) { return fma(a, b, acc); }
};
#if TILEWISE_TARGET_LEVEL >= 3
struct Bf16Dot {
  static constexpr int kPerUnit = 2;
  TILEWISE_INLINE Vf multiply_add(Vf acc, Vf a, Vf b) { return dot_bf16(acc, a, b); }
};
#endif

// Accumulators in flight: rows x vectors must cover latency x ports (8 on Zen 4 and 5, 12 for the bf16 dot) and leave registers for V vectors of
// lanes and one broadcast. 16 registers hold 6 x 2, 32 hold 12 x 2.
#if TILEWISE_TARGET_LEVEL >= 2
inline constexpr int kRows = 8;
#else
inline constexpr int kRows = 6;
#endif
inline constexpr int kRowTail = 4;                       // rows are padded to a multiple of it
inline constexpr int kGroupVectors = 2;                  // vectors of lanes that run together
inline constexpr int kGroupLanes = kGroupVectors * kWidth;

/// acc[i][j] += sum over u of rows[i][u] * lanes[u][j]: each row is read along itself.
template <class Op, int R, int V>
TILEWISE_INLINE void multiply_along(Vf (&acc)[R][V], const float* const* rows, int64_t units, const float* lanes) {
  const float* row[R];
  TILEWISE_UNROLL
  for (int i = 0; i < R; ++i) row[i] = rows[i];
  TILEWISE_UNROLL_BY_4
  for (int64_t u = 0; u < units; ++u) {
    Vf b[V];
    TILEWISE_UNROLL
    for (int j = 0; j < V; ++j) b[j] = load(lanes + (u * V + j) * kWidth);
    TILEWISE_UNROLL
    for (int i = 0; i < R; ++i) {
      const Vf a = broadcast_at(row[i] + u);
      TILEWISE_UNROLL
      for (int j = 0; j < V; ++j) acc[i][j] = Op::multiply_add(acc[i][j], a, b[j]);
    }
  }
}

/// The same over units [first, last); `each()` is called once for every four units, between their products where registers allow (32): the place for a few instructions that the products hide.
template <class Op, int R, int V, class Each>
TILEWISE_INLINE void multiply_along(Vf (&acc)[R][V], const float* const* rows, int64_t first, int64_t last, const float* lanes, const Each& each) {
#if TILEWISE_TARGET_LEVEL >= 2
  const float* row[R];
  TILEWISE_UNROLL
  for (int i = 0; i < R; ++i) row[i] = rows[i];
  const auto multiply_unit = [&](int64_t u) __attribute__((always_inline)) {
    Vf b[V];
    TILEWISE_UNROLL
    for (int j = 0; j < V; ++j) b[j] = load(lanes + (u * V + j) * kWidth);
    TILEWISE_UNROLL
    for (int i = 0; i < R; ++i) {
      const Vf a = broadcast_at(row[i] + u);
      TILEWISE_UNROLL
      for (int j = 0; j < V; ++j) acc[i][j] = Op::multiply_add(acc[i][j], a, b[j]);
    }
  };
  int64_t u = first;
  for (; u + 4 <= last; u += 4) {
    each();
    TILEWISE_UNROLL
    for (int i = 0; i < 4; ++i) multiply_unit(u + i);
  }
  for (; u < last; ++u) multiply_unit(u);
#else
  for (int64_t u = first; u < last; u += 4) each();
  const float* row[R];
  TILEWISE_UNROLL
  for (int i = 0; i < R; ++i) row[i] = rows[i] + first;
  multiply_along<Op>(acc, row, last - first, lanes + first * V * kWidth);
#endif
}

/// acc[i][j] += sum over t of rows[t][i] * lanes[t][j]: R neighbouring units of each row.
template <class Op, int R, int V>
TILEWISE_INLINE void multiply_across(Vf (&acc)[R][V], const float* const* rows, int64_t offset, int count, const float* lanes) {
  TILEWISE_UNROLL_BY_4
  for (int t = 0; t < count; ++t) {
    const float* const row = rows[t] + offset;
    Vf b[V];
    TILEWISE_UNROLL
    for (int j = 0; j < V; ++j) b[j] = load(lanes + (int64_t{t} * V + j) * kWidth);
    TILEWISE_UNROLL
    for (int i = 0; i < R; ++i) {
      const Vf a = broadcast_at(row + i);
      TILEWISE_UNROLL
      for (int j = 0; j < V; ++j) acc[i][j] = Op::multiply_add(acc[i][j], a, b[j]);
    }
  }
}

template <int R, int V>
TILEWISE_INLINE void clear(Vf (&acc)[R][V]) {
  TILEWISE_UNROLL
  for (int i = 0; i < R; ++i) {
    TILEWISE_UNROLL
    for (int j = 0; j < V; ++j) acc[i][j] = zero();
  }
}

/// Rows of the next step when `left` (a multiple of kRowTail) are to do: kRows, or kRowTail where kRows would leave what kRowTail cannot end.
TILEWISE_INLINE int step_of(int64_t left) {
  if (left % kRows == 0) return kRows;
  return left > kRows + kRowTail ? kRows : kRowTail;
}

/// Packs `count` rows of 32-bit units (at most kGroupLanes; the lanes behind are 0) into lanes[u][V * kWidth].
template <int V>
TILEWISE_INLINE void pack_units(const float* rows, int64_t stride, int count, int64_t units, float* lanes) {
  for (int j = 0; j < V; ++j) {
    for (int64_t u = 0; u < units; u += kWidth) {
      const int n = static_cast<int>(units - u < kWidth ? units - u : kWidth);
      Vf block[kWidth];
      for (int i = 0; i < kWidth; ++i) block[i] = j * kWidth + i < count ? load_n(rows + (j * kWidth + i) * stride + u, n) : zero();
      transpose(block);
      for (int i = 0; i < n; ++i) store(lanes + ((u + i) * V + j) * kWidth, block[i]);
    }
  }
}

}  // namespace
}  // namespace tilewise::machine::cpu::TILEWISE_TARGET
