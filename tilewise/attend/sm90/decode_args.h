// SPDX-License-Identifier: Apache-2.0
// What the Hopper decode kernels read, and what it is made from.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "tilewise/attend/sm90/forward_args.h"

namespace tilewise::attend::sm90 {

/// How a key's or value's channels are stored: as q, or in integers.
enum class DecodeStorage : int { plain, int8, int4 };

/// Scales or zeros of a quantised store; strides in elements, 0 along an axis of size 1.
struct DecodeScale {
  const float* data = nullptr;  // null: none
  int64_t stride_entry = 0, stride_head = 0, stride_group = 0;
};

/// Keys or values in the caller's terms: [entries, heads, rows, channels], entries are sequences or the pages of a pool.
struct DecodeStore {
  void* data = nullptr;  // null: no values
  DecodeStorage storage = DecodeStorage::plain;
  int64_t entries = 0, heads = 0, rows = 0, channels = 0;
  int64_t stride_entry = 0, stride_head = 0, stride_row = 0;  // bytes
  DecodeScale scale, zero;
  int group_tokens = 1;
  const int32_t* table = nullptr;  // [B, table_heads, pages]; null: entries are sequences
  int64_t table_stride_batch = 0, table_stride_head = 0;  // the latter 0: one table for all heads
};

inline constexpr int kDecodeDependent = 3;

struct DecodeInput {
  const void* q = nullptr;  // [B, Hq, Sq, D]; strides in elements
  void* out = nullptr;      // [B, Hq, Sq, Dv], or null
  float* lse = nullptr;     // [B, Hq, Sq], or null
  int64_t q_stride[3] = {}, out_stride[3] = {}, lse_stride[3] = {};
  int is_bf16 = 1;
  int batch = 0, heads_q = 0, heads_kv = 0, seqlen_q = 0;
  int capacity = 0;         // most tokens of a sequence
  int page = 0;             // 0: neither k nor v is paged
  DecodeStore k, v;
  const int32_t* lengths = nullptr;  // [B]; null: `capacity` each
  RunListView masked, whole, picked;
  int is_dense = 0;         // no lists: all that bands[0] lets through
  const int32_t* edge = nullptr;  // [num_rows + 1], or null: one row
  int num_rows = 1;
  Band bands[GeneralArgs::kClasses] = {};
  uint8_t head_class[GeneralArgs::kHeads] = {};
  const float* sink_logit = nullptr;
  float softmax_scale = 0, softcap = 0;
  void* workspace = nullptr;  // decode_workspace() bytes
  int dependent =
      kDecodeDependent;  // which kernels begin before the one ahead of them has ended (programmatic dependent launch): 1 the first, 2 the merge
};

inline constexpr int kDecodeStage = 64;  // keys of a stage of the ring

#ifdef __CUDACC__
#define TILEWISE_HOST_DEVICE __host__ __device__
#else
#define TILEWISE_HOST_DEVICE
#endif

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

/// A box is up to `box` neighbouring tokens of one page, which the copy engine takes at once. Boxes stand at multiples of `box` of their page, so
/// that counting them takes no walk: token t lies in box t / page * boxes_per_page + t % page / box.
struct DecodeBoxes {
  Divisor page, boxes_per_page;
  int box, box_shift;  // a power of two
  TILEWISE_HOST_DEVICE int per_stage() const { return kDecodeStage >> box_shift; }
};

/// A row of work, called unit: query heads of one K/V head that share their lists, and the queries of a row of the plan. Its boxes are cut at
/// constants of their number into parts, which thread blocks take; the merge adds up the parts in order.
struct DecodeUnits {
  int batch, heads_q, heads_kv, heads, seqlen_q, num_rows;  // heads: of a unit
  int count;      // units
  int rows;       // heads * seqlen_q
  int most_parts; // for which the workspace has room
  const int32_t* edge;
};

struct DecodeArgs {
  struct Side {
    CUtensorMap map;
    DecodeScale scale, zero;
    const int32_t* table;
    int64_t table_stride_batch, table_stride_head;
    Divisor group_tokens;
    int entries;
    int head_step;  // 0: one head for all
    int is_flat;    // rows narrower than the kernel's: a box a column block
  } k, v;
  DecodeBoxes boxes;
  DecodeUnits units;
  const void* q;
  int64_t q_stride[3];
  int head_dim, has_v;
  int capacity;
  const int32_t* lengths;
  RunListView lists[3];  // masked, whole, picked
  int is_dense;
  Band bands[GeneralArgs::kClasses];
  uint8_t head_class[GeneralArgs::kHeads];
  float scale_log2;      // what scores are multiplied by before exp2; with softcap: log2 e
  float softcap, softcap_scale;
  int strands;           // thread blocks' shares of a unit: strand s takes parts s, s + strands, ..
  float* sums;           // [units, most_parts, rows, kHeadDim]
  float2* stats;         // [units, most_parts, rows]: row maximum in log2, sum of exponentials
  int32_t* parts;        // [units]: parts in use; 0: a row without queries
};

struct DecodeMergeArgs {
  DecodeUnits units;
  const float* sums;
  const float2* stats;
  const int32_t* parts;
  int head_dim;          // of the sums, padded
  int head_dim_v, is_bf16;
  void* out;
  float* lse;
  int64_t out_stride[3], lse_stride[3];
  const float* sink_logit;
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

/// Bytes of DecodeInput::workspace, exact.
size_t decode_workspace(const DecodeInput& input);
/// Why the kernels do not take the layout; null: they do.
const char* decode_refusal(const DecodeInput& input);
/// Queues both kernels. cudaErrorInvalidValue: decode_refusal() has a reason, or the copy engine refuses a stride.
cudaError_t attend_sm90_decode(const DecodeInput& input, cudaStream_t stream);

}  // namespace tilewise::attend::sm90
