// SPDX-License-Identifier: Apache-2.0
#include "tilewise/attend/sm90/schedule.h"

#include <algorithm>

namespace tilewise::attend::sm90 {
namespace {

constexpr int kBuckets = 256, kThreads = 1024, kWarps = kThreads / 32;

struct Args {
  RunListView lists[3];
  int items, items_per_head, items_per_row, heads_q, keys;
  int section;  // items of a section
  int bucket_keys;
  int32_t *length, *order, *counter;
};

// A warp an item: how many keys its row reads.
__global__ void __launch_bounds__(256) lengths_kernel(const __grid_constant__ Args args) {
  const int item = static_cast<int>((blockIdx.x * blockDim.x + threadIdx.x) / 32), lane = threadIdx.x % 32;
  if (blockIdx.x == 0 && threadIdx.x < 2) args.counter[threadIdx.x] = 0;
  if (item >= args.items) return;
  const int of_batch = item / args.items_per_head, num_rows = args.items_per_head / args.items_per_row;
  const int row = item % args.items_per_head / args.items_per_row, batch = of_batch / args.heads_q, head = of_batch % args.heads_q;
  int keys = 0;
  for (const RunListView& list : args.lists) {
    if (!list.begin) continue;
    const auto at = [&](int b, int heads) { return (int64_t{b == 1 ? 0 : batch} * heads + head / (args.heads_q / heads)) * num_rows + row; };
    const int64_t begin = list.begin[at(list.begin_batch, list.begin_heads)];
    const int count = list.count[at(list.count_batch, list.count_heads)];
    for (int i = lane; i < count; i += 32) {
      const int start = list.start[begin + i];
      keys += (list.stop ? list.stop[begin + i] : min(start + list.grain, args.keys)) - start;
    }
  }
  for (int other = 16; other > 0; other /= 2) keys += __shfl_xor_sync(0xFFFFFFFFu, keys, other);
  if (lane == 0) args.length[item] = keys;
}

// A block a section: counting sort, longest first. Each warp has a stretch of the items, so that rows of one length keep their order: neighbours
// read the same keys.
__global__ void __launch_bounds__(kThreads) sort_kernel(const __grid_constant__ Args args) {
  __shared__ int place[kBuckets * kWarps];  // [bucket][warp]
  __shared__ int of_warp[kWarps];
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  const int first = blockIdx.x * args.section, items = min(args.section, args.items - first);
  const int stretch = (items + kWarps * 32 - 1) / (kWarps * 32) * 32, from = min(warp * stretch, items), to = min(from + stretch, items);
  for (int i = thread; i < kBuckets * kWarps; i += kThreads) place[i] = 0;
  __syncthreads();
  // Moves the warp's part of each bucket on by its items, and with `order` puts each item in its place.
  const auto walk = [&](int32_t* order) {
    for (int i = from + lane; i - lane < to; i += 32) {
      const int bucket = i < to ? kBuckets - 1 - min(args.length[first + i] / args.bucket_keys, kBuckets - 1) : -1;
      const uint32_t alike = __match_any_sync(0xFFFFFFFFu, bucket);
      const int rank = __popc(alike & ((1u << lane) - 1));
      int* const at = &place[max(bucket, 0) * kWarps + warp];
      const int start = *at;
      __syncwarp();
      if (bucket >= 0) {
        if (order) order[start + rank] = first + i;
        if (rank == 0) *at = start + __popc(alike);
      }
      __syncwarp();
    }
  };
  walk(nullptr);
  __syncthreads();
  constexpr int kMine = kBuckets * kWarps / kThreads;
  int* const mine = &place[thread * kMine];
  int sum = 0;
  for (int i = 0; i < kMine; ++i) sum += mine[i];
  int up_to = sum;
  for (int step = 1; step < 32; step *= 2) {
    const int below = __shfl_up_sync(0xFFFFFFFFu, up_to, step);
    if (lane >= step) up_to += below;
  }
  if (lane == 31) of_warp[warp] = up_to;
  __syncthreads();
  int before = first + up_to - sum;
  for (int other = 0; other < warp; ++other) before += of_warp[other];
  for (int i = 0; i < kMine; ++i) {
    const int here = mine[i];
    mine[i] = before;
    before += here;
  }
  __syncthreads();
  walk(args.order);
}

}  // namespace

cudaError_t make_schedule(ForwardInput& input, const GeneralInput* general, int32_t* workspace, cudaStream_t stream) {
  Args args{};
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
  args.bucket_keys = std::max(1, (args.keys + kBuckets - 1) / kBuckets);
  args.length = workspace;
  args.order = workspace + args.items;
  args.counter = workspace + 2 * static_cast<int64_t>(args.items);
  void* parameters[] = {&args};
  cudaError_t error = cudaLaunchKernel(reinterpret_cast<const void*>(lengths_kernel), dim3((args.items + 7) / 8), dim3(256), parameters, 0, stream);
  if (error != cudaSuccess) return error;
  error = cudaLaunchKernel(reinterpret_cast<const void*>(sort_kernel), dim3((args.items + args.section - 1) / args.section), dim3(kThreads),
                           parameters, 0, stream);
  input.order = args.order;
  input.counter = args.counter;
  return error;
}

}  // namespace tilewise::attend::sm90
