// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>

#include "tilewise/base/tensor.h"

// Products of many rows by one block of lanes, for whoever scores tiles on the CPU (selectors) and should not write SIMD. A block is kLanes rows of
// one operand (say, 64 pooled or grouped queries), transposed once so that each row is a lane; the rows of the other operand (keys) are read where
// they lie. A typical selector, per block of 64 query groups:
//
//   pack_lanes(q, q_stride, 64, channels, packed);                      // once per block
//   for each chunk of up to a few hundred keys:
//     multiply(rows, count, channels, packed, scores, false);           // scores[i][lane] = rows[i] . q[lane]
//     max_lanes(scores, count, row_max);                                // running maximum of each lane
//   ... exp_lanes(scores, count, scale_log2, shift, row_sum);           // in place: p = 2^(s * scale_log2 - shift[lane]), row_sum[lane] += p
//   add_rows(scores, count, sums);                                      // sums[lane] += sum over i: a tile's mass, per query
//
// Scores that add up over S tokens (antidiagonals): pack each of the S parts into its own packed operand, and call multiply S times with
// `accumulate` after the first; a packed operand is best kept below 256 channels a call (L1). A `rows` array of pointers makes any stride and any gather the same. Everything is f32; to_float converts.
// All functions run in the calling thread, use current_target(), and are deterministic. Buffers need 4-byte alignment only (64 is faster).
namespace tilewise::machine::cpu {

inline constexpr int kLanes = 64;  // lanes of a block: packed operands are channels * 64 floats, scores [count, 64]
inline constexpr int kRowMultiple = 8;  // `scores` is written for count rounded up to this; rows behind `count` hold no meaning

/// Lays `count` (at most 64) rows of `channels` floats into lanes: channels * 64 floats, in an order that is the target's own; lanes behind are 0.
TILEWISE_API void pack_lanes(const float* rows, int64_t stride, int count, int64_t channels, float* packed);

/// scores[i * 64 + lane] (+)= sum over c of rows[i][c] * (channel c of packed row `lane`), for i < count. `lanes`: only the first so many are needed
/// (rounded up to a vector; lanes behind are left as they were).
TILEWISE_API void multiply(const float* const* rows, int count, int64_t channels, const float* packed, float* scores, bool accumulate,
                           int lanes = kLanes);

/// row_max[lane] = max(row_max[lane], scores[i][lane]), i < count. Start from -infinity.
TILEWISE_API void max_lanes(const float* scores, int count, float* row_max);

/// scores[i][lane] = 2^(scores[i][lane] * scale_log2 - shift[lane]) and row_sum[lane] += it. Relative error 3e-7. The exponent must be <= 127;
/// -infinity gives 0. For exp use scale_log2 = scale * log2(e) and shift = maximum * scale_log2.
TILEWISE_API void exp_lanes(float* scores, int count, float scale_log2, const float* shift, float* row_sum);

/// sums[lane] += sum over i < count of scores[i][lane].
TILEWISE_API void add_rows(const float* scores, int count, float* sums);

/// count elements of f32 or bf16 to f32. Errors: dtype.
TILEWISE_API void to_float(const void* source, Dtype dtype, int64_t count, float* out);

}  // namespace tilewise::machine::cpu
