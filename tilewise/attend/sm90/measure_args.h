// SPDX-License-Identifier: Apache-2.0
// What the Hopper kernel of tiles' maxima reads, and what it is made from.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "tilewise/attend/cuda/mask.h"
#include "tilewise/attend/sm90/decode_parts.h"
#include "tilewise/machine/sm90/tensor_map.h"
#include "tilewise/plan/cuda/run_list_view.h"

namespace tilewise::attend::sm90 {

/// f32 [B, Hq, Tq, Tk]; strides in elements.
struct MeasureOutput {
  float* data = nullptr;
  int batch = 0, heads = 0, tiles_q = 0, tiles_k = 0;
  int64_t stride[4] = {};
};

struct MeasureInput {
  machine::sm90::Tensor16 q, k;
  MeasureOutput max;
  plan::cuda::RunListView masked, whole;
  cuda::Band band = {0, 0, 0};
  int tile = 128, tile_q = 128, tile_k = 128;  // of the plan's rows; of a cell, tile_q a multiple of 64 that divides `tile`
  float softmax_scale = 0, softcap = 0;
};

/// Kernel parameter, trivially copyable.
struct MeasureArgs {
  CUtensorMap q, k;  // boxes of 64 and 128 tokens, all column blocks
  MeasureOutput max;
  plan::cuda::RunListView masked, whole;
  cuda::Band band;
  int items, items_per_row, rows;  // an item is up to 128 queries of a row
  int heads_q, heads_per_group, seqlen_q, seqlen_k;
  int tile, tile_q;
  Divisor tile_k;
  float softmax_scale, softcap;
};

/// Queues two kernels: all cells -inf, then the largest logit of each. cudaErrorInvalidValue: a stride that the copy engine refuses, more than 256
/// channels or none that are a multiple of 64, or 2^31 items.
cudaError_t attend_sm90_measure(const MeasureInput& input, cudaStream_t stream);

}  // namespace tilewise::attend::sm90
