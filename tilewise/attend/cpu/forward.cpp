// SPDX-License-Identifier: Apache-2.0
#include "tilewise/attend/cpu/forward.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "tilewise/attend/check.h"
#include "tilewise/attend/cpu/block.h"
#include "tilewise/attend/cpu/cut.h"
#include "tilewise/attend/cpu/slots.h"
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
constexpr double kLog2E = 1.4426950408889634;

const void* row_at(const TensorView& view, int64_t b, int64_t head, int64_t token) {
  return static_cast<const std::byte*>(view.raw()) + view.offset(b, head, token) * static_cast<int64_t>(size_of(view.dtype()));
}

// Rows of one block in memory of their own, where their places in q and out are not neighbours.
struct Rows {
  bool are_copied = false;
  std::byte *q = nullptr, *out = nullptr;
};

// Neighbours in the list of blocks that may run together.
struct Item {
  size_t first;
  int count;
};

// An item as the kernels take it.
struct Prepared {
  const QueryBlock* queries = nullptr;
  int count = 0;
  bool is_shared = false;  // its blocks read the same segments
  std::array<BlockCut, kTogether> cuts = {};
  std::array<Rows, kTogether> rows = {};
  std::array<ForwardBlock, kTogether> blocks = {};
  float row_lse[kTogether][kBlockLanes];

  ForwardBlocks head() const { return {blocks.data(), is_shared ? count : 1}; }  // what runs first
};

// What one worker keeps between items: the one it runs and the next, whose memory is asked for meanwhile.
struct Worker {
  Buffer workspace;
  Buffer q, out;  // rows that are copied, of the one that runs
  Prepared prepared[2];
  int64_t pairs_read = 0;
};

struct Call {
  const AttendParams& params;
  const Sizes& sizes;
  const ForwardTable& table;
  const Context& context;
  const Cut& cut;
  const KeySlots& keys;
  const TensorView& pairs;  // of keys.v

  // Where a lane's query stands in q, out and lse; -1: the lane has none.
  int64_t place(const QueryBlock& query, const BlockCut& cut_of, int lane) const {
    const int64_t token = cut_of.token[static_cast<size_t>(lane)];
    return params.in_slots && token >= 0 ? query.first + lane : token;
  }
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
Tensor pair_values(const TensorView& v, const ForwardTable& table, const std::vector<QueryBlock>& blocks, Context& context) {
  if (!v.has_value() || v.dtype() != Dtype::bf16 || table.pair_values == nullptr || v.numel() == 0) return {};
  const int64_t heads = v.dim(1), keys = v.dim(2), channels = v.dim(3);
  int64_t reads = 0;
  for (const QueryBlock& block : blocks) reads += block.keys - block.picked;  // picked keys seldom have their neighbour beside them
  if (reads < 8 * v.dim(0) * heads * keys) return {};
  const int64_t rows = (keys + 1) / 2;
  Tensor pairs(context.memory, Dtype::bf16, {v.dim(0), heads, rows, channels, 2});
  constexpr int64_t kRows = 1024;  // of an item
  const int64_t parts = (rows + kRows - 1) / kRows;
  context.parallel_for(v.dim(0) * heads * parts, [&](int64_t item, int) {
    const int64_t part = item % parts, head = item / parts % heads, b = item / parts / heads;
    table.pair_values(static_cast<const uint16_t*>(row_at(v, b, head, 0)), v.stride(2), keys, static_cast<int>(channels), part * kRows,
                      std::min(rows, (part + 1) * kRows), static_cast<uint16_t*>(pairs.view.raw()) + pairs.view.offset(b, head));
  });
  return pairs;
}

void copy_queries(const Call& call, const QueryBlock& query, const BlockCut& cut, const Rows& rows) {
  const TensorView& q = call.params.q;
  const size_t bytes = static_cast<size_t>(q.dim(3)) * size_of(q.dtype());
  for (int i = 0; i < query.lanes; ++i) {
    std::byte* const row = rows.q + static_cast<size_t>(i) * bytes;
    const int64_t place = call.place(query, cut, i);
    if (place < 0) {
      std::memset(row, 0, bytes);
    } else {
      std::memcpy(row, row_at(q, query.b, query.head, place), bytes);
    }
  }
}

void copy_out(const Call& call, const QueryBlock& query, const BlockCut& cut, const Rows& rows) {
  const TensorView& out = call.params.out;
  if (!out.has_value()) return;
  const size_t bytes = static_cast<size_t>(out.dim(3)) * size_of(out.dtype());
  for (int i = 0; i < query.lanes; ++i) {
    const int64_t place = call.place(query, cut, i);
    if (place >= 0) std::memcpy(const_cast<void*>(row_at(out, query.b, query.head, place)), rows.out + static_cast<size_t>(i) * bytes, bytes);
  }
}

// The block's problem, but for its workspace. `row_lse`: [kBlockLanes].
ForwardBlock prepare_block(const Call& call, const QueryBlock& query, const BlockCut& cut, const Rows& rows, float* row_lse) {
  const AttendParams& params = call.params;
  const Sizes& sizes = call.sizes;
  const TensorView &k = call.keys.k, &v = call.keys.v;
  ForwardBlock forward{};
  Block& block = forward.block;
  block.q = rows.are_copied ? rows.q : row_at(params.q, query.b, query.head, query.first);
  block.q_stride = rows.are_copied ? sizes.head_dim : params.q.stride(2);
  block.k = row_at(k, query.b, KeySlots::head_of(k, query.head, sizes.heads_q), 0);
  block.k_stride = k.stride(2);
  block.head_dim = static_cast<int>(sizes.head_dim);
  block.lanes = query.lanes;
  block.segments = cut.segments.data();
  block.num_segments = static_cast<int64_t>(cut.segments.size());
  block.band = &cut.band;
  block.scale = static_cast<float>(scale_of(params.softmax_scale, sizes.head_dim));
  block.softcap = params.softcap;
  set_stop(call.context, block);
  if (!call.keys.bias.empty()) {
    block.key_bias = call.keys.bias[call.cut.keys().index(query.b, query.head)].data();
    block.first_biased = static_cast<int32_t>(plan::slots_k(*params.plan));
  }
  if (v.has_value()) {
    const int64_t v_head = KeySlots::head_of(v, query.head, sizes.heads_q);
    block.v = row_at(v, query.b, v_head, 0);
    if (call.pairs.has_value()) block.v_pairs = static_cast<const uint16_t*>(call.pairs.raw()) + call.pairs.offset(query.b, v_head);
    block.v_stride = v.stride(2);
    block.head_dim_v = static_cast<int>(sizes.head_dim_v);
    forward.out = rows.are_copied ? rows.out : const_cast<void*>(row_at(params.out, query.b, query.head, query.first));
    forward.out_stride = rows.are_copied ? sizes.head_dim_v : params.out.stride(2);
  }
  // The sink is a logit that is there from the start.
  const float sink = params.sink_logit.has_value() ? params.sink_logit.at<float>(query.head) : -kInfinity;
  const double sink_log2 = static_cast<double>(sink) * kLog2E;
  forward.start_lse = sink;
  forward.start_shift = static_cast<float>(std::round(sink_log2));
  forward.start_sum = sink == -kInfinity ? 0.0f : static_cast<float>(std::exp2(sink_log2 - std::round(sink_log2)));
  forward.row_lse = row_lse;
  return forward;
}

void prepare(const Call& call, const QueryBlock* queries, int count, Worker& worker, Prepared& prepared) {
  prepared.queries = queries;
  prepared.count = count;
  prepared.is_shared = true;
  const bool has_order = !call.cut.queries().is_plain();
  for (int i = 0; i < count; ++i) {
    const auto at = static_cast<size_t>(i);
    BlockCut& cut = prepared.cuts[at];
    Rows& rows = prepared.rows[at];
    worker.pairs_read += call.cut.cut(queries[i], CutFor::forward, cut);
    prepared.is_shared &= cut.segments == prepared.cuts[0].segments;
    // In slots, rows are neighbours unless some are padding, which must stay as they are.
    const bool are_copied = has_order && (!call.params.in_slots || std::popcount(cut.real) < queries[i].lanes);
    rows = {};
    if (are_copied) {
      const size_t first = at * kBlockLanes * size_of(call.params.q.dtype());
      rows = {true, static_cast<std::byte*>(worker.q.data()) + first * static_cast<size_t>(call.sizes.head_dim),
              static_cast<std::byte*>(worker.out.data()) + first * static_cast<size_t>(call.sizes.head_dim_v)};
    }
    prepared.blocks[at] = prepare_block(call, queries[i], cut, rows, prepared.row_lse[i]);
    prepared.blocks[at].workspace = static_cast<std::byte*>(worker.workspace.data());
  }
}

// Runs what is prepared and writes its results. `next`: null, or what the worker runs after it.
void attend_item(const Call& call, const Prepared& prepared, const Prepared* next) {
  const Dtype dtype = call.params.q.dtype();
  const auto run = dtype == Dtype::bf16 ? call.table.forward_bf16 : dtype == Dtype::f16 ? call.table.forward_f16 : call.table.forward_f32;
  for (int i = 0; i < prepared.count; ++i) {
    const auto at = static_cast<size_t>(i);
    if (prepared.rows[at].are_copied) copy_queries(call, prepared.queries[i], prepared.cuts[at], prepared.rows[at]);
  }
  const ForwardBlocks head_of_next = next != nullptr ? next->head() : ForwardBlocks{};
  if (prepared.is_shared) {
    run(prepared.head(), head_of_next);
  } else {
    for (int i = 0; i < prepared.count; ++i) {
      const ForwardBlock* const block = &prepared.blocks[static_cast<size_t>(i)];
      run({block, 1}, i + 1 < prepared.count ? ForwardBlocks{block + 1, 1} : head_of_next);
    }
  }
  call.context.check_cancel();

  const bool has_order = !call.cut.queries().is_plain();
  for (int i = 0; i < prepared.count; ++i) {
    const auto at = static_cast<size_t>(i);
    const QueryBlock& query = prepared.queries[i];
    if (prepared.rows[at].are_copied) copy_out(call, query, prepared.cuts[at], prepared.rows[at]);
    const TensorView& lse = call.params.lse;
    if (!lse.has_value()) continue;
    if (!has_order && lse.stride(2) == 1) {
      std::memcpy(&lse.at<float>(query.b, query.head, query.first), prepared.row_lse[i], static_cast<size_t>(query.lanes) * sizeof(float));
      continue;
    }
    for (int lane = 0; lane < query.lanes; ++lane) {
      const int64_t place = call.place(query, prepared.cuts[at], lane);
      if (place >= 0) lse.at<float>(query.b, query.head, place) = prepared.row_lse[i][lane];
    }
  }
}

// Takes items from `taken` on until none are left, each known while the one before it runs.
void attend_items(const Call& call, const std::vector<QueryBlock>& blocks, const std::vector<Item>& items, std::atomic<size_t>& taken,
                  Worker& worker) {
  const auto take = [&](Prepared& prepared) {
    const size_t item = taken.fetch_add(1, std::memory_order_relaxed);
    if (item >= items.size()) return false;
    prepare(call, &blocks[items[item].first], items[item].count, worker, prepared);
    return true;
  };
  try {
    bool is_there = take(worker.prepared[0]);
    for (int at = 0; is_there; at ^= 1) {
      call.context.check_cancel();
      Prepared& next = worker.prepared[at ^ 1];
      is_there = take(next);
      attend_item(call, worker.prepared[at], is_there ? &next : nullptr);
    }
  } catch (...) {
    taken.store(items.size());
    throw;
  }
}

}  // namespace

std::optional<std::string> refusal(const AttendParams& params) {
  if (auto reason = refusal_of_operand("q", params.q)) return reason;
  if (params.v.has_value()) {
    if (auto reason = refusal_of_operand("v", params.v)) return reason;
  }
  return std::nullopt;
}

Ran forward(const AttendParams& given, Context& context) {
  const Sizes sizes = check_forward(given, context);
  if (const auto reason = refusal(given)) fail(Error::Kind::unsupported, "attend_forward: cpu: ", *reason);
  AttendParams params = given;
  params.plan = with_by_query(given.plan, context);
  const Target target = machine::cpu::current_target();
  const ForwardTable& table = kTables[target];
  const Cut cut(*params.plan, sizes.heads_q);
  const KeySlots keys = key_slots(*params.plan, cut.keys(), params.k, params.v, params.in_slots, context);
  const std::vector<QueryBlock> blocks = cut.blocks(sizes.batch);
  const Tensor pairs = pair_values(keys.v, table, blocks, context);
  std::vector<Worker> workers(static_cast<size_t>(context.concurrency()));
  const size_t bytes = table.workspace_bytes(static_cast<int>(sizes.head_dim), static_cast<int>(sizes.head_dim_v));
  const size_t rows = cut.queries().is_plain() ? 0 : size_t{kTogether * kBlockLanes} * size_of(params.q.dtype());
  for (Worker& worker : workers) {
    worker.workspace = Buffer(context.memory, bytes);
    worker.q = Buffer(context.memory, rows * static_cast<size_t>(sizes.head_dim));
    worker.out = Buffer(context.memory, rows * static_cast<size_t>(sizes.head_dim_v));
  }
  const Call call{params, sizes, table, context, cut, keys, pairs.view};
  const std::vector<Item> items = items_of(blocks, context.concurrency());
  std::atomic<size_t> taken = 0;
  context.parallel_for(std::min<int64_t>(context.concurrency(), static_cast<int64_t>(items.size())),
                       [&](int64_t, int worker) { attend_items(call, blocks, items, taken, workers[static_cast<size_t>(worker)]); });
  int64_t pairs_read = 0;
  for (const Worker& worker : workers) pairs_read += worker.pairs_read;
  return {.backend = "cpu", .target = std::string(machine::cpu::name(target)), .pairs_read = pairs_read};
}

}  // namespace tilewise::attend::cpu
