// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>

#include "tilewise/attend/cuda/mask.h"
#include "tilewise/plan/cuda/axis_view.h"
#include "tilewise/plan/cuda/run_list_view.h"

namespace tilewise::attend::cuda {

using plan::cuda::AxisView;
using plan::cuda::RowsView;
using plan::cuda::RunListView;

/// [batch, heads, rows, channels], the last axis contiguous. Strides in elements.
struct TensorArg {
  const void* data = nullptr;
  int64_t stride_batch = 0, stride_head = 0, stride_row = 0;
  int heads = 1, channels = 0;
  bool is_wide = false;  // 16 bytes of a row at a time: address, strides and channels allow it
};

/// Which keys a row of queries reads, and where they lie: what every kernel over a plan shares. The fields of MaskView count tokens.
struct PlanArgs : MaskView {
  RunListView lists[3];      // masked, whole, picked
  RowsView rows;
  AxisView axis_q, axis_k;
  int seqlen_q = 0, seqlen_k = 0;
  bool is_in_slots = false;  // rows of tensors are slots, not tokens
  int heads_q = 0, heads_kv = 0;
  int parts_per_row = 1;     // a row is cut into parts of as many queries as a thread block holds
  // Of pooled keys, [B, Hkv, pooled]: the token that the mask is asked about (-1: no real token), and how many real tokens there are.
  const int32_t* pooled_token = nullptr;
  const float* pooled_count = nullptr;
  int64_t pooled = 0;
};

/// Logits, and what of them is written.
struct ScoreArgs {
  float softcap = 0, softcap_scale = 0;  // softmax_scale / softcap; softcap 0: none
  float scale = 1;           // what scores (after softcap) are multiplied by: softmax_scale, or 1 with softcap
  const float* sink_logit = nullptr;     // [Hq]
};

/// Kernel parameter, trivially copyable.
struct ForwardArgs : PlanArgs, ScoreArgs {
  TensorArg q, k, v, out;    // v and out without data: lse alone
  TensorArg pooled_k, pooled_v;
  float* lse = nullptr;      // null: not written
  int64_t lse_stride_batch = 0, lse_stride_head = 0, lse_stride_row = 0;
};

/// Means of the pools of k and v: a block a mean.
struct PoolArgs {
  TensorArg k, v, pooled_k, pooled_v;
  AxisView axis_k;
  bool is_in_slots = false;
  int heads_kv = 0;
  int64_t pooled = 0;
  int32_t* token = nullptr;  // [B, Hkv, pooled]
  float* count = nullptr;
};

struct ForwardLaunch {
  ForwardArgs args;
  int64_t blocks = 0;        // parts of rows
  PoolArgs pool;
  int64_t pool_blocks = 0;
};

}  // namespace tilewise::attend::cuda
