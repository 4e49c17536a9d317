// SPDX-License-Identifier: Apache-2.0
#include "tilewise/attend/sm90/schedule.h"

#include <algorithm>

#include "tilewise/plan/cuda/launch.h"
#include "tilewise/plan/cuda/lists_space.h"

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
  // Runs of pools without a stop may be counted past their pool's end: it is but an order.
  args.keys = general ? general->parts.end[general->parts.count - 1] : input.k.seqlen;
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

namespace {

struct alignas(16) Float4 {
  float value[4];
};

// The parts of `space`; with null it only counts. Returns the bytes.
size_t place_split(const ForwardInput& input, int blocks, void* space, SplitArgs& args, SplitView& view) {
  args.items = items_per_head(input, nullptr) * input.q.heads * input.q.batch;
  args.blocks = blocks;
  const int most = most_parts(args.items, blocks), head_dim = input.q.head_dim;
  plan::cuda::MemoryParts parts(space);
  Float4* const sums = parts.take<Float4>(int64_t{most} * 2 * (head_dim / 8 + 1) * 128);
  args.parts = parts.take<RowPart>(most);
  args.share_begin = parts.take<int32_t>(blocks + 1);
  args.ends = parts.take<int32_t>(2);
  args.arrived = parts.take<int32_t>(int64_t{most} * kSplitWarps);
  view = {.parts = args.parts, .share_begin = args.share_begin, .ends = args.ends, .sums = reinterpret_cast<float*>(sums), .arrived = args.arrived};
  return parts.bytes();
}

int split_blocks(int multiprocessors) { return std::min(multiprocessors, kMostSplitBlocks); }

}  // namespace

bool can_split(const ForwardInput& input, int multiprocessors) {
  if (input.tile != 128 || (input.q.head_dim != 64 && input.q.head_dim != 128)) return false;
  const int rows = tail_rows(items_per_head(input, nullptr) * input.q.heads * input.q.batch, split_blocks(multiprocessors));
  const int top = (input.k.seqlen + kStageKeys - 1) / kStageKeys;
  return rows > 0 && shares_of(rows * top, top, split_blocks(multiprocessors)) > 0;  // were every row as long as can be
}

size_t split_bytes(const ForwardInput& input, int multiprocessors) {
  SplitArgs args{};
  SplitView view;
  return place_split(input, split_blocks(multiprocessors), nullptr, args, view);
}

cudaError_t make_split(ForwardInput& input, const int32_t* workspace, void* space, int multiprocessors, cudaStream_t stream) {
  SplitArgs args{};
  place_split(input, split_blocks(multiprocessors), space, args, input.split);
  args.lists[0] = input.masked;
  args.lists[1] = input.whole;
  args.items_per_head = items_per_head(input, nullptr);
  args.heads_q = input.q.heads;
  args.keys = input.k.seqlen;
  args.length = workspace;
  args.order = input.order;
  return launch_split_rows(args, stream);
}

}  // namespace tilewise::attend::sm90
