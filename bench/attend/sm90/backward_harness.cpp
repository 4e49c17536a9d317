// SPDX-License-Identifier: Apache-2.0
// The backward kernels and the order of their work behind a C door, as harness.cu has the forward.
#include <memory>

#include "tilewise/attend/sm90/backward_args.h"
#include "tilewise/attend/sm90/backward_steps.h"

using namespace tilewise;
using namespace tilewise::attend::sm90;

namespace {

/// Runs of [1, groups, rows] rows, all arrays on the host; null begin: none.
struct HostList {
  int64_t* begin;
  int32_t *count, *start, *stop;
  int64_t groups, rows, capacity;
};
struct StepsInput {
  int64_t seqlen_q, seqlen_k;
  int heads_q, heads_kv, tile, tile_q, thread_blocks, is_causal;
  HostList whole, masked;
};

RunList run_list(const HostList& list) {
  RunList result;
  if (list.begin == nullptr) return result;
  result.begin = TensorView(list.begin, Dtype::i64, {1, list.groups, list.rows});
  result.count = TensorView(list.count, Dtype::i32, {1, list.groups, list.rows});
  result.start = TensorView(list.start, Dtype::i32, {list.capacity});
  result.stop = TensorView(list.stop, Dtype::i32, {list.capacity});
  return result;
}

}  // namespace

extern "C" __attribute__((visibility("default"))) BackwardSteps* tilewise_sm90_backward_steps(const StepsInput* input) {
  PlanData plan;
  plan.seqlen_q = input->seqlen_q;
  plan.seqlen_k = input->seqlen_k;
  plan.heads_q = input->heads_q;
  plan.mask = input->is_causal ? Mask::causal() : Mask::full();
  plan.by_query.tile = input->tile;
  plan.by_query.whole = run_list(input->whole);
  plan.by_query.masked = run_list(input->masked);
  return std::make_unique<BackwardSteps>(make_backward_steps(plan, input->heads_kv, input->tile_q, input->thread_blocks, Context())).release();
}
/// Array 0 items, 1 first items, 2 steps, 3 patterns; gives its bytes.
extern "C" __attribute__((visibility("default"))) int64_t tilewise_sm90_backward_array(const BackwardSteps* steps, int array, const void** data) {
  const auto give = [data](const auto& values) {
    *data = values.data();
    return static_cast<int64_t>(values.size() * sizeof(values[0]));
  };
  return array == 0 ? give(steps->items) : array == 1 ? give(steps->first_item) : array == 2 ? give(steps->steps) : give(steps->patterns);
}
extern "C" __attribute__((visibility("default"))) void tilewise_sm90_backward_free(BackwardSteps* steps) {
  const std::unique_ptr<BackwardSteps> owner(steps);
}

extern "C" __attribute__((visibility("default"))) int64_t tilewise_sm90_backward_workspace(int64_t batch, int heads_q, int64_t seqlen_q,
                                                                                           int head_dim) {
  return static_cast<int64_t>(backward_workspace(batch, heads_q, seqlen_q, head_dim).total());
}
extern "C" __attribute__((visibility("default"))) int tilewise_attend_sm90_backward(const BackwardInput* input, void* workspace,
                                                                                    cudaStream_t stream) {
  return attend_sm90_backward(*input, workspace, stream);
}
