// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <algorithm>
#include <optional>
#include <string>
#include <vector>

#include "tilewise/plan/cuda/lists_space.h"
#include "tilewise/select/cuda/antidiagonal_kernel.h"
#include "tilewise/select/cuda/inputs_args.h"
#include "tilewise/select/cuda/plan_args.h"
#include "tilewise/select/query_order.h"

// What antidiagonal_scores() on a GPU is launched with: no CUDA in it, so that the CPU's tests launch the same.
namespace tilewise::select::cuda {

struct AntidiagonalLaunch {
  AntidiagonalArgs args;
  int dtype = 0;  // 0: f32, 1: bf16, 2: f16
  long blocks = 0;
};

inline std::optional<std::string> refusal_of(const Inputs& inputs, const AntidiagonalParams& params) {
  if (auto reason = refusal_of(inputs)) return reason;
  if (params.stride > 64) return "strides of more than 64 tokens are not built";
  if (params.tile / params.stride / params.kdb > kUnits)
    return "more than 128 scored groups in a tile of queries are not built; take a larger stride";
  return std::nullopt;
}

inline size_t antidiagonal_workspace(const Inputs& inputs, const AntidiagonalParams& params, const Scores& scores, void* memory,
                                     AntidiagonalLaunch& launch) {
  AntidiagonalArgs& args = launch.args;
  const int groups_a_tile = params.tile / params.stride, units_a_row = groups_a_tile / params.kdb;
  args.rows = scores.grid.rows();
  args.rows_an_item = std::max(1, kUnits / units_a_row);
  args.batch_heads = inputs.batch() * inputs.heads_q();
  args.items = args.batch_heads * ((args.rows + args.rows_an_item - 1) / args.rows_an_item);
  args.groups = (inputs.seqlen_k() + params.stride - 1) / params.stride;
  args.part = std::min(kStripGroups, groups_a_tile & -groups_a_tile);
  args.strips = (args.groups + kGroups - 1) / kGroups * kStripsAStep;
  args.columns = args.strips * (kStripGroups / args.part);
  launch.blocks = static_cast<long>(std::min<int64_t>(args.items, kMostScoreBlocks));
  plan::cuda::MemoryParts parts(memory);
  args.sums = parts.take<float>(launch.blocks * kUnits * args.columns);
  args.most = parts.take<float>(launch.blocks * kUnits * args.strips);
  args.mass = parts.take<float>(launch.blocks * kUnits * args.strips);
  return parts.bytes();
}

inline AntidiagonalLaunch antidiagonal_launch(const Inputs& inputs, const AntidiagonalParams& params, const Scores& scores, void* workspace,
                                              bool takes_largest = false) {
  AntidiagonalLaunch launch;
  AntidiagonalArgs& args = launch.args;
  args = {};
  antidiagonal_workspace(inputs, params, scores, workspace, launch);
  launch.dtype = dtype_number(inputs.q.dtype());
  set_tensors(args, inputs);
  args.is_causal = is_causal(inputs.mask, inputs.seqlen_k());
  args.offset = args.is_causal ? scores.grid.offset() : 0;
  args.stride = params.stride;
  args.kdb = params.kdb;
  args.terms = params.selector == Selector::double_inverse ? 2 : params.selector == Selector::triple_inverse ? 3 : 1;
  args.tile = params.tile;
  args.takes_largest = takes_largest;
  const std::vector<int> order = query_order(params);
  std::copy(order.begin(), order.end(), args.place);
  args.scale = inputs.softmax_scale / (static_cast<float>(params.stride) * params.norm);
  args.softcap = inputs.softcap;
  constexpr float kLog2E = 1.44269504f;
  args.scale_log2 = args.softcap > 0 ? kLog2E : args.scale * kLog2E;
  args.tiles = scores.key_tiles();
  args.lead = *lead_of(scores.grid);
  args.scores = static_cast<float*>(scores.values.view.raw());
  args.stride_batch = scores.values.view.stride(0);
  args.stride_head = scores.values.view.stride(1);
  args.stride_row = scores.values.view.stride(2);
  return launch;
}

}  // namespace tilewise::select::cuda
