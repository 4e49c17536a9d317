// SPDX-License-Identifier: Apache-2.0
#include "tilewise/attend/cpu/forward.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <vector>

#include "tilewise/attend/check.h"
#include "tilewise/attend/cpu/block.h"
#include "tilewise/attend/cpu/cut.h"
#include "tilewise/machine/cpu/target.h"
#include "tilewise/plan/rows.h"

namespace tilewise::attend::cpu {
namespace {

using machine::cpu::Target;

#if defined(__x86_64__)
constexpr machine::cpu::PerTarget<ForwardTable> kTables{
    {&portable::forward_table, &avx2::forward_table, &avx512::forward_table, &avx512bf16::forward_table}};
#else
constexpr machine::cpu::PerTarget<ForwardTable> kTables{{&portable::forward_table, nullptr, nullptr, nullptr}};
#endif

constexpr float kInfinity = std::numeric_limits<float>::infinity();

const void* row_at(const TensorView& view, int64_t b, int64_t head, int64_t token) {
  return static_cast<const std::byte*>(view.raw()) + view.offset(b, head, token) * static_cast<int64_t>(size_of(view.dtype()));
}

// What one worker keeps between items.
struct Worker {
  Buffer workspace;
  std::array<std::vector<Segment>, kTogether> segments;
  std::array<LaneBand, kTogether> band;
  int64_t pairs_read = 0;
};

struct Call {
  const AttendParams& params;
  const Sizes& sizes;
  const ForwardTable& table;
  const TensorView& pairs;
};

// Neighbours in the list of blocks that may run together.
struct Item {
  size_t first;
  int count;
};

// Full blocks of one row run together, where there are items enough to keep all threads busy to the end.
std::vector<Item> items_of(const std::vector<QueryBlock>& blocks, int concurrency) {
  constexpr size_t kItems = 32;  // of each thread
  const bool is_many = blocks.size() / kTogether >= kItems * static_cast<size_t>(concurrency);
  std::vector<Item> items;
  items.reserve(blocks.size());
  for (size_t i = 0; i < blocks.size();) {
    const QueryBlock& block = blocks[i];
    int count = 1;
    while (is_many && count < kTogether && i + static_cast<size_t>(count) < blocks.size()) {
      const QueryBlock& next = blocks[i + static_cast<size_t>(count)];
      if (next.b != block.b || next.head != block.head || next.row != block.row || next.lanes != block.lanes) break;
      ++count;
    }
    items.push_back({i, count});
    i += static_cast<size_t>(count);
  }
  return items;
}

// Values of all heads as the dot instruction reads them, made once where blocks read them more often than that costs; else absent.
Tensor pair_values(const AttendParams& params, const Sizes& sizes, const ForwardTable& table, const std::vector<QueryBlock>& blocks,
                   Context& context) {
  if (params.q.dtype() != Dtype::bf16 || table.pair_values == nullptr || sizes.head_dim_v == 0 || sizes.seqlen_k == 0) return {};
  int64_t reads = 0;
  for (const QueryBlock& block : blocks) reads += block.keys - block.picked;  // picked keys seldom have their neighbour beside them
  if (reads < 3 * sizes.batch * sizes.heads_v * sizes.seqlen_k) return {};
  const int64_t rows = (sizes.seqlen_k + 1) / 2;
  Tensor pairs(context.memory, Dtype::bf16, {sizes.batch, sizes.heads_v, rows, sizes.head_dim_v, 2});
  constexpr int64_t kRows = 1024;  // of an item
  const int64_t parts = (rows + kRows - 1) / kRows;
  context.parallel_for(sizes.batch * sizes.heads_v * parts, [&](int64_t item, int) {
    const int64_t part = item % parts, head = item / parts % sizes.heads_v, b = item / parts / sizes.heads_v;
    table.pair_values(static_cast<const uint16_t*>(row_at(params.v, b, head, 0)), params.v.stride(2), sizes.seqlen_k,
                      static_cast<int>(sizes.head_dim_v), part * kRows, std::min(rows, (part + 1) * kRows),
                      static_cast<uint16_t*>(pairs.view.raw()) + pairs.view.offset(b, head));
  });
  return pairs;
}

// The block's problem, but for its workspace. `row_max` and `row_sum`: [kBlockLanes].
ForwardBlock prepare_block(const Call& call, const QueryBlock& query, LaneBand& band, std::vector<Segment>& segments, float* row_max,
                           float* row_sum) {
  const AttendParams& params = call.params;
  const Sizes& sizes = call.sizes;
  const int64_t kv_head = static_cast<int64_t>(query.head) * sizes.heads_kv / sizes.heads_q;
  ForwardBlock forward{};
  Block& block = forward.block;
  block.q = row_at(params.q, query.b, query.head, query.first);
  block.k = row_at(params.k, query.b, kv_head, 0);
  block.q_stride = params.q.stride(2);
  block.k_stride = params.k.stride(2);
  block.head_dim = static_cast<int>(sizes.head_dim);
  block.lanes = query.lanes;
  block.segments = segments.data();
  block.num_segments = static_cast<int64_t>(segments.size());
  block.band = &band;
  block.scale = static_cast<float>(scale_of(params.softmax_scale, sizes.head_dim));
  block.softcap = params.softcap;
  if (params.v.has_value()) {
    const int64_t v_head = sizes.heads_v == 1 ? 0 : kv_head;
    block.v = row_at(params.v, query.b, v_head, 0);
    if (call.pairs.has_value()) block.v_pairs = static_cast<const uint16_t*>(call.pairs.raw()) + call.pairs.offset(query.b, v_head);
    block.v_stride = params.v.stride(2);
    block.head_dim_v = static_cast<int>(sizes.head_dim_v);
    forward.out = const_cast<void*>(row_at(params.out, query.b, query.head, query.first));
    forward.out_stride = params.out.stride(2);
  }
  // The sink is a logit that is there from the start, in the units that the kernel takes its maximum in.
  const float sink = params.sink_logit.has_value() ? params.sink_logit.at<float>(query.head) : -kInfinity;
  forward.start_max = params.softcap != 0 ? sink : sink / block.scale;
  forward.start_sum = sink == -kInfinity ? 0.0f : 1.0f;
  forward.row_max = row_max;
  forward.row_sum = row_sum;
  return forward;
}

// Asks for a block's queries while its keys are cut.
void prefetch_queries(const TensorView& q, const QueryBlock& query) {
  const auto bytes = q.dim(3) * static_cast<int64_t>(size_of(q.dtype()));
  for (int i = 0; i < query.lanes; ++i) {
    const auto* const row = static_cast<const std::byte*>(row_at(q, query.b, query.head, query.first + i));
    for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(row + at);
  }
}

void attend_item(const Call& call, const QueryBlock* queries, int count, Worker& worker) {
  const PlanData& plan = *call.params.plan;
  float row_max[kTogether][kBlockLanes], row_sum[kTogether][kBlockLanes];
  std::array<ForwardBlock, kTogether> forwards;
  bool is_shared = true;
  for (int i = 0; i < count; ++i) prefetch_queries(call.params.q, queries[i]);
  for (int i = 0; i < count; ++i) {
    const auto at = static_cast<size_t>(i);
    set_band(plan, queries[i], worker.band[at]);
    worker.pairs_read += cut_segments(plan, call.sizes.heads_q, queries[i], worker.band[at], false, worker.segments[at]);
    is_shared &= worker.segments[at] == worker.segments[0];
    forwards[at] = prepare_block(call, queries[i], worker.band[at], worker.segments[at], row_max[i], row_sum[i]);
    forwards[at].workspace = static_cast<std::byte*>(worker.workspace.data());
  }
  const auto run = call.params.q.dtype() == Dtype::bf16 ? call.table.forward_bf16 : call.table.forward_f32;
  if (is_shared) {
    run(forwards.data(), count);
  } else {
    for (int i = 0; i < count; ++i) run(&forwards[static_cast<size_t>(i)], 1);
  }

  if (!call.params.lse.has_value()) return;
  for (int block = 0; block < count; ++block) {
    const QueryBlock& query = queries[block];
    for (int i = 0; i < query.lanes; ++i) {
      const float sum = row_sum[block][i];
      call.params.lse.at<float>(query.b, query.head, query.first + i) = sum == 0 ? -kInfinity : row_max[block][i] + std::log(sum);
    }
  }
}

}  // namespace

std::optional<std::string> refusal(const AttendParams& params) {
  if (auto reason = refusal_of_operand("q", params.q)) return reason;
  if (params.v.has_value()) {
    if (auto reason = refusal_of_operand("v", params.v)) return reason;
  }
  return refusal_of_plan(params.plan);
}

Ran forward(const AttendParams& params, Context& context) {
  const Sizes sizes = check_forward(params, context);
  if (const auto reason = refusal(params)) fail(Error::Kind::unsupported, "attend_forward: cpu: ", *reason);
  const Target target = machine::cpu::current_target();
  const ForwardTable& table = kTables[target];
  const std::vector<QueryBlock> blocks = cut_blocks(*params.plan, sizes.batch, sizes.heads_q);
  const Tensor pairs = pair_values(params, sizes, table, blocks, context);
  std::vector<Worker> workers(static_cast<size_t>(context.concurrency()));
  const size_t bytes = table.workspace_bytes(static_cast<int>(sizes.head_dim), static_cast<int>(sizes.head_dim_v));
  for (Worker& worker : workers) worker.workspace = Buffer(context.memory, bytes);
  const Call call{params, sizes, table, pairs.view};
  const std::vector<Item> items = items_of(blocks, context.concurrency());
  context.parallel_for(static_cast<int64_t>(items.size()), [&](int64_t item, int worker) {
    const Item& here = items[static_cast<size_t>(item)];
    attend_item(call, &blocks[here.first], here.count, workers[static_cast<size_t>(worker)]);
  });
  int64_t pairs_read = 0;
  for (const Worker& worker : workers) pairs_read += worker.pairs_read;
  return {.backend = "cpu", .target = std::string(machine::cpu::name(target)), .pairs_read = pairs_read};
}

}  // namespace tilewise::attend::cpu
