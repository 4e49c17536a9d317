// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <algorithm>

#include "tilewise/plan/cuda/lists_space.h"
#include "tilewise/select/cuda/inputs_args.h"
#include "tilewise/select/cuda/last_queries_kernel.h"

// What last_query_sums() on a GPU is launched with: no CUDA in it, so that the CPU's tests launch the same.
namespace tilewise::select::cuda {

struct LastQueriesLaunch {
  LastQueriesArgs args;
  int dtype = 0;
  long product_blocks = 0, shift_blocks = 0, total_blocks = 0;
};

/// Room for what stands between the kernels and, at the end, for the sums themselves.
inline void last_queries_workspace(const Inputs& inputs, int64_t count, plan::cuda::MemoryParts& parts, LastQueriesLaunch& launch) {
  LastQueriesArgs& args = launch.args;
  args.queries = static_cast<int>(std::min(count, inputs.seqlen_q()));
  args.row_blocks = (args.queries + kLastRows - 1) / kLastRows;
  args.batch_heads = inputs.batch() * inputs.heads_q();
  args.chunks = (inputs.seqlen_k() + kLastKeys - 1) / kLastKeys;
  const int64_t rows = args.batch_heads * args.row_blocks * kLastRows, strips = args.chunks * kStripsAChunk;
  args.most = parts.take<float>(rows * strips);
  args.mass = parts.take<float>(rows * strips);
  args.shift = parts.take<float>(rows);
  args.key_part = parts.take<float>(args.batch_heads * args.row_blocks * args.chunks * kLastKeys);
  args.offset_part = parts.take<float>(args.batch_heads * args.row_blocks * args.chunks * kDiagonals);
  args.key = parts.take<float>(args.batch_heads * inputs.seqlen_k());
  args.offset = parts.take<float>(args.batch_heads * inputs.seqlen_k());
  launch.product_blocks = static_cast<long>(args.batch_heads * args.row_blocks * args.chunks);
  launch.shift_blocks = static_cast<long>((rows + kSumThreads - 1) / kSumThreads);
  launch.total_blocks = static_cast<long>(args.batch_heads * ((inputs.seqlen_k() + kSumThreads - 1) / kSumThreads));
}

inline LastQueriesLaunch last_queries_launch(const Inputs& inputs, int64_t count, plan::cuda::MemoryParts& parts) {
  LastQueriesLaunch launch;
  LastQueriesArgs& args = launch.args;
  args = {};
  last_queries_workspace(inputs, count, parts, launch);
  launch.dtype = dtype_number(inputs.q.dtype());
  set_tensors(args, inputs);
  args.scale = inputs.softmax_scale;
  args.softcap = inputs.softcap;
  constexpr float kLog2E = 1.44269504f;
  args.scale_log2 = args.softcap > 0 ? kLog2E : args.scale * kLog2E;
  return launch;
}

}  // namespace tilewise::select::cuda
