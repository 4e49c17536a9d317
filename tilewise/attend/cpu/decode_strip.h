// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>

// What decode's dispatcher (plain C++) hands to its kernels (one unit per target): plain structs, no container.
namespace tilewise::attend::cpu {

inline constexpr int kDecodeStrip = 64;    // keys whose scores are held at once
inline constexpr int kDecodePad = 16;      // rows of q and of sums are padded with zeros to a multiple of it: the widest vector

/// How rows are stored: plain, or integers with one scale a key, or with a scale a channel.
enum class DecodeKind : uint8_t { f32, bf16, f16, i8, i4, i8_channels, i4_channels };
inline constexpr int kNumDecodeKinds = 7;

/// Keys or values of a strip.
struct DecodeRows {
  const void* data[kDecodeStrip];
  const float* channels[kDecodeStrip];  // by channel: [2][padded channels]: scale, and what to add after it
  float scale[kDecodeStrip], zero[kDecodeStrip];  // by key; of INT4, zero counts from the code of 0, -8
};

/// Some keys, and the rows (query heads times new tokens) that read them. Rows are padded to a multiple of kDecodePad.
struct DecodeStrip {
  int count, rows;
  const DecodeRows *k, *v;
  int head_dim, head_dim_v;  // head_dim_v 0: no values
  const float* q;            // [rows][padded head_dim] f32, or pairs of bf16
  bool has_pairs;            // q is bf16, two a float
  bool has_scale_k, has_scale_v;  // by key
  const float* q_sum;        // [rows] of its channels
  float scale, softcap;      // of the product; 0: none

  bool is_tested;            // some row may not read some key
  const int32_t* token;      // of each key; INT32_MIN: not tested by the mask
  const uint8_t* queries;    // of each key: the new tokens that read it
  const int32_t *first, *last, *sink;  // [rows]: a row sees tokens up to `last` that are below `sink` or not below `first`
  const uint8_t* query;      // [rows]: the bit of its new token

  float* scores;             // [rows][kDecodeStrip]
  float* rescale;            // [rows]
  float* correction;         // [rows]: what zeros of values add up to
  float* sums;               // [rows][padded head_dim_v], in and out
  float *row_max, *row_sum;  // [rows], in and out; the maximum is of the product, or of the softcapped logit
};

/// The decode kernels of one target.
struct DecodeTable {
  bool dots_bf16;  // scores[bf16] takes pairs
  void (*scores[kNumDecodeKinds])(const DecodeStrip& strip);
  void (*softmax)(const DecodeStrip& strip);
  void (*values[kNumDecodeKinds])(const DecodeStrip& strip);
};

namespace portable {
extern const DecodeTable decode_table;
}  // namespace portable
namespace avx2 {
extern const DecodeTable decode_table;
}  // namespace avx2
namespace avx512 {
extern const DecodeTable decode_table;
}  // namespace avx512
namespace avx512bf16 {
extern const DecodeTable decode_table;
}  // namespace avx512bf16

}  // namespace tilewise::attend::cpu
