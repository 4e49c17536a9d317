// SPDX-License-Identifier: Apache-2.0
#include "tilewise/attend/cuda/forward.h"

#include "tilewise/attend/cuda/device.h"
#include "tilewise/attend/cuda/launch.h"
#include "tilewise/attend/cuda/problem.h"
#include "tilewise/attend/cuda/workspace.h"

namespace tilewise::attend::cuda {

using machine::cuda::check_cuda;
using machine::cuda::DeviceScope;

std::optional<std::string> refusal(const AttendParams& params) {
  if (auto reason = refusal_of_place(params.q)) return reason;
  return refusal_of_forward(params);
}

Ran forward(const AttendParams& params, Context& context) {
  const Sizes sizes = check_forward(params, context);
  if (const auto reason = refusal(params)) fail(Error::Kind::unsupported, "attend_forward: cuda: ", *reason);
  context.check_cancel();
  const Ran ran = {.backend = "cuda", .target = target_of(context.device.index), .pairs_read = -1};
  if (sizes.batch == 0 || sizes.seqlen_q == 0) return ran;
  const DeviceScope scope(context.device.index);
  const Buffer workspace = device_buffer("attend_forward", forward_workspace(params, sizes), context);
  const ForwardLaunch launch = forward_launch(params, sizes, workspace.data());
  check_blocks("attend_forward", launch.blocks);
  check_blocks("attend_forward", launch.pool_blocks);
  const Dtype dtype = params.q.dtype();
  const auto start = dtype == Dtype::bf16 ? &launch_forward_bf16 : dtype == Dtype::f16 ? &launch_forward_f16 : &launch_forward_f32;
  check_cuda(start(launch, kernel_head_dim(sizes), static_cast<cudaStream_t>(context.stream)), "attend_forward: cuda: the launch failed");
  return ran;
}

}  // namespace tilewise::attend::cuda
