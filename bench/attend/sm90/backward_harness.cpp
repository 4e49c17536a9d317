// SPDX-License-Identifier: Apache-2.0
// The backward kernels and the order of their work behind a C door, as harness.cu has the forward.
#include "tilewise/attend/sm90/backward_args.h"
#include "tilewise/attend/sm90/backward_steps.h"

using namespace tilewise;
using namespace tilewise::attend::sm90;

namespace {

/// Runs of [1, groups, rows] rows, all arrays on the device; null begin: none.
struct DeviceList {
  int64_t* begin;
  int32_t *count, *start, *stop;
  int64_t groups, rows, capacity;
};
struct StepsInput {
  int64_t seqlen_q, seqlen_k;
  int heads_q, heads_kv, tile, tile_q, thread_blocks, is_causal;
  int64_t patterns;  // room
  DeviceList whole, masked;
};
/// What BackwardInput takes of the order.
struct StepsMade {
  BackwardItem* items;
  int32_t* first_item;
  uint64_t *steps, *patterns;
  unsigned long long* status;
};

RunList run_list(const DeviceList& list) {
  RunList result;
  if (list.begin == nullptr) return result;
  result.begin = TensorView(list.begin, Dtype::i64, {1, list.groups, list.rows});
  result.count = TensorView(list.count, Dtype::i32, {1, list.groups, list.rows});
  result.start = TensorView(list.start, Dtype::i32, {list.capacity});
  result.stop = TensorView(list.stop, Dtype::i32, {list.capacity});
  return result;
}

}  // namespace

/// Makes the order of work on the stream, and gives the bytes of `memory` that it takes; with a null memory only these.
extern "C" __attribute__((visibility("default"))) int64_t tilewise_sm90_backward_order(const StepsInput* input, void* memory, StepsMade* made,
                                                                                       cudaStream_t stream) {
  PlanData plan;
  plan.seqlen_q = input->seqlen_q;
  plan.seqlen_k = input->seqlen_k;
  plan.heads_q = input->heads_q;
  plan.mask = input->is_causal ? Mask::causal() : Mask::full();
  plan.by_query.tile = input->tile;
  plan.by_query.whole = run_list(input->whole);
  plan.by_query.masked = run_list(input->masked);
  StepsArgs args = steps_args(plan, input->heads_kv, input->tile_q, input->thread_blocks);
  args.room = {.steps = most_steps_room(args).steps, .patterns = input->patterns};
  const auto padded = [](size_t bytes) { return (bytes + 255) / 256 * 256; };
  auto* at = static_cast<unsigned char*>(memory);
  const size_t scratch = padded(place_steps_scratch(args, at));
  const auto part = [at](size_t offset) { return at == nullptr ? nullptr : at + offset; };
  const size_t items = scratch + padded(place_items(args, part(scratch)));
  args.patterns = reinterpret_cast<uint64_t*>(part(items));
  args.steps = reinterpret_cast<uint64_t*>(part(items + padded(pattern_bytes(args))));
  const size_t total = items + padded(pattern_bytes(args)) + padded(step_bytes(args));
  if (memory == nullptr) return static_cast<int64_t>(total);
  *made = {args.items, args.first_item, args.steps, args.patterns, args.status};
  cudaError_t error = launch_dealt_items(args, stream);
  if (error == cudaSuccess) error = launch_walked_steps(args, stream);
  return error == cudaSuccess ? static_cast<int64_t>(total) : -static_cast<int64_t>(error);
}

extern "C" __attribute__((visibility("default"))) int64_t tilewise_sm90_backward_workspace(int64_t batch, int heads_q, int64_t seqlen_q,
                                                                                           int head_dim) {
  return static_cast<int64_t>(backward_workspace(batch, heads_q, seqlen_q, head_dim).total());
}
extern "C" __attribute__((visibility("default"))) int tilewise_attend_sm90_backward(const BackwardInput* input, void* workspace,
                                                                                    cudaStream_t stream) {
  return attend_sm90_backward(*input, workspace, stream);
}
