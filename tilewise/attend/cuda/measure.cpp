// SPDX-License-Identifier: Apache-2.0
#include "tilewise/attend/cuda/measure.h"

#include "tilewise/attend/cuda/device.h"
#include "tilewise/attend/cuda/launch.h"
#include "tilewise/attend/cuda/measure_problem.h"
#include "tilewise/attend/cuda/workspace.h"

namespace tilewise::attend::cuda {

using machine::cuda::check_cuda;
using machine::cuda::DeviceScope;

std::optional<std::string> refusal(const MeasureParams& params) {
  if (auto reason = refusal_of_place(params.q)) return reason;
  return refusal_of_measure(params);
}

Ran measure(const MeasureParams& params, Context& context) {
  const Sizes sizes = check_measure(params, context);
  if (const auto reason = refusal(params)) fail(Error::Kind::unsupported, "measure: cuda: ", *reason);
  context.check_cancel();
  const DeviceScope scope(context.device.index);
  const Buffer workspace = device_buffer("measure", measure_workspace(params, sizes), context);
  const MeasureWork work = measure_work(params, sizes, workspace.data());
  check_blocks("measure", work.heads * work.blocks_of_head);
  check_blocks("measure", work.pool_blocks);
  const int64_t(&cells)[4] = work.clear.sizes;
  check_blocks("measure", cells[0] * cells[1] * cells[2] * cells[3] / kCellThreads);
  const Dtype dtype = params.q.dtype();
  const auto start = dtype == Dtype::bf16 ? &launch_measure_bf16 : dtype == Dtype::f16 ? &launch_measure_f16 : &launch_measure_f32;
  check_cuda(start(work, static_cast<int>(sizes.head_dim), static_cast<cudaStream_t>(context.stream)), "measure: cuda: the launch failed");
  return {.backend = "cuda", .target = target_of(context.device.index), .pairs_read = -1};
}

}  // namespace tilewise::attend::cuda
