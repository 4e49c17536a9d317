// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstddef>
#include <cstdint>

// What the dispatchers (plain C++) hand to the kernels (one unit per target): plain structs, no container.
namespace tilewise::attend::cpu {

inline constexpr int kBlockLanes = 64;  // queries of one block, one lane each; a word of `rows`
inline constexpr int kStripKeys = 256;  // keys whose scores are held at once
inline constexpr int kTogether = 2;     // blocks that may share their strips

/// Neighbouring keys that a block reads. Untested: every query of the block (with its bit in `bits`) reads them.
struct Segment {
  int32_t start, stop;  // key slots, pools included; where keys have no order, tokens
  uint64_t bits;        // bit i: lane i reads the segment
  int32_t cell;         // measure: where its values are counted; forward: unused
  bool is_tested;       // by the mask, in every lane

  bool operator==(const Segment&) const = default;
};

/// The mask of bands as one block sees it: lane i sees keys up to last[i] that are below `sink` or not below first[i].
struct LaneBand {
  int32_t first[kBlockLanes], last[kBlockLanes];
  int32_t sink;
};

/// One block of queries of one head, and the keys that it reads. Strides count elements of the inputs' dtype; the last axis is contiguous.
struct Block {
  const void* q;
  const void* k;
  const void* v;
  const uint16_t* v_pairs;  // null, or the head's bf16 values as the dot instruction reads them: [ceil(seqlen_k / 2), head_dim_v, 2]
  int64_t q_stride, k_stride, v_stride;
  int head_dim, head_dim_v;  // head_dim_v 0: no values, lse alone
  int lanes;  // queries, 1 to kBlockLanes
  const Segment* segments;
  int64_t num_segments;
  const LaneBand* band;
  const float* key_bias;  // null, or per key slot: added to the logit after softcap (ln of a pooled key's tokens)
  int32_t first_biased;   // no slot before it has a bias
  float scale;    // of the product, before softcap
  float softcap;  // 0: none
  /// Null, or asked before every strip, so that a stop need not wait for the end of a long row: true ends the walk, and what the block has written is no result.
  bool (*is_stopped)(const void* stop);
  const void* stop;
};

struct ForwardBlock {
  Block block;
  float start_lse, start_shift,
      start_sum;  // -infinity, -infinity and 0; with a sink: its logit, which is log(start_sum * 2^start_shift), start_shift a whole number
  void* out;  // unused without values
  int64_t out_stride;
  float* row_lse;  // [kBlockLanes] out, natural
  std::byte* workspace;  // workspace_bytes(), 64-byte aligned; of the first of several blocks
};

/// Blocks that read the same segments of the same k and v, 1 to kTogether: finding, pairing and fetching keys is paid once for all. Each block's result is
/// what it gives alone, bit for bit.
struct ForwardBlocks {
  const ForwardBlock* blocks;
  int count;
};
/// Runs `now`, which share now.blocks[0].workspace, and meanwhile asks for the memory that `next` (count 0: nothing) begins with.
using ForwardKernel = void (*)(const ForwardBlocks& now, const ForwardBlocks& next);

/// The forward kernels of one target.
struct ForwardTable {
  size_t (*workspace_bytes)(int head_dim, int head_dim_v);
  ForwardKernel forward_f32, forward_bf16, forward_f16;
  /// Fills rows [first, last) of a v_pairs array from `seqlen_k` rows of values; null where the target does not read pairs.
  void (*pair_values)(const uint16_t* v, int64_t stride, int64_t seqlen_k, int head_dim_v, int64_t first, int64_t last, uint16_t* pairs);
};

/// What a measuring kernel adds up over.
enum class MeasureWalk : uint8_t {
  lanes,  // per lane, over neighbouring keys of one cell
  keys,  // per key, over lanes
  offsets,  // per query minus key
};

struct MeasureBlock {
  Block block;  // v unused
  const float* lse;  // [kBlockLanes] or null: values are exp(logit - lse), else logits
  const float* key_bias;  // per key slot, or null: added to the logit (that of `block` is not looked at)
  MeasureWalk walk;
  /// lanes: called for each stretch of a strip's keys with one cell; arrays hold `lanes` numbers, for the lanes from `first` on.
  void (*take)(void* state, int first, int lanes, int32_t cell, const float* sum, const float* max, const float* count);
  void* state;
  /// keys: entry `slot`; offsets: entry first_query + lane - slot, where slots are tokens. All three are added to.
  float *sum, *max, *count;
  int64_t first_query;
  std::byte* workspace;  // workspace_bytes(), 64-byte aligned
};

/// The measuring kernels of one target.
struct MeasureTable {
  size_t (*workspace_bytes)(int head_dim);
  void (*measure_f32)(const MeasureBlock& block);
  void (*measure_bf16)(const MeasureBlock& block);
  void (*measure_f16)(const MeasureBlock& block);
};

namespace portable {
extern const ForwardTable forward_table;
extern const MeasureTable measure_table;
}  // namespace portable
namespace avx2 {
extern const ForwardTable forward_table;
extern const MeasureTable measure_table;
}  // namespace avx2
namespace avx512 {
extern const ForwardTable forward_table;
extern const MeasureTable measure_table;
}  // namespace avx512
namespace avx512bf16 {
extern const ForwardTable forward_table;
extern const MeasureTable measure_table;
}  // namespace avx512bf16

}  // namespace tilewise::attend::cpu
