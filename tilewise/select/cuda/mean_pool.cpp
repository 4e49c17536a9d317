// SPDX-License-Identifier: Apache-2.0
#include "tilewise/select/cuda/mean_pool.h"

#include <cmath>

#include "tilewise/machine/cuda/check.h"
#include "tilewise/select/cuda/launch.h"
#include "tilewise/select/cuda/mean_pool_args.h"

namespace tilewise::select::cuda {
namespace {

void require_shapes(const char* function, const Inputs& inputs, int tile) {
  check(tile >= 1, Error::Kind::value, function, ": tile is ", tile, ", it takes 1 or more tokens");
  const TensorView &q = inputs.q, &k = inputs.k;
  check(q.rank() == 4 && k.rank() == 4 && q.dim(0) == k.dim(0) && q.dim(3) == k.dim(3) && k.dim(1) > 0 && q.dim(1) % k.dim(1) == 0,
        Error::Kind::shape, function, ": q is ", q.shape(), " and k ", k.shape(),
        ", takes [B, Hq, Sq, D] and [B, Hkv, Sk, D] with Hkv a divisor of Hq");
  if (const auto reason = refusal_of(inputs)) fail(Error::Kind::unsupported, function, ": ", *reason);
}

}  // namespace

std::optional<std::string> mean_pool_refusal(const Inputs& inputs) { return refusal_of(inputs); }

size_t mean_pool_bytes(const Inputs& inputs, int tile) {
  require_shapes("select::cuda::mean_pool_bytes", inputs, tile);
  return static_cast<size_t>(mean_pool_space(inputs, tile, nullptr).values.view.numel()) * sizeof(float);
}

Scores mean_pool_in(const Inputs& inputs, int tile, void* memory) {
  require_shapes("select::cuda::mean_pool_in", inputs, tile);
  return mean_pool_space(inputs, tile, memory);
}

size_t mean_pool_workspace_bytes(const Inputs& inputs, int tile) {
  require_shapes("select::cuda::mean_pool_workspace_bytes", inputs, tile);
  MeanPoolArgs args;
  return mean_pool_workspace(inputs, mean_pool_space(inputs, tile, nullptr), nullptr, args);
}

void mean_pool_into(const Inputs& inputs, const Scores& scores, void* workspace, const Context& context) {
  constexpr const char* kName = "select::cuda::mean_pool_into";
  require_shapes(kName, inputs, scores.tile_k);
  for (const TensorView* view : {&inputs.q, &inputs.k}) {
    const bool is_q = view == &inputs.q;
    check(view->dtype() == Dtype::f32 || view->dtype() == Dtype::bf16 || view->dtype() == Dtype::f16, Error::Kind::dtype, kName, ": ",
          is_q ? "q" : "k", " is ", view->dtype(), ", takes f32, bf16 or f16");
    check(view->numel() == 0 || view->dim(3) == 1 || view->stride(3) == 1, Error::Kind::shape, kName, ": the last axis of ", is_q ? "q" : "k",
          " has stride ", view->stride(3), ", takes 1");
    check(view->device() == context.device && context.device.type == Device::Type::cuda, Error::Kind::device, kName, ": ", is_q ? "q" : "k",
          " is on ", view->device(), ", the context runs on ", context.device, "; it takes one GPU");
  }
  check(std::isfinite(inputs.softmax_scale) && inputs.softmax_scale > 0 && std::isfinite(inputs.softcap) && inputs.softcap >= 0, Error::Kind::value,
        kName, ": softmax_scale is ", inputs.softmax_scale, " and softcap ", inputs.softcap, ", takes a positive and one of 0 or more");
  const Scores fitting = mean_pool_space(inputs, scores.tile_k, nullptr);
  const TensorView& values = scores.values.view;
  check(values.dtype() == Dtype::f32 && values.shape() == fitting.values.view.shape() && values.device() == context.device &&
            scores.grid.edge == fitting.grid.edge && (values.numel() == 0 || values.stride(3) == 1),
        Error::Kind::value, kName, ": scores ", values.shape(), " on ", values.device(),
        " were not made for these inputs; take them from mean_pool_in()");
  const machine::cuda::DeviceScope scope(context.device.index);
  machine::cuda::check_cuda(launch_mean_pool(mean_pool_launch(inputs, scores, workspace), static_cast<cudaStream_t>(context.stream)), kName,
                            ": the launch failed");
}

}  // namespace tilewise::select::cuda
