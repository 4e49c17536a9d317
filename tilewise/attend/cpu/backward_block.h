// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstddef>
#include <cstdint>

#include "tilewise/attend/cpu/block.h"

// What the backward dispatcher (plain C++) hands to the kernels (one unit per target): plain structs, no container.
//
// One side of the pairs stands in lanes and stays: 128 keys of a row of by_key, with their K and V, dK and dV. The other side passes by in rows: the
// queries that read them, with Q and dO. For picked keys the roles are exchanged: queries in lanes, keys in rows. Both are one kernel; x is what the
// logits are made of (Q or K), y what meets in dP (dO or V).
namespace tilewise::attend::cpu {

inline constexpr int kRowStrip = 128;  // rows whose P and dS are held at once: two strips of them, the rows and the lanes stay within L2

inline constexpr int kHeldLanes = 128;  // most lanes of a block: with 64, rows were fetched twice as often as the caches can bring them

/// Lane i is bit i % 64 of word i / 64.
struct LaneBits {
  uint64_t word[kHeldLanes / 64];

  bool operator==(const LaneBits&) const = default;
  bool any() const { return (word[0] | word[1]) != 0; }
};

/// Neighbouring rows that meet lanes of the block. Segments ascend.
struct RowSegment {
  int32_t start, stop;  // row slots
  LaneBits bits;        // lanes that every row of it meets
  int64_t row_bits;     // -1: bits; else where RowSide::row_bits holds the lanes of each row
};

/// The slots that stay. f32 sums are written to rows of dx and dy whose strides are multiples of kSumAlign.
struct LaneSide {
  const void *x, *y;
  int64_t x_stride, y_stride;
  float *dx, *dy;  // dy: with keys in lanes alone
  int64_t dx_stride, dy_stride;
  int count;
  bool is_added;             // to what dx holds; else written
  float shift[kHeldLanes];  // added to the exponent: queries -lse * log2(e), keys their bias * log2(e)
  float delta[kHeldLanes];  // queries alone
};

/// The rows of one head that pass by. Pointers are to slot 0; arrays are by slot.
struct RowSide {
  const void *x, *y;
  int64_t x_stride, y_stride;
  const float* shift;                 // null: 0
  const float* delta;                 // queries alone
  float *dx, *dy;                     // added to; dy: with queries in lanes alone
  int64_t dx_stride, dy_stride;
  const RowSegment* segments;
  int64_t num_segments;
  const LaneBits* row_bits;
};

inline constexpr int64_t kSumAlign = 16;  // floats: a vector of every target
constexpr int64_t sum_stride(int64_t channels) { return (channels + kSumAlign - 1) / kSumAlign * kSumAlign; }

struct BackwardBlock {
  LaneSide lanes;
  const RowSide* sides;  // one a head: the heads of a group add to the same keys, in this order
  int num_sides;
  int head_dim, head_dim_v;
  float scale;       // of x . x
  float softcap;     // 0: none
  bool has_bias;     // lanes.shift of keys, or the rows' shift of keys, is not 0
  /// Called before rows up to `last` of `side` are added to; false: stop at once. Then with what will be added to next: row `next` of `side` at the
  /// earliest (side num_sides: no more).
  bool (*wait)(void* state, int side, int32_t last);
  void (*done)(void* state, int side, int32_t next);
  void* state;
  std::byte* workspace;  // workspace_bytes(), 64-byte aligned
};

/// The backward kernels of one target.
struct BackwardTable {
  size_t (*workspace_bytes)(int head_dim, int head_dim_v);
  void (*keys_f32)(const BackwardBlock& block);
  void (*queries_f32)(const BackwardBlock& block);
  void (*keys_bf16)(const BackwardBlock& block);  // null where the target lacks the dot instruction: operands are widened before
  void (*queries_bf16)(const BackwardBlock& block);
  /// delta[i] = dout[i] . out[i], for `rows` rows.
  void (*delta_f32)(const float* dout, int64_t dout_stride, const float* out, int64_t out_stride, int64_t rows, int channels, float* delta);
  void (*delta_bf16)(const uint16_t* dout, int64_t dout_stride, const uint16_t* out, int64_t out_stride, int64_t rows, int channels, float* delta);
  /// out = scale * sums, rounded once.
  void (*write_f32)(const float* sums, int64_t rows, int channels, float scale, float* out, int64_t stride);
  void (*write_bf16)(const float* sums, int64_t rows, int channels, float scale, uint16_t* out, int64_t stride);
};

namespace portable {
extern const BackwardTable backward_table;
}
namespace avx2 {
extern const BackwardTable backward_table;
}
namespace avx512 {
extern const BackwardTable backward_table;
}
namespace avx512bf16 {
extern const BackwardTable backward_table;
}

}  // namespace tilewise::attend::cpu
