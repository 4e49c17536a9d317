// SPDX-License-Identifier: Apache-2.0
// What comes before and after the products: delta of each query, dq from its sums, the gradient of sink logits.
#pragma once

#include <cmath>

#include "tilewise/attend/sm90/backward_config.cuh"
#include "tilewise/attend/sm90/softmax.cuh"

namespace tilewise::attend::sm90 {

/// Rows of a tensor [B, H, S, D], D contiguous.
template <class T>
struct Rows {
  T* data;
  int64_t stride_batch, stride_head, stride_token;
  int channels;
  __device__ T* at(int batch, int head, int token) const { return data + batch * stride_batch + head * stride_head + token * stride_token; }
};

template <class T>
struct FactsArgs {
  Rows<const T> out, dout;
  Rows<const float> lse, dlse;  // one channel; dlse without data: none
  float* row_facts;
  int32_t* turn;
  int heads_q, seqlen_q, q_tiles, tile_q;
};

__device__ inline float as_float(bf16 x) { return __bfloat162float(x); }
__device__ inline float as_float(f16 x) { return __half2float(x); }

/// A half warp a query, a block of 256 threads a tile of queries.
template <class T>
__global__ void __launch_bounds__(256) attend_sm90_backward_facts_kernel(const __grid_constant__ FactsArgs<T> args) {
  const int tile = static_cast<int>(blockIdx.x % args.q_tiles), of_batch = static_cast<int>(blockIdx.x / args.q_tiles);
  const int batch = of_batch / args.heads_q, head = of_batch % args.heads_q, lane = threadIdx.x % 16;
  if (threadIdx.x == 0) args.turn[blockIdx.x] = 0;
  float* const facts = args.row_facts + int64_t{blockIdx.x} * args.tile_q * 2;
  for (int row = static_cast<int>(threadIdx.x / 16); row < args.tile_q; row += 16) {
    const int token = tile * args.tile_q + row;
    float sum = 0, lse = -INFINITY;
    if (token < args.seqlen_q) {
      const T* const out = args.out.at(batch, head, token);
      const T* const dout = args.dout.at(batch, head, token);
      for (int first = lane * 8; first < args.out.channels; first += 16 * 8) {
        if (first + 8 <= args.out.channels) {
          const uint4 a = *reinterpret_cast<const uint4*>(out + first), b = *reinterpret_cast<const uint4*>(dout + first);
          const T* const x = reinterpret_cast<const T*>(&a);
          const T* const y = reinterpret_cast<const T*>(&b);
#pragma unroll
          for (int i = 0; i < 8; ++i) sum = fmaf(as_float(x[i]), as_float(y[i]), sum);
        } else {
          for (int i = first; i < args.out.channels; ++i) sum = fmaf(as_float(out[i]), as_float(dout[i]), sum);
        }
      }
      lse = *args.lse.at(batch, head, token);
    }
#pragma unroll
    for (int other = 8; other > 0; other /= 2) sum += __shfl_xor_sync(0xFFFFFFFFu, sum, other);
    if (lane == 0) {
      const bool has_key = lse != -INFINITY;  // else its probabilities are 0, as those past the last query
      if (token < args.seqlen_q && args.dlse.data) sum -= *args.dlse.at(batch, head, token);
      facts[row / 2 * 4 + row % 2] = has_key ? -lse / kLn2 : -INFINITY;
      facts[row / 2 * 4 + 2 + row % 2] = has_key ? sum : 0;
    }
  }
}

template <class T>
struct FinishArgs {
  Rows<T> dq;
  const float* dq_sums;
  const int32_t* turn;
  int heads_q, seqlen_q, q_tiles;
  float scale;
};

/// dq = scale * sums, rounded once: from the layout of registers to rows. A block of 128 threads a tile of queries.
template <class T, int HeadDim>
__global__ void __launch_bounds__(128) attend_sm90_backward_finish_kernel(const __grid_constant__ FinishArgs<T> args) {
  constexpr int kTileQ = backward_tile_q(HeadDim), kPitch = HeadDim + 8;  // 16 bytes more: no two rows of a quad in one bank
  __shared__ __align__(16) T rows[kTileQ * kPitch];
  const int tile = static_cast<int>(blockIdx.x % args.q_tiles), of_batch = static_cast<int>(blockIdx.x / args.q_tiles);
  const int batch = of_batch / args.heads_q, head = of_batch % args.heads_q, thread = threadIdx.x;
  const bool is_read = args.turn[blockIdx.x] != 0;  // else nobody has written the sums
  const float4* const sums = reinterpret_cast<const float4*>(args.dq_sums) + int64_t{blockIdx.x} * 2048;
#pragma unroll
  for (int i = 0; i < 16; ++i) {
    const float4 x = is_read ? sums[i * 128 + thread] : float4{0, 0, 0, 0};
    const int half = i / 8, row = thread / 32 * 16 + thread % 32 / 4 + (kTileQ == 128 ? half * 64 : 0);
    const int channel = i % 8 * 8 + thread % 4 * 2 + (kTileQ == 128 ? 0 : half * 64);
    *reinterpret_cast<uint32_t*>(&rows[row * kPitch + channel]) = cvt_pack<T>(x.x * args.scale, x.y * args.scale);
    *reinterpret_cast<uint32_t*>(&rows[(row + 8) * kPitch + channel]) = cvt_pack<T>(x.z * args.scale, x.w * args.scale);
  }
  __syncthreads();
  constexpr int kChunks = HeadDim / 8;
  for (int i = thread; i < kTileQ * kChunks; i += 128) {
    const int row = i / kChunks, first = i % kChunks * 8, token = tile * kTileQ + row;
    if (token >= args.seqlen_q) break;
    T* const to = args.dq.at(batch, head, token);
    const T* const from = &rows[row * kPitch + first];
    if (first + 8 <= args.dq.channels) {
      *reinterpret_cast<uint4*>(to + first) = *reinterpret_cast<const uint4*>(from);
    } else {
      for (int j = first; j < args.dq.channels; ++j) to[j] = from[j - first];
    }
  }
}

struct PoisonArgs {
  Rows<uint16_t> gradients[3];
  int heads[3], seqlen[3], batch;
  const unsigned long long* status;
};

/// Every gradient becomes NaN where the order of work had too little room, which nobody waits to hear of. Blocks (any, 3).
__global__ void __launch_bounds__(128) attend_sm90_backward_poison_kernel(const __grid_constant__ PoisonArgs args) {
  if (args.status[kPatternsOutgrown] == 0 && args.status[kStepsOutgrown] == 0) return;
  const Rows<uint16_t>& to = args.gradients[blockIdx.y];
  const int heads = args.heads[blockIdx.y], seqlen = args.seqlen[blockIdx.y];
  for (int64_t row = blockIdx.x; row < int64_t{args.batch} * heads * seqlen; row += gridDim.x) {
    const int64_t of_batch = row / seqlen;
    uint16_t* const at = to.at(static_cast<int>(of_batch / heads), static_cast<int>(of_batch % heads), static_cast<int>(row % seqlen));
    for (int channel = static_cast<int>(threadIdx.x); channel < to.channels; channel += 128) at[channel] = 0x7fff;  // of both dtypes
  }
}

struct SinkArgs {
  const float* row_facts;
  const float* sink_logit;
  float* dsink_logit;
  int batch, heads_q, q_tiles, tile_q;
};

/// dsink = -sum of exp(sink - lse) * delta over the queries of all batch entries; a block a head.
template <int kThreads>
__global__ void __launch_bounds__(kThreads) attend_sm90_backward_sink_kernel(const __grid_constant__ SinkArgs args) {
  __shared__ double of_warp[kThreads / 32];
  const int head = blockIdx.x, lane = threadIdx.x % 32;
  const float sink_log2 = args.sink_logit[head] / kLn2;
  const int64_t of_batch = int64_t{args.q_tiles} * args.tile_q;  // queries
  double sum = 0;
  for (int batch = 0; batch < args.batch; ++batch) {
    const float* const facts = args.row_facts + (int64_t{batch} * args.heads_q + head) * of_batch * 2;
    for (int64_t row = threadIdx.x; row < of_batch; row += kThreads) {
      const float shift = facts[row / 2 * 4 + row % 2];
      if (shift != -INFINITY) sum -= static_cast<double>(exp2f(sink_log2 + shift)) * static_cast<double>(facts[row / 2 * 4 + 2 + row % 2]);
    }
  }
  for (int other = 16; other > 0; other /= 2) sum += __shfl_xor_sync(0xFFFFFFFFu, sum, other);
  if (lane == 0) of_warp[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x > 0) return;
  for (int warp = 1; warp < kThreads / 32; ++warp) sum += of_warp[warp];
  args.dsink_logit[head] = static_cast<float>(sum);
}

}  // namespace tilewise::attend::sm90
