// SPDX-License-Identifier: Apache-2.0
// What the producer and the consumers of a decode kernel agree on.
//
// Decode reads each key once for a handful of rows, so all that counts is that the copy engine never rests: one thread block a multiprocessor,
// whose producer warps keep a ring of about 190 KiB full across the borders of its work. Eight warps consume. Rows are the narrow side of the matrix
// units (keys or channels are their 16, rows their 8), since a group of query heads is 4 to 8 rows more often than 16.
#pragma once

#include "tilewise/attend/sm90/decode_args.h"
#include "tilewise/machine/sm90/pipeline.cuh"

namespace tilewise::attend::sm90 {

using machine::sm90::bf16;
using machine::sm90::f16;
using machine::sm90::Ring;
using machine::sm90::RingPlace;

/// The kernels beside one another: any problem; decode_is_light(); and those whose unit is a cluster of blocks.
enum class DecodeKind : int { general, light, cluster };

template <int HeadDim, class T, DecodeStorage Storage, DecodeKind Kind = DecodeKind::general>
struct DecodeConfig {
  using Element = T;  // of q
  static constexpr DecodeStorage kStorage = Storage;
  static constexpr bool kIsQuantised = Storage != DecodeStorage::plain;
  // Integers become bf16, which holds all of them. What an f16 query would lose in bf16 goes into a second product.
  using Operand = std::conditional_t<kIsQuantised, bf16, T>;
  static constexpr int kTerms = kIsQuantised && std::is_same_v<T, f16> ? 2 : 1;
  static constexpr bool kIsLight = Kind != DecodeKind::general;  // decode_light.cuh
  static constexpr bool kIsCluster = Kind == DecodeKind::cluster;
  static constexpr int kKeptParts = kIsCluster ? kDecodeMostParts / kDecodeClusterBlocks : 0;
  static constexpr bool kHasKeyScales = kIsQuantised && !kIsLight;
  static constexpr int kHeadDim = HeadDim;
  static constexpr int kSteps = HeadDim / 16;
  static constexpr int kRowBytes = HeadDim * (Storage == DecodeStorage::plain ? 16 : Storage == DecodeStorage::int8 ? 8 : 4) / 8;
  static constexpr int kWidth = kRowBytes < 128 ? kRowBytes : 128;  // of a column block, and of its swizzle
  static constexpr int kBlocks = kRowBytes / kWidth;
  static constexpr int kSideBytes = kDecodeStage * kRowBytes;
  static constexpr int kConsumers = 8;  // warps
  // What is left of 227 KiB beside the sums of four warps and 4 KiB of alignment, notes and barriers.
  static constexpr int kStageBytes = 2 * kSideBytes + (kHasKeyScales ? 16 * kDecodeStage : 0);
  static constexpr int kRoom = 232448 - 4096 - (kIsCluster ? kKeptParts * 8 * (HeadDim * 4 + 8) + kConsumers * 512 : 0) -
                               kConsumers / 2 * 32 * HeadDim + (HeadDim == 256 && !kIsQuantised ? 1024 : 0);
  static constexpr int kStages = kRoom / kStageBytes < 16 ? kRoom / kStageBytes : 16;
  // Warps that take turns with stages: one alone is busy for longer than a stage takes to come. No more of them than stages: a warp may then be a
  // round ahead of another, and no further, which is what the parity of a barrier can tell.
  static constexpr int kProducers = kIsLight ? 1 : kStages >= 4 ? 4 : 2;
  static constexpr int kThreads = 32 * (kConsumers + kProducers);
};

inline constexpr uint32_t kDecodeLanes = 0xFFFFFFFFu;
inline constexpr int kDecodeChunk = 16;  // keys that a warp takes at once

/// 16 keys of a stage.
struct DecodeChunk {
  int token;        // of the first
  uint8_t low, high;  // keys [low, high) are to be read
  uint8_t flags;    // kIsMasked, kIsAbsent
  uint8_t queries;  // bit i: query i reads them
  static constexpr int kIsMasked = 1, kIsAbsent = 2;
};
struct alignas(16) DecodeNotes {
  int unit;  // -1: no more
  int part, is_first, is_last;  // stage of the part
  DecodeChunk chunk[kDecodeStage / kDecodeChunk];
};
/// A light kernel's stage is one box.
struct alignas(16) DecodeLightNotes {
  int unit;  // -1: no more
  int part, is_first, is_last;  // stage of the part
  int low, high;  // keys [low, high) are to be read
  int flags;  // kIsAbsent
  float scale_k, scale_v;
};
template <bool kEnabled>
struct DecodeStageScales {
  float scale_k[kDecodeStage], zero_k[kDecodeStage], scale_v[kDecodeStage], zero_v[kDecodeStage];
};
template <>
struct DecodeStageScales<false> {};

/// What a block of a cluster keeps of its parts: part p in block p % 16 at p / 16.
template <class C>
struct DecodeKept {
  float sums[C::kKeptParts][8][C::kHeadDim];
  float2 stats[C::kKeptParts][8];
  float4 merged[C::kConsumers][32];
};
struct DecodeKeptNothing {};

template <class C>
struct alignas(1024) DecodeShared {  // 1024: the period of the 128-byte swizzle
  uint8_t keys[C::kStages][2][C::kSideBytes];  // k, v
  float4 sums[C::kConsumers / 2][C::kSteps][32];
  float stats[C::kConsumers][3][8];
  float zero_sums[C::kConsumers][8];
  alignas(16) std::conditional_t<C::kIsLight, DecodeLightNotes, DecodeNotes> notes[C::kStages];
  DecodeStageScales<C::kHasKeyScales> scales[C::kStages];
  Ring<C::kStages> ring;
  alignas(16) std::conditional_t<C::kIsCluster, DecodeKept<C>, DecodeKeptNothing> kept;
};

/// What the mask lets a row see: attend::DecodeBand.
struct DecodeBounds {
  int first, last, sink;
  __device__ bool sees(int token) const { return token <= last && (token >= first || token < sink); }
};
__device__ inline DecodeBounds decode_bounds(const DecodeArgs& args, int length, int head, int query) {
  const auto clamp = [](int64_t x) { return static_cast<int>(max(min(x, int64_t{INT32_MAX}), int64_t{INT32_MIN})); };
  const Band& band = args.bands[head < GeneralArgs::kHeads ? args.head_class[head] : 0];
  const int64_t token = int64_t{length} - args.units.seqlen_q + query;
  return {clamp(token - band.left), clamp(min(int64_t{length} - 1, token + band.right)), clamp(band.sink)};
}

/// A sequence's tokens.
__device__ inline int decode_length(const DecodeArgs& args, int batch) {
  return args.lengths ? min(max(args.lengths[batch], 0), args.capacity) : args.capacity;
}

/// Where a unit lies.
struct DecodeUnit {
  int batch = 0, head = 0, head_kv = 0, row = 0;
  DecodeUnit() = default;
  __device__ DecodeUnit(const DecodeUnits& units, int unit) {
    const int of_batch = units.heads_q / units.heads;
    row = unit % units.num_rows;
    const int at = unit / units.num_rows;
    batch = at / of_batch;
    head = at % of_batch * units.heads;
    head_kv = head / (units.heads_q / units.heads_kv);
  }
  __device__ int2 queries(const DecodeUnits& units) const {
    if (!units.edge) return {0, units.seqlen_q};
    const int first = max(0, units.edge[row]);
    return {first, min(units.seqlen_q, units.edge[row + 1])};
  }
};
template <class C>
__device__ DecodeUnit decode_unit(const DecodeArgs& args, int unit) {
  if constexpr (!C::kIsLight) return DecodeUnit(args.units, unit);
  DecodeUnit at;
  at.batch = args.light.of_batch.quotient(unit);
  at.head = (unit - at.batch * args.light.of_batch.divisor) * args.units.heads;
  at.head_kv = args.light.group.quotient(at.head);
  return at;
}

}  // namespace tilewise::attend::sm90
