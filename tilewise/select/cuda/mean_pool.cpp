// SPDX-License-Identifier: Apache-2.0
#include "tilewise/select/cuda/mean_pool.h"

#include "tilewise/machine/cuda/check.h"
#include "tilewise/select/cuda/launch.h"
#include "tilewise/select/cuda/mean_pool_args.h"

namespace tilewise::select::cuda {
namespace {

void require(const char* function, const Inputs& inputs, int tile) {
  check(tile >= 1, Error::Kind::value, function, ": tile is ", tile, ", it takes 1 or more tokens");
  require_shapes(function, inputs);
}

}  // namespace

std::optional<std::string> mean_pool_refusal(const Inputs& inputs) { return refusal_of(inputs); }

size_t mean_pool_bytes(const Inputs& inputs, int tile) {
  require("select::cuda::mean_pool_bytes", inputs, tile);
  return static_cast<size_t>(score_space(inputs, tile, nullptr).values.view.numel()) * sizeof(float);
}

Scores mean_pool_in(const Inputs& inputs, int tile, void* memory) {
  require("select::cuda::mean_pool_in", inputs, tile);
  return score_space(inputs, tile, memory);
}

size_t mean_pool_workspace_bytes(const Inputs& inputs, int tile) {
  require("select::cuda::mean_pool_workspace_bytes", inputs, tile);
  MeanPoolArgs args;
  return mean_pool_workspace(inputs, score_space(inputs, tile, nullptr), nullptr, args);
}

void mean_pool_into(const Inputs& inputs, const Scores& scores, void* workspace, const Context& context) {
  constexpr const char* kName = "select::cuda::mean_pool_into";
  require(kName, inputs, scores.tile_k);
  require_tensors(kName, inputs, context);
  require_scores(kName, inputs, scores);
  const machine::cuda::DeviceScope scope(context.device.index);
  machine::cuda::check_cuda(launch_mean_pool(mean_pool_launch(inputs, scores, workspace), static_cast<cudaStream_t>(context.stream)), kName,
                            ": the launch failed");
}

}  // namespace tilewise::select::cuda
