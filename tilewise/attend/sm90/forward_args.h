// SPDX-License-Identifier: Apache-2.0
// What the Hopper forward kernel reads, and how it is made from plain pointers.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "tilewise/machine/sm90/tensor_map.h"

namespace tilewise::attend::sm90 {

/// Runs of keys that rows read, device pointers. Row (b, h, t) reads runs [begin, begin + count) of start / stop.
struct RunListView {
  const int64_t* begin = nullptr;  // [batch, heads, T]; null: no row has a run here
  const int32_t* count = nullptr;  // [batch, heads, T]
  const int32_t* start = nullptr;
  const int32_t* stop = nullptr;   // null: start + grain, cut at seqlen_k
  int batch = 1;                   // 1 or B
  int heads = 1;                   // G, divides Hq
  int grain = 1;
};

/// Query i is token t = i + Sk - Sq. It sees [t - left, t + right] and [0, sink), nothing past t + right.
struct Band {
  int64_t left, right, sink;
};

/// kernel parameter, trivially copyable
struct ForwardArgs {
  static constexpr int kPieces = 7;  // boxes of 1, 2, 4, .. 64 tokens
  CUtensorMap q, k, v, out;
  CUtensorMap k_piece[kPieces], v_piece[kPieces];
  float* lse;                        // [B, Hq, Sq]
  RunListView masked, whole;
  Band band;
  const int32_t* order;              // [rows] row numbers (b * Hq + h) * T + t in the order of work, longest first; null: as numbered
  int32_t* counter;                  // [2] zeros, and zeros again after the launch: rows claimed, blocks done; null: rows are dealt out beforehand
  int rows, num_q_tiles, heads_q, heads_per_group, seqlen_q, seqlen_k;
  float scale_log2;                  // softmax_scale * log2(e)
  float rescale_threshold;           // in units of q k^T: how far a row maximum may grow before acc is rescaled
};

/// The same in the caller's terms, all tensors on the device.
struct ForwardInput {
  machine::sm90::Tensor16 q, k, v, out;
  float* lse = nullptr;
  float softmax_scale = 0;
  RunListView masked, whole;
  Band band = {0, 0, 0};
  const int32_t* order = nullptr;
  int32_t* counter = nullptr;
  float rescale_threshold_log2 = 8;  // probabilities then stay below 2^8: exact enough in f32, far from the end of f16
};

/// Ideas switched off or on, so that each can be measured against its absence. 0 is the kernel.
enum ForwardVariant : int {
  kByCounter = 1,      // whole length by a counter, no plan: what the run loop is measured against
  kQInSmem = 2,        // Q read from shared memory by every product
  kPingPong = 4,       // the two consumer warpgroups take turns at the matrix units
  kNoOverlap = 8,      // QK of a tile only after PV of the tile before
};

/// The variants that are built (bf16, head_dim 128), for benches and tests.
#define TILEWISE_SM90_VARIANTS 0, kByCounter, kPingPong, kNoOverlap, kQInSmem

/// head_dim 64 and 128, bf16 and f16. cudaErrorInvalidValue: not built, or a stride that the copy engine refuses.
cudaError_t attend_sm90_forward(const ForwardInput& input, int variant, cudaStream_t stream);

}  // namespace tilewise::attend::sm90
