// SPDX-License-Identifier: Apache-2.0
// What the Hopper forward kernels read, and what it is made from.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "tilewise/attend/cuda/mask.h"
#include "tilewise/attend/sm90/split_rows.h"
#include "tilewise/machine/sm90/tensor_map.h"
#include "tilewise/plan/cuda/run_list_view.h"

namespace tilewise::attend::sm90 {

using plan::cuda::RunListView;

using cuda::Band;
using cuda::GridAxis;

/// Token of each slot, [batch, groups, slots]; -1: padding. Null: slot s holds token s.
struct OrderView {
  const int32_t* token = nullptr;
  int batch = 1, groups = 1;
};

/// Kernel parameter, trivially copyable.
struct ForwardArgs {
  static constexpr int kPieces = 7;  // boxes of 1, 2, 4, .. 64 tokens
  CUtensorMap q, k, v, out;          // boxes of 64, tile_k, tile_k and 16 tokens; all column blocks in the plain kernel, one in the general
  CUtensorMap k_piece[kPieces], v_piece[kPieces];
  float* lse;                        // null: not written
  int64_t lse_stride_batch, lse_stride_head;
  RunListView masked, whole;
  Band band;
  const int32_t* order;              // [items] item numbers (b * Hq + h) * items_per_head + i in the order of work; null: as numbered
  int32_t* counter;                  // [2] zeros, and zeros again after the launch: items claimed, blocks done; null: a thread block an item
  int items;                         // an item is up to 128 queries of a row
  int items_per_head, items_per_row, heads_q, heads_per_group, seqlen_q, seqlen_k;
  int past_k;                        // a token past the end of k and v, where the copy engine reads zeros
  int head_v_step;                   // 0: one head of v for all
  int is_by_counter;                 // kProof alone: keys by a counter, no plan
  float scale_log2;                  // what scores are multiplied by before exp2
  float rescale_threshold;           // in units of scores: how far a row maximum may grow before acc is rescaled
};

/// Of the kernel whose last rows may be split.
struct SplitForwardArgs : ForwardArgs {
  SplitView split;
};

/// The parts that the plain kernel leaves out, so that they cost it nothing.
struct GeneralArgs : ForwardArgs {
  static constexpr int kClasses = cuda::kMaskClasses, kAxes = cuda::kMaskAxes, kHeads = cuda::kMaskHeads;
  CUtensorMap q_token, out_token;    // boxes of one token
  int is_flat_q, is_flat_v;          // no whole column blocks: q and k, v and out
  RunListView picked;
  const int32_t* edge;               // [T + 1]; null: row t begins at slot t * tile
  int tile, slots_q;
  OrderView order_q, order_k;
  int order_k_slots;
  cuda::MaskForm form;               // these as a MaskView
  Band bands[kClasses];
  const int32_t* spans;              // [classes, spans_batch, Sq, 4]
  int spans_batch;
  GridAxis grids[kClasses][kAxes];
  int num_axes[kClasses];
  int64_t grid_first;
  uint8_t head_class[kHeads];
  const float* sink_logit;           // [Hq] or null
  float softcap, softcap_scale;      // softmax_scale / softcap; softcap 0: none
  int has_out;
};

/// Where the slots of k end, and then each pool.
struct KeyParts {
  static constexpr int kMost = 8;
  int end[kMost] = {}, count = 1;
};
/// Of the kernel that also reads pooled keys, which lie in tensors of their own.
struct PooledArgs : GeneralArgs {
  CUtensorMap pooled_k_piece[kPieces], pooled_v_piece[kPieces];
  KeyParts parts;
  // [B, Hkv, pooled]: the token that the mask is asked about (-1: no real token), how many real tokens there are.
  const int32_t* pooled_token;
  const float* pooled_count;
  int pooled;
  float score_of_bias;               // what a bias is multiplied by to become a score: scores are scaled later
};

/// The same in the caller's terms, all tensors and arrays on the device.
struct ForwardInput {
  machine::sm90::Tensor16 q, k, v, out;  // v and out may be without data: lse alone
  float* lse = nullptr;
  int64_t lse_stride_batch = 0, lse_stride_head = 0;
  float softmax_scale = 0;
  RunListView masked, whole;
  Band band = {0, 0, 0};
  const int32_t* order = nullptr;
  int32_t* counter = nullptr;
  float rescale_threshold_log2 = 8;  // probabilities then stay below 2^8: exact enough in f32, far from the end of f16
  int tile = 128;
  SplitView split;                   // make_split_schedule(); has parts: the kernel that reads them
};

/// The rest of it; `needs_general` says whether any of it is in use.
struct GeneralInput {
  RunListView picked;
  const int32_t* edge = nullptr;
  int num_rows = 0;                  // with edge
  int slots_q = 0, slots_k = 0;
  OrderView order_q, order_k;
  cuda::MaskForm form = cuda::bands_form;  // these as a MaskView
  Band bands[GeneralArgs::kClasses] = {};
  const int32_t* spans = nullptr;
  int spans_batch = 1;
  GridAxis grids[GeneralArgs::kClasses][GeneralArgs::kAxes] = {};
  int num_axes[GeneralArgs::kClasses] = {};
  int64_t grid_first = 0;
  uint8_t head_class[GeneralArgs::kHeads] = {};
  const float* sink_logit = nullptr;
  float softcap = 0;
  machine::sm90::Tensor16 pooled_k, pooled_v;  // without data: the plan has no pools; v without data: lse alone
  KeyParts parts;
  const int32_t* pooled_token = nullptr;
  const float* pooled_count = nullptr;
};

/// Kernels beside the product's, so that an idea can be measured against its absence (bf16, head_dim 128).
enum ForwardVariant : int {
  kPlain = 0,
  kProof = 1,      // the product's consumers; keys by the plan
  kByCounter = 2,  // the same kernel, keys by a counter: what the run loop is measured against
  kRowByRow = 3,   // nothing of a row overlaps the row before
  kGeneral = 4,    // the kernel with every part, on a problem that needs none
  kNarrow = 5,     // rows of 64 queries, which the plain call takes by itself
  kSplit = 6,      // rows of the last round in parts, which the plain call takes where ForwardInput::split has parts
  kSeam = 7,        // a row's last PV before the next row's first QK, so that Q is loaded under the one and the row stored under the other
  kPooled = 9,      // the general kernel, with pools
  kNarrowSeam = 8,  // the same for rows of 64 queries
};

constexpr bool is_narrow(int variant) { return variant == kNarrow || variant == kNarrowSeam; }

/// cudaErrorInvalidValue: a stride that the copy engine refuses, or more than 2^31 items. `general` may be null.
cudaError_t attend_sm90_forward(const ForwardInput& input, const GeneralInput* general, int variant, cudaStream_t stream);

/// Items of one head and of one row: how the order of work counts.
int items_per_row(const ForwardInput& input, const GeneralInput* general);
int items_per_head(const ForwardInput& input, const GeneralInput* general);
/// Thread blocks that run at once on a multiprocessor.
int blocks_per_multiprocessor(const ForwardInput& input, const GeneralInput* general);

}  // namespace tilewise::attend::sm90
