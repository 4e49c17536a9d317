// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstddef>

#include "tilewise/attend/cuda/forward_args.h"

namespace tilewise::attend::cuda {

/// Numbers of queries, [batch, heads, rows].
struct QueryNumbers {
  const float* data = nullptr;
  int64_t stride_batch = 0, stride_head = 0, stride_row = 0;
};

/// Kernel parameter of all kernels of a backward. What is added up lies by slot: [B, Hq, slots of q], [B, J, slots of k with pools, channels] in f32, J the
/// fewest heads that the heads of k and the groups of the order of keys divide.
struct BackwardArgs : PlanArgs {
  RunListView lists_k[3];  // by_key: masked, whole, picked
  RowsView rows_k;
  int parts_per_row_k = 1;
  int slot_heads = 1;  // J
  float softcap = 0, softcap_scale = 0, scale = 1, softmax_scale = 1;  // the first three as ScoreArgs
  TensorArg q, k, v, out, dout, dq, dk, dv;
  TensorArg pooled_k, pooled_v;
  QueryNumbers lse, dlse;  // dlse.data may be null
  const float* sink_logit = nullptr;
  float* dsink_logit = nullptr;
  float* delta = nullptr;  // workspace: dout out^T - dlse
  float *dk_slots = nullptr, *dv_slots = nullptr;
  int32_t* slot_of = nullptr;  // workspace: slot of each token, [batch, groups, Sk] of the order of keys; null: none, or in slots
  int batch = 0, rows_of_k = 0;  // rows of k and dk: tokens, or slots
};

struct BackwardLaunch {
  BackwardArgs args;
  PoolArgs pool;
  int64_t pool_blocks = 0, delta_blocks = 0, sink_blocks = 0, slot_blocks = 0;
  int64_t query_blocks = 0, key_blocks = 0;  // parts of rows of by_query, of by_key
  int64_t gather_blocks = 0;  // rows of dk; those of dv are as many or fewer
  size_t workspace_bytes = 0;
};

constexpr int kDeltaThreads = 128, kDeltaRows = kDeltaThreads / 4, kSinkThreads = 256, kSlotThreads = 256, kGatherThreads = 128;

}  // namespace tilewise::attend::cuda
