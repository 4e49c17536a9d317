// SPDX-License-Identifier: Apache-2.0
// attend/cuda behind a C door that takes what the Hopper kernels' takes (bench/attend/sm90/harness.cu), so that one Python process times both.
#include <cstdio>
#include <exception>

#include "tilewise/attend/cuda/forward.h"
#include "tilewise/attend/sm90/forward_args.h"
#include "tilewise/machine/cuda/memory.h"

using namespace tilewise;

namespace {

constexpr Device kDevice{Device::Type::cuda, 0};

TensorView tensor(const machine::sm90::Tensor16& from) {
  return TensorView(const_cast<void*>(from.data), from.is_bf16 ? Dtype::bf16 : Dtype::f16, {from.batch, from.heads, from.seqlen, from.head_dim},
                    {from.stride_batch, from.stride_head, from.stride_token, 1}, kDevice);
}

RunList list(const attend::sm90::RunListView& from, int64_t rows) {
  RunList to;
  if (from.begin == nullptr) return to;
  const Shape shape{1, from.begin_heads, rows}, capacity{int64_t{1} << 30};  // what is behind the last run is not read
  to.begin = TensorView(const_cast<int64_t*>(from.begin), Dtype::i64, shape, kDevice);
  to.count = TensorView(const_cast<int32_t*>(from.count), Dtype::i32, shape, kDevice);
  to.start = TensorView(const_cast<int32_t*>(from.start), Dtype::i32, capacity, kDevice);
  to.stop = TensorView(const_cast<int32_t*>(from.stop), Dtype::i32, capacity, kDevice);
  return to;
}

}  // namespace

/// 0, or 1 with the error printed. Lists have a row for each `input->tile` queries.
extern "C" __attribute__((visibility("default"))) int tilewise_attend_cuda_forward(const attend::sm90::ForwardInput* input, void* stream) {
  try {
    PlanData plan;
    plan.seqlen_q = input->q.seqlen;
    plan.seqlen_k = input->k.seqlen;
    plan.batch = input->q.batch;
    plan.heads_q = input->q.heads;
    plan.mask.bands = {{.left = input->band.left, .right = input->band.right, .sink = input->band.sink}};
    plan.by_query.tile = input->tile;
    const int64_t rows = (plan.seqlen_q + input->tile - 1) / input->tile;
    plan.by_query.whole = list(input->whole, rows);
    plan.by_query.masked = list(input->masked, rows);
    AttendParams params{.q = tensor(input->q), .k = tensor(input->k), .v = tensor(input->v), .out = tensor(input->out)};
    params.plan = Plan(Plan(), &plan);
    params.softmax_scale = input->softmax_scale;
    Context context;
    context.device = kDevice;
    context.stream = stream;
    context.memory = cuda_memory(0, stream);
    attend::cuda::forward(params, context);
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
