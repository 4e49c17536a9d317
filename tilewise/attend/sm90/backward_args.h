// SPDX-License-Identifier: Apache-2.0
// What the Hopper backward kernels read.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "tilewise/attend/sm90/backward_item.h"
#include "tilewise/machine/sm90/tensor_map.h"

namespace tilewise::attend::sm90 {

/// Kernel parameter, trivially copyable.
struct BackwardArgs {
  CUtensorMap q, dout, k, v;       // boxes of tile_q and 128 tokens, one column block
  CUtensorMap dk, dv;              // boxes of 16 tokens
  const BackwardItem* items;
  const int32_t* first_item;       // [thread blocks + 1]
  const uint64_t* steps;
  const uint64_t* patterns;        // [patterns][kKeyTile][tile_q / 64]
  const float* row_facts;          // [B * Hq * q_tiles][tile_q / 2][4]: of two queries -lse * log2(e) twice and delta twice
  float* dq_sums;                  // [B * Hq * q_tiles][2][4096]: as the registers of a warpgroup lie
  int32_t* turn;                   // [B * Hq * q_tiles]: how many key tiles have added to the query tile
  int heads_q, heads_per_group, q_tiles;
  int is_flat_q, is_flat_v;        // no whole column blocks: q and k, v and dout
  float scale, scale_log2;         // scale_log2: of q k^T, or softcap * log2(e)
  float inner_scale;               // with softcap: softmax_scale / softcap
  float zero;                      // 0, which the compiler must not know: it would split off the first step of a tile, and spill
};

/// The same in the caller's terms, all on the device. Workspace: backward_workspace().
struct BackwardInput {
  machine::sm90::Tensor16 q, k, v, out, dout, dq, dk, dv;
  const float* lse = nullptr;
  const float* dlse = nullptr;        // or null
  int64_t lse_strides[3] = {}, dlse_strides[3] = {};
  const float* sink_logit = nullptr;  // or null
  float* dsink_logit = nullptr;       // or null
  float softmax_scale = 0, softcap = 0;
  const BackwardItem* items = nullptr;
  const int32_t* first_item = nullptr;
  const uint64_t* steps = nullptr;
  const uint64_t* patterns = nullptr;
  int thread_blocks = 0;
  const unsigned long long* status = nullptr;  // StepsStatus; not null: where the order of work had no room, gradients become NaN
};

/// Bytes of the parts of the workspace, each a multiple of 256.
struct BackwardWorkspace {
  size_t row_facts, turn, dq_sums;
  size_t total() const { return row_facts + turn + dq_sums; }
};
BackwardWorkspace backward_workspace(int64_t batch, int heads_q, int64_t seqlen_q, int head_dim);

/// cudaErrorInvalidValue: a stride that the copy engine refuses. Three launches or more; `workspace` needs no clearing.
cudaError_t attend_sm90_backward(const BackwardInput& input, void* workspace, cudaStream_t stream);

}  // namespace tilewise::attend::sm90
