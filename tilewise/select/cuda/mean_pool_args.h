// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <algorithm>

#include "tilewise/plan/cuda/lists_space.h"
#include "tilewise/select/cuda/inputs_args.h"
#include "tilewise/select/cuda/mean_pool.h"
#include "tilewise/select/cuda/mean_pool_kernel.h"
#include "tilewise/select/cuda/plan_args.h"

// What mean_pool_scores() on a GPU is launched with: no CUDA in it, so that the CPU's tests launch the same.
namespace tilewise::select::cuda {

inline size_t mean_pool_workspace(const Inputs& inputs, const Scores& scores, void* memory, MeanPoolArgs& args) {
  plan::cuda::MemoryParts parts(memory);
  args.q.means = parts.take<float>(inputs.batch() * inputs.heads_q() * scores.grid.rows() * inputs.head_dim());
  args.k.means = parts.take<float>(inputs.batch() * inputs.heads_kv() * scores.key_tiles() * inputs.head_dim());
  return parts.bytes();
}

inline MeanPoolLaunch mean_pool_launch(const Inputs& inputs, const Scores& scores, void* workspace) {
  MeanPoolLaunch launch;
  MeanPoolArgs& args = launch.args;
  args = {};
  mean_pool_workspace(inputs, scores, workspace, args);
  const auto set = [&](PoolArgs& pool, const TensorView& x, int64_t tiles, int64_t lead) {
    pool.x = x.raw();
    pool.stride_batch = x.stride(0);
    pool.stride_head = x.stride(1);
    pool.stride_token = x.stride(2);
    pool.dtype = dtype_number(x.dtype());
    pool.is_wide = is_wide(x) && x.dim(3) % kChannels == 0;
    pool.heads = x.dim(1);
    pool.seqlen = x.dim(2);
    pool.tiles = tiles;
    pool.dim = static_cast<int>(x.dim(3));
    pool.tile = scores.tile_k;
    pool.lead = lead;
  };
  args.rows = scores.grid.rows();
  args.tiles = scores.key_tiles();
  set(args.q, inputs.q, args.rows, *lead_of(scores.grid));
  set(args.k, inputs.k, args.tiles, 0);
  args.q_blocks = inputs.batch() * inputs.heads_q() * args.rows;
  args.heads = inputs.heads_q();
  args.group = inputs.heads_q() / inputs.heads_kv();
  args.dim = static_cast<int>(inputs.head_dim());
  args.tile = scores.tile_k;
  args.seqlen_q = inputs.seqlen_q();
  args.seqlen_k = inputs.seqlen_k();
  args.scale = inputs.softmax_scale;
  args.softcap = inputs.softcap;
  std::copy(inputs.mask.bands.begin(), inputs.mask.bands.end(), args.bands);
  std::copy(inputs.mask.head_class.begin(), inputs.mask.head_class.end(), args.head_class);
  args.scores = static_cast<float*>(scores.values.view.raw());
  args.stride_batch = scores.values.view.stride(0);
  args.stride_head = scores.values.view.stride(1);
  args.stride_row = scores.values.view.stride(2);
  const auto blocks = [](int64_t tiles) { return (tiles + kBlockTiles - 1) / kBlockTiles; };
  launch.pool_blocks = static_cast<long>(args.q_blocks + inputs.batch() * inputs.heads_kv() * args.tiles);
  launch.product_blocks = static_cast<long>(inputs.batch() * inputs.heads_q() * blocks(args.rows) * blocks(args.tiles));
  launch.rows = static_cast<long>(args.q_blocks);
  return launch;
}

}  // namespace tilewise::select::cuda
