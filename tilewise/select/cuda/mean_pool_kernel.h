// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#include "tilewise/machine/cuda/mma.h"
#include "tilewise/plan/intervals.h"

// mean_pool_scores() on a GPU: means of the tiles of q and k, their products, and the softmax of each row over the tiles that it sees.
namespace tilewise::select::cuda {

/// Means of the tiles of one tensor, in f32.
struct PoolArgs {
  const void* x;  // [batch, heads, seqlen, dim], the last axis contiguous
  int64_t stride_batch, stride_head, stride_token;
  int dtype;      // 0: f32, 1: bf16, 2: f16
  bool is_wide;   // eight channels are one aligned load
  int64_t heads, seqlen, tiles;
  int dim, tile;
  int64_t lead;   // tokens of the first tile; 0: as many as the others
  float* means;   // [batch, heads, tiles, dim]
};

struct MeanPoolArgs {
  PoolArgs q, k;
  int64_t q_blocks, rows, tiles;  // q_blocks: means of q
  int heads, group, dim, tile;
  int64_t seqlen_q, seqlen_k;
  float scale, softcap;
  Mask::Band bands[16];
  uint8_t head_class[256];
  float* scores;                  // [B, Hq, T, Tk]
  int64_t stride_batch, stride_head, stride_row;
};

struct MeanPoolLaunch {
  MeanPoolArgs args;
  long pool_blocks = 0, product_blocks = 0, rows = 0;
};

constexpr int kPoolThreads = 256, kChannels = 8;
constexpr int kProductThreads = 256, kBlockTiles = 64, kDepth = 32, kPadded = kDepth + 1;  // an odd stride: no two tiles in one bank
constexpr int kSoftmaxThreads = 128;
constexpr unsigned long kPoolSharedBytes = kPoolThreads * kChannels * sizeof(float);
constexpr unsigned long kProductSharedBytes = sizeof(plan::BandSight) + (2 * kBlockTiles * kPadded + kBlockTiles * kBlockTiles) * sizeof(float);
constexpr unsigned long kSoftmaxSharedBytes = sizeof(plan::BandSight) + kSoftmaxThreads * sizeof(float);

using machine::cuda::float_of_bf16;
using machine::cuda::float_of_f16;

/// Adds `count` channels of a token, eight at most.
TILEWISE_DEVICE inline void add_channels(const PoolArgs& args, int64_t at, int count, float* sums) {
  if (args.dtype == 0) {
    const float* const x = static_cast<const float*>(args.x) + at;
    float values[kChannels];
    if (args.is_wide) {
      std::memcpy(values, __builtin_assume_aligned(x, 16), sizeof values);
    } else {
      TILEWISE_UNROLL for (int i = 0; i < kChannels; ++i) values[i] = i < count ? x[i] : 0.0f;
    }
    TILEWISE_UNROLL for (int i = 0; i < kChannels; ++i) sums[i] += values[i];
    return;
  }
  const uint16_t* const x = static_cast<const uint16_t*>(args.x) + at;
  uint16_t bits[kChannels];
  if (args.is_wide) {
    std::memcpy(bits, __builtin_assume_aligned(x, 16), sizeof bits);
  } else {
    TILEWISE_UNROLL for (int i = 0; i < kChannels; ++i) bits[i] = i < count ? x[i] : uint16_t{0};
  }
  TILEWISE_UNROLL for (int i = 0; i < kChannels; ++i) sums[i] += args.dtype == 1 ? float_of_bf16(bits[i]) : float_of_f16(bits[i]);
}

/// Block i: the mean of one tile, first those of q, then those of k. Threads share out its tokens and channels; the order of sums is fixed.
template <class Block>
TILEWISE_DEVICE void pool_kernel(Block& block, const MeanPoolArgs& all) {
  const bool is_q = block.index() < all.q_blocks;
  const PoolArgs& args = is_q ? all.q : all.k;
  const int64_t item = is_q ? block.index() : block.index() - all.q_blocks, tile = item % args.tiles, of = item / args.tiles;
  float* const partial = reinterpret_cast<float*>(block.shared());  // [token groups][lanes * 8]
  const int64_t first = args.lead == 0 ? tile * args.tile : tile == 0 ? 0 : args.lead + (tile - 1) * args.tile;
  const int64_t past = args.lead == 0 || tile > 0 ? first + args.tile : args.lead, last = past < args.seqlen ? past : args.seqlen;
  const int64_t base = of / args.heads * args.stride_batch + of % args.heads * args.stride_head;
  // Up to 256 channels at a time.
  for (int channel = 0; channel < args.dim; channel += 32 * kChannels) {
    const int channels = args.dim - channel < 32 * kChannels ? args.dim - channel : 32 * kChannels;
    const int lanes = (channels + kChannels - 1) / kChannels, groups = kPoolThreads / lanes;
    block.each([&](int thread) {
      const int lane = thread % lanes, group = thread / lanes;
      if (group >= groups) return;
      float sums[kChannels] = {};
      const int rest = channels - lane * kChannels;
      for (int64_t token = first + group; token < last; token += groups) {
        add_channels(args, base + token * args.stride_token + channel + lane * kChannels, rest < kChannels ? rest : kChannels, sums);
      }
      TILEWISE_UNROLL for (int i = 0; i < kChannels; ++i) partial[(group * lanes + lane) * kChannels + i] = sums[i];
    });
    block.each([&](int thread) {
      if (thread >= channels) return;
      float sum = 0;
      for (int group = 0; group < groups; ++group) sum += partial[group * lanes * kChannels + thread];
      args.means[item * args.dim + channel + thread] = last > first ? sum / static_cast<float>(last - first) : 0.0f;
    });
  }
}

/// Query tokens of a row, as they count.
struct RowTokens {
  int64_t first, last;
};
TILEWISE_DEVICE inline RowTokens tokens_of(const MeanPoolArgs& args, int64_t row) {
  const int64_t lead = args.q.lead, offset = args.seqlen_k - args.seqlen_q;
  const int64_t first = lead == 0 ? row * args.tile : row == 0 ? 0 : lead + (row - 1) * args.tile;
  const int64_t past = lead == 0 || row > 0 ? first + args.tile : lead;
  return {first + offset, (past < args.seqlen_q ? past : args.seqlen_q) - 1 + offset};
}

/// Block i: the products of 64 rows with 64 tiles, where any of them is seen. Sums over channels ascend.
template <class Block>
TILEWISE_DEVICE void products_kernel(Block& block, const MeanPoolArgs& args) {
  const int64_t across = (args.tiles + kBlockTiles - 1) / kBlockTiles, down = (args.rows + kBlockTiles - 1) / kBlockTiles;
  const int64_t tile = block.index() % across * kBlockTiles, row = block.index() / across % down * kBlockTiles, of = block.index() / across / down;
  const int head = static_cast<int>(of % args.heads);
  const int64_t b = of / args.heads;
  const int rows = static_cast<int>(args.rows - row < kBlockTiles ? args.rows - row : kBlockTiles);
  const int tiles = static_cast<int>(args.tiles - tile < kBlockTiles ? args.tiles - tile : kBlockTiles);
  plan::BandSight& sight = *reinterpret_cast<plan::BandSight*>(block.shared());
  block.each([&](int thread) {
    if (thread != 0) return;
    sight = plan::band_sight(args.bands[args.head_class[head]], tokens_of(args, row).first, tokens_of(args, row + rows - 1).last, args.seqlen_k, 1);
  });
  if (!plan::meets(sight, tile * args.tile, (tile + tiles) * args.tile)) return;
  float* const q = reinterpret_cast<float*>(block.shared() + sizeof(plan::BandSight));  // [64][33]
  float* const k = q + kBlockTiles * kPadded;
  float* const sums = k + kBlockTiles * kPadded;              // [64][64]
  const float* const means_q = args.q.means + (of * args.rows + row) * args.dim;
  const float* const means_k = args.k.means + ((b * args.k.heads + head / args.group) * args.tiles + tile) * args.dim;
  for (int channel = 0; channel < args.dim; channel += kDepth) {
    block.each([&](int thread) {
      for (int i = thread; i < kBlockTiles * kDepth; i += kProductThreads) {
        const int at = i / kDepth, d = i % kDepth;
        const bool is_inside = channel + d < args.dim;
        q[at * kPadded + d] = is_inside && at < rows ? means_q[at * args.dim + channel + d] : 0.0f;
        k[at * kPadded + d] = is_inside && at < tiles ? means_k[at * args.dim + channel + d] : 0.0f;
      }
    });
    block.each([&](int thread) {
      const int x = thread % 16, y = thread / 16;
      float acc[4][4];
      TILEWISE_UNROLL for (int i = 0; i < 4; ++i) {
        TILEWISE_UNROLL for (int j = 0; j < 4; ++j) acc[i][j] = channel == 0 ? 0.0f : sums[(y + 16 * i) * kBlockTiles + x + 16 * j];
      }
      for (int d = 0; d < kDepth; ++d) {
        float a[4], c[4];
        TILEWISE_UNROLL for (int i = 0; i < 4; ++i) {
          a[i] = q[(y + 16 * i) * kPadded + d];
          c[i] = k[(x + 16 * i) * kPadded + d];
        }
        TILEWISE_UNROLL for (int i = 0; i < 4; ++i) { TILEWISE_UNROLL for (int j = 0; j < 4; ++j) acc[i][j] += a[i] * c[j]; }
      }
      TILEWISE_UNROLL for (int i = 0; i < 4; ++i) {
        TILEWISE_UNROLL for (int j = 0; j < 4; ++j) sums[(y + 16 * i) * kBlockTiles + x + 16 * j] = acc[i][j];
      }
    });
  }
  float* const scores = args.scores + b * args.stride_batch + head * args.stride_head + row * args.stride_row + tile;
  block.each([&](int thread) {
    for (int i = thread; i < kBlockTiles * kBlockTiles; i += kProductThreads) {
      const int at = i / kBlockTiles, j = i % kBlockTiles;
      if (at < rows && j < tiles) scores[at * args.stride_row + j] = sums[i];
    }
  });
}

/// Block i: the softmax of one row, in place; 0 for tiles that it does not see.
template <class Block>
TILEWISE_DEVICE void softmax_kernel(Block& block, const MeanPoolArgs& args) {
  float* const partial = reinterpret_cast<float*>(block.shared() + sizeof(plan::BandSight));
  const int64_t row = block.index() % args.rows, of = block.index() / args.rows;
  const int head = static_cast<int>(of % args.heads);
  float* const scores = args.scores + of / args.heads * args.stride_batch + head * args.stride_head + row * args.stride_row;
  const RowTokens tokens = tokens_of(args, row);
  plan::BandSight& sight = *reinterpret_cast<plan::BandSight*>(block.shared());
  block.each([&](int thread) {
    if (thread == 0) sight = plan::band_sight(args.bands[args.head_class[head]], tokens.first, tokens.last, args.seqlen_k, args.tile);
  });
  const auto sees = [&](int64_t tile) { return plan::meets(sight, tile * args.tile, (tile + 1) * args.tile); };
  block.each([&](int thread) {
    float most = -HUGE_VALF;
    for (int64_t tile = thread; tile < args.tiles; tile += kSoftmaxThreads) {
      if (!sees(tile)) continue;
      float logit = scores[tile] * args.scale;
      if (args.softcap > 0) logit = args.softcap * std::tanh(logit / args.softcap);
      scores[tile] = logit;
      most = logit > most || logit != logit ? logit : most;
    }
    partial[thread] = most;
  });
  const float most = machine::cuda::folded(block, partial, [](float a, float b) { return a > b || a != a ? a : b; });
  block.each([&](int thread) {
    float sum = 0;
    for (int64_t tile = thread; tile < args.tiles; tile += kSoftmaxThreads) {
      const float value = sees(tile) ? std::exp(scores[tile] - most) : 0.0f;
      scores[tile] = value;
      sum += value;
    }
    partial[thread] = sum;
  });
  const float sum = machine::cuda::folded(block, partial, [](float a, float b) { return a + b; });
  block.each([&](int thread) {
    for (int64_t tile = thread; tile < args.tiles && sum > 0; tile += kSoftmaxThreads) scores[tile] /= sum;
  });
}

}  // namespace tilewise::select::cuda
