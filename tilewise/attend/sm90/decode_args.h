// SPDX-License-Identifier: Apache-2.0
// What the Hopper decode kernels read, and what it is made from.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "tilewise/attend/sm90/decode_parts.h"
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

/// Kernels beside the proven one, to be measured against it; bits.
enum DecodeVariant : int {
  kDecodeProven = 0,
  kDecodeLight = 1,       // decode_light.cuh, where decode_is_light() says that it holds the problem; the proven one elsewhere
  kDecodeEarlyMerge = 2,  // light kernels let the merge go at their start: there is room for it beside them
  kDecodeCluster = 4,  // decode_cluster.cuh: a unit's blocks are a cluster and merge through their shared memory, one launch; where 6 to 8 units
  // of one sequence have 128 channels and bf16 queries, and the card holds that many clusters of 16
};
inline int decode_variant = kDecodeProven;  // of calls that do not say; a test sets it

struct DecodeInput {
  const void* q = nullptr;  // [B, Hq, Sq, D]; strides in elements
  void* out = nullptr;  // [B, Hq, Sq, Dv], or null
  float* lse = nullptr;  // [B, Hq, Sq], or null
  int64_t q_stride[3] = {}, out_stride[3] = {}, lse_stride[3] = {};
  int is_bf16 = 1;
  int batch = 0, heads_q = 0, heads_kv = 0, seqlen_q = 0;
  int capacity = 0;  // most tokens of a sequence
  int page = 0;  // 0: neither k nor v is paged
  DecodeStore k, v;
  const int32_t* lengths = nullptr;  // [B]; null: `capacity` each
  RunListView masked, whole, picked;
  int is_dense = 0;  // no lists: all that bands[0] lets through
  const int32_t* edge = nullptr;  // [num_rows + 1], or null: one row
  int num_rows = 1;
  Band bands[GeneralArgs::kClasses] = {};
  uint8_t head_class[GeneralArgs::kHeads] = {};
  const float* sink_logit = nullptr;
  float softmax_scale = 0, softcap = 0;
  void* workspace = nullptr;  // decode_workspace() bytes
  int dependent =
      kDecodeDependent;  // which kernels begin before the one ahead of them has ended (programmatic dependent launch): 1 the first, 2 the merge
  int variant = decode_variant;
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
  int count;  // units
  int rows;  // heads * seqlen_q
  int most_parts;  // for which the workspace has room
  const int32_t* edge;
};

struct DecodeMergeArgs {
  DecodeUnits units;
  const float* sums;
  const float2* stats;
  const int32_t* parts;
  int head_dim;  // of the sums, padded
  int head_dim_v, is_bf16;
  void* out;
  float* lse;
  int64_t out_stride[3], lse_stride[3];
  const float* sink_logit;
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
    int is_flat;  // rows narrower than the kernel's: a box a column block
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
  float scale_log2;  // what scores are multiplied by before exp2; with softcap: log2 e
  float softcap, softcap_scale;
  int strands;  // thread blocks' shares of a unit: strand s takes parts s, s + strands, ..
  float* sums;  // [units, most_parts, rows, kHeadDim]
  float2* stats;  // [units, most_parts, rows]: row maximum in log2, sum of exponentials
  int32_t* parts;  // [units]: parts in use; 0: a row without queries
  struct Light {
    Divisor of_batch, group, heads_q;  // units of a sequence, query heads of a K/V head, of all
    int has_early_merge;  // the merge is let go at the start
  } light;
  DecodeMergeArgs merge;  // of clusters, which have no kernel for it
};

/// Whether a light kernel holds the problem: one new token whose mask hides nothing, up to 8 heads a list, 64 or 128 channels of k and v, whole boxes of 64
/// tokens, and of integers one scale a box and no zeros.
bool decode_is_light(const DecodeInput& input);

/// Bytes of DecodeInput::workspace, exact.
size_t decode_workspace(const DecodeInput& input);
/// Why the kernels do not take the layout; null: they do.
const char* decode_refusal(const DecodeInput& input);
/// Queues both kernels. cudaErrorInvalidValue: decode_refusal() has a reason, or the copy engine refuses a stride.
cudaError_t attend_sm90_decode(const DecodeInput& input, cudaStream_t stream);

}  // namespace tilewise::attend::sm90
