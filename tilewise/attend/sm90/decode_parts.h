// SPDX-License-Identifier: Apache-2.0
// How decode counts and cuts keys: what host, kernels and tests compute alike.
#pragma once

#include <cstdint>

#include "tilewise/machine/cuda/block.h"

namespace tilewise::attend::sm90 {

inline constexpr int kDecodeStage = 64;  // keys of a stage of the ring

/// Division of 0 to 2^31 - 1 by a number known to the host: three instructions where the compiler takes thirty, and the producer is one warp.
struct Divisor {
  int divisor = 1, shift = 31;
  uint32_t factor = 1u << 31;  // ceil(2^(31 + bits) / divisor), 2^bits the next power of two

  Divisor() = default;
  explicit Divisor(int by) : divisor(by) {
    int bits = 0;
    while ((int64_t{1} << bits) < by) ++bits;
    shift = 31 + bits;
    factor = static_cast<uint32_t>(((uint64_t{1} << shift) + static_cast<uint64_t>(by) - 1) / static_cast<uint64_t>(by));
  }
  TILEWISE_HOST_DEVICE int quotient(int x) const { return static_cast<int>(uint64_t{static_cast<uint32_t>(x)} * factor >> shift); }
};

/// The parts of a unit: every one has `boxes` of them, the last maybe fewer.
struct DecodeParts {
  int count, boxes;
};
inline constexpr int kDecodeMostParts = 64;  // so that the merge of a row stays small beside its parts
inline constexpr int kDecodeLeastKeys = 256;   // of a part
/// Parts grow as the square root of the list: 256 keys of 4 K, 512 of 8 K, 2,048 of 128 K. A short list needs parts for many multiprocessors, a long one
/// has them anyhow, and each part costs a write and a read of its sums.
TILEWISE_HOST_DEVICE constexpr DecodeParts decode_parts(int boxes, int box_shift) {
  const int of_stage = kDecodeStage >> box_shift;
  const int64_t keys = int64_t{boxes} << box_shift;
  int64_t each = kDecodeLeastKeys;
  while (4 * each * each <= 32 * keys) each *= 2;
  each >>= box_shift;
  const int64_t least = (int64_t{boxes} + kDecodeMostParts - 1) / kDecodeMostParts;
  if (each < least) each = (least + of_stage - 1) & -of_stage;
  const auto count = static_cast<int>((boxes + each - 1) / each);
  return {count < 1 ? 1 : count, static_cast<int>(each)};
}

/// decode_parts() of boxes of 64 tokens, of at most 2^31 together, in 32 bits.
TILEWISE_HOST_DEVICE constexpr DecodeParts decode_light_parts(int boxes) {
  int each = kDecodeLeastKeys / kDecodeStage;
  while (8 * each * each <= boxes) each *= 2;
  const int least = (boxes + kDecodeMostParts - 1) / kDecodeMostParts;
  if (each < least) each = least;
  const int count = (boxes + each - 1) / each;
  return {count < 1 ? 1 : count, each};
}

inline constexpr int kDecodeClusterBlocks = 16;  // what a card takes at most: a block then has up to 4 parts of a unit
/// Who merges what in a cluster: each row has so many of its blocks, a power of two, and each of those so many quads of channels.
struct DecodeClusterShare {
  int row, first_quad, quads;  // none where `row` is no row
};
TILEWISE_HOST_DEVICE constexpr DecodeClusterShare decode_cluster_share(int rows, int head_dim, int rank) {
  int of_row = kDecodeClusterBlocks;
  while (of_row * rows > kDecodeClusterBlocks) of_row /= 2;
  const int quads = head_dim / 4 / of_row;
  return {rank / of_row, rank % of_row * quads, quads};
}

/// A run's keys as light kernels read them: in stages of 64 tokens that stand at multiples of 64, which are boxes of a page of any multiple of 64.
struct DecodeRun {
  int start, stop;
  TILEWISE_HOST_DEVICE constexpr int boxes() const { return start < stop ? (stop - 1) / kDecodeStage - start / kDecodeStage + 1 : 0; }
  /// First token of box `i`.
  TILEWISE_HOST_DEVICE constexpr int token(int i) const { return (start / kDecodeStage + i) * kDecodeStage; }
  /// Keys [low, high) of the box at `token` are of the run.
  TILEWISE_HOST_DEVICE constexpr int low(int token) const { return start > token ? start - token : 0; }
  TILEWISE_HOST_DEVICE constexpr int high(int token) const { return stop - token < kDecodeStage ? stop - token : kDecodeStage; }
};

}  // namespace tilewise::attend::sm90
