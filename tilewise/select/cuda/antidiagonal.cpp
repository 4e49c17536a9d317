// SPDX-License-Identifier: Apache-2.0
#include "tilewise/select/cuda/antidiagonal.h"

#include "tilewise/machine/cuda/check.h"
#include "tilewise/select/cuda/antidiagonal_args.h"
#include "tilewise/select/cuda/launch.h"

namespace tilewise::select::cuda {
namespace {

void require(const char* function, const Inputs& inputs, const AntidiagonalParams& params) {
  require_shapes(function, inputs);
  check_antidiagonal(function, inputs, params);
  if (const auto reason = refusal_of(inputs, params)) fail(Error::Kind::unsupported, function, ": ", *reason);
}

}  // namespace

std::optional<std::string> antidiagonal_refusal(const Inputs& inputs, const AntidiagonalParams& params) { return refusal_of(inputs, params); }

size_t antidiagonal_bytes(const Inputs& inputs, const AntidiagonalParams& params) {
  require("select::cuda::antidiagonal_bytes", inputs, params);
  return static_cast<size_t>(score_space(inputs, params.tile, nullptr).values.view.numel()) * sizeof(float);
}

Scores antidiagonal_in(const Inputs& inputs, const AntidiagonalParams& params, void* memory) {
  require("select::cuda::antidiagonal_in", inputs, params);
  return score_space(inputs, params.tile, memory);
}

size_t antidiagonal_workspace_bytes(const Inputs& inputs, const AntidiagonalParams& params) {
  require("select::cuda::antidiagonal_workspace_bytes", inputs, params);
  AntidiagonalLaunch launch;
  return antidiagonal_workspace(inputs, params, score_space(inputs, params.tile, nullptr), nullptr, launch);
}

void antidiagonal_into(const Inputs& inputs, const AntidiagonalParams& params, const Scores& scores, void* workspace, const Context& context,
                       bool takes_largest) {
  constexpr const char* kName = "select::cuda::antidiagonal_into";
  require(kName, inputs, params);
  require_tensors(kName, inputs, context);
  require_scores(kName, inputs, scores);
  check(scores.tile_k == params.tile, Error::Kind::value, kName, ": scores have tiles of ", scores.tile_k, ", params ", params.tile,
        "; take the scores from antidiagonal_in() with the same params");
  const machine::cuda::DeviceScope scope(context.device.index);
  machine::cuda::check_cuda(
      launch_antidiagonal(antidiagonal_launch(inputs, params, scores, workspace, takes_largest), static_cast<cudaStream_t>(context.stream)), kName,
      ": the launch failed");
}

}  // namespace tilewise::select::cuda
