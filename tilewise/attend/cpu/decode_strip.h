// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>

// What decode's dispatcher (plain C++) hands to its kernels (one unit per target): plain structs, no container.
namespace tilewise::attend::cpu {

inline constexpr int kDecodeStrip = 128;   // keys whose scores are held at once
inline constexpr int64_t kDecodeStripBytes = 16384;  // of keys, at most: the rows that are asked for ahead must stay in L1
inline constexpr int kDecodeStep = 4;      // keys that are read side by side
inline constexpr int kDecodeValues = 32;   // keys whose channels are all read before those of the next, where registers do not hold all sums
inline constexpr int kDecodePad = 16;      // rows of q and of sums are padded with zeros to a multiple of it: the widest vector

/// How rows are stored: plain, or integers with one scale a key, or with a scale a channel.
enum class DecodeKind : uint8_t { f32, bf16, f16, i8, i4, i8_channels, i4_channels };
inline constexpr int kNumDecodeKinds = 7;

/// Keys or values of a strip. What lies behind the last key, up to a whole step, repeats it.
struct DecodeRows {
  const void* data[kDecodeStrip];
  const float* channels[kDecodeStrip];  // by channel: [2][padded channels]: scale, and what to add after it
  float scale[kDecodeStrip], zero[kDecodeStrip];  // by key; of INT4, zero counts from the code of 0, -8
};

/// Neighbouring bytes of memory.
struct DecodePiece {
  const char *begin, *end;
};

/// What is asked for while a strip is computed. Lines of keys and of values take turns, so that memory always has two places to read from.
struct DecodeAsk {
  struct Side {
    const char *at, *end;  // of the piece in hand
    const DecodePiece *next, *last;
    int lines;  // for every kDecodeStep keys that are computed, first in scores and then in values; of 64 bytes
  };
  Side k, v;
  int64_t at, end;  // bytes that both sides have moved on from theirs, and may: until one's piece ends; both 0 where their speeds differ
};

/// Some keys, and the rows (query heads times new tokens) that read them. Rows come in blocks of table.rows, which share a vector: four lanes each. What is
/// kept for a row is kept for each of its lanes, up to the end of the last block: [rows][4].
struct DecodeStrip {
  int count, rows;
  const DecodeRows *k, *v;
  DecodeAsk* ask;  // moved on while this is computed
  int head_dim, head_dim_v;  // head_dim_v 0: no values
  const float* q;  // [blocks][chunks][rows of a block][4]: four channels, or four pairs of bf16; 0 behind the last channel
  int chunks;
  bool has_pairs;  // q is bf16, two a float
  float* widened;  // [kDecodeStep][4 chunks, or padded head_dim]: keys that cannot be read as they lie
  bool has_scale_k, has_scale_v;  // by key
  const float* q_sum;  // of its channels
  float scale, softcap;  // of the product; 0: none

  bool is_tested;  // some row may not read some key
  const int32_t* token;  // of each key; INT32_MIN: not tested by the mask
  const uint8_t* queries;  // of each key: the new tokens that read it
  const int32_t *first, *last, *sink;  // [rows]: a row sees tokens up to `last` that are below `sink` or not below `first`
  const uint8_t* query;  // [rows]: the bit of its new token

  float* scores;  // [blocks][kDecodeStrip / 4][rows of a block][4 keys]
  float* rescale;
  float* correction;  // what zeros of values add up to, in four parts
  float* sums;  // [rows][padded head_dim_v], in and out
  float *row_max, *row_sum;  // in and out; the maximum is of the product, or of the softcapped logit; the sum is in four parts
};

/// The decode kernels of one target.
struct DecodeTable {
  int rows;  // of a block
  bool dots_bf16;  // scores[bf16] takes pairs
  void (*lay)(const void* first, int64_t stride, int count, const void** to);  // `count` rows, `stride` bytes apart
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
