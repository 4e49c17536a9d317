// SPDX-License-Identifier: Apache-2.0
#include "tilewise/attend/sm90/schedule.h"

#include <algorithm>

#include "tilewise/plan/cuda/launch.h"

namespace tilewise::attend::sm90 {

cudaError_t make_schedule(ForwardInput& input, const GeneralInput* general, int32_t* workspace, cudaStream_t stream) {
  plan::cuda::LongestFirstArgs args{};
  args.lists[0] = input.masked;
  args.lists[1] = input.whole;
  if (general) args.lists[2] = general->picked;
  args.items_per_head = items_per_head(input, general);
  args.items_per_row = items_per_row(input, general);
  args.items = args.items_per_head * input.q.heads * input.q.batch;
  args.heads_q = input.q.heads;
  args.keys = general ? general->slots_k : input.k.seqlen;
  const int64_t kv_bytes = int64_t{2} * std::max(1, input.k.seqlen) * (input.k.head_dim + std::max(input.v.head_dim, 1));
  const int64_t kv_heads = std::clamp<int64_t>((int64_t{1} << 25) / kv_bytes, 1, int64_t{input.k.heads} * input.k.batch);  // 32 MiB of 50
  args.section = static_cast<int>(std::min<int64_t>(kv_heads * (input.q.heads / input.k.heads) * args.items_per_head, args.items));
  args.bucket_keys = std::max(1, (args.keys + plan::cuda::kBuckets - 1) / plan::cuda::kBuckets);
  args.length = workspace;
  args.order = workspace + args.items;
  args.counter = workspace + 2 * static_cast<int64_t>(args.items);
  input.order = args.order;
  input.counter = args.counter;
  return plan::cuda::launch_longest_first(args, stream);
}

}  // namespace tilewise::attend::sm90
