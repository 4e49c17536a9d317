// SPDX-License-Identifier: Apache-2.0
#include "tilewise/attend/cpu/backward.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "tilewise/attend/check.h"
#include "tilewise/attend/cpu/backward_cut.h"
#include "tilewise/attend/cpu/backward_wave.h"
#include "tilewise/attend/cpu/turns.h"
#include "tilewise/machine/cpu/target.h"
#include "tilewise/plan/rows.h"

namespace tilewise::attend::cpu {
namespace {

using machine::cpu::Target;

#if defined(__x86_64__)
constexpr machine::cpu::PerTarget<BackwardTable> kTables{
    {&portable::backward_table, &avx2::backward_table, &avx512::backward_table, &avx512bf16::backward_table}};
#else
constexpr machine::cpu::PerTarget<BackwardTable> kTables{{&portable::backward_table, nullptr, nullptr, nullptr}};
#endif

constexpr float kLog2E = 1.44269504088896341f;

struct Worker {
  Buffer workspace;
  std::vector<CutRows> cut;
  std::vector<RowSide> sides;
  std::vector<float> sums;
  Turns::Hint hint;
  int64_t pairs_read = 0;
};

// One item of a phase and how it takes its turns.
struct Turn {
  const BackwardCall* call;
  Turns* turns;
  Worker* worker;
  int64_t item, first;  // first: of the items that add to the same sums
  int64_t span;         // positions of a side
};

bool wait_for_turn(void* state, int side, int32_t last) {
  Turn& turn = *static_cast<Turn*>(state);
  return turn.turns->wait(turn.first, turn.item, side * turn.span + last, turn.worker->hint,
                          [&] { return turn.call->context.cancel.stop_requested(); });
}

void end_turn(void* state, int side, int32_t next) {
  const Turn& turn = *static_cast<Turn*>(state);
  turn.turns->pass(turn.item, side * turn.span + next);
}

BackwardBlock block_of(const BackwardCall& call, Worker& worker, Turn& turn) {
  BackwardBlock block{};
  block.sides = worker.sides.data();
  block.num_sides = static_cast<int>(worker.sides.size());
  block.head_dim = static_cast<int>(call.sizes.head_dim);
  block.head_dim_v = static_cast<int>(call.sizes.head_dim_v);
  block.scale = call.scale;
  block.softcap = call.params.forward.softcap;
  block.has_bias = !call.bias.empty();
  block.wait = &wait_for_turn;
  block.done = &end_turn;
  block.state = &turn;
  block.workspace = static_cast<std::byte*>(worker.workspace.data());
  return block;
}

const float* bias_of(const BackwardCall& call, int64_t b, int head) {
  return call.bias.empty() ? nullptr : call.bias[call.keys.index(b, head)].data();
}

// The block's own rows of an operand.
const void* lanes_of(const BackwardCall& call, const Operand& operand, int64_t domain, int64_t at, int64_t local, int64_t first) {
  return operand.rows(call, domain, at, local) + first * operand.stride() * static_cast<int64_t>(size_of(call.dtype));
}

// A block of keys of one domain and the queries of its heads that read them: writes rows of dk and dv, adds to dq.
void run_keys(const BackwardCall& call, const Wave& wave, const LaneBlock& keys, Worker& worker, Turn& turn) {
  const PlanData& plan = *call.schedule.by_key;
  const int64_t domain = int64_t{keys.b} * call.schedule.heads + keys.head, at = domain - wave.first;
  const int32_t first = keys.first, count = keys.lanes;
  worker.cut.resize(std::max(worker.cut.size(), static_cast<size_t>(call.group)));
  worker.sides.resize(static_cast<size_t>(call.group));
  for (int local = 0; local < call.group; ++local) {
    const int head = keys.head * call.group + local;
    CutRows& cut = worker.cut[static_cast<size_t>(local)];
    worker.pairs_read += cut_queries(plan, head, keys, call.queries.of(keys.b, head), call.keys.of(keys.b, head), cut);
    worker.sides[static_cast<size_t>(local)] = {.x = wave.q.rows(call, domain, at, local),
                                                .y = wave.dout.rows(call, domain, at, local),
                                                .x_stride = wave.q.stride(),
                                                .y_stride = wave.dout.stride(),
                                                .shift = sums_at(wave.shift, at, local),
                                                .delta = sums_at(wave.delta, at, local),
                                                .dx = sums_at(wave.dq, at, local),
                                                .dy = nullptr,
                                                .dx_stride = wave.dq.view.stride(2),
                                                .dy_stride = 0,
                                                .segments = cut.segments.data(),
                                                .num_segments = static_cast<int64_t>(cut.segments.size()),
                                                .row_bits = cut.row_bits.data()};
  }
  BackwardBlock block = block_of(call, worker, turn);
  LaneSide& lanes = block.lanes;
  lanes.x = lanes_of(call, wave.k, domain, at, 0, first);
  lanes.y = lanes_of(call, wave.v, domain, at, 0, first);
  lanes.x_stride = wave.k.stride();
  lanes.y_stride = wave.v.stride();
  lanes.dx_stride = sum_stride(call.sizes.head_dim);
  lanes.dy_stride = sum_stride(call.sizes.head_dim_v);
  lanes.count = count;
  if (call.is_direct) {
    worker.sums.resize(static_cast<size_t>(kHeldLanes * (lanes.dx_stride + lanes.dy_stride)));
    lanes.dx = worker.sums.data();
    lanes.dy = lanes.dx + kHeldLanes * lanes.dx_stride;
  } else {
    lanes.dx = sums_at(wave.dk, at, first);
    lanes.dy = sums_at(wave.dv, at, first);
  }
  if (const float* const bias = bias_of(call, keys.b, keys.head * call.group)) std::copy_n(bias + first, count, lanes.shift);
  (call.dtype == Dtype::bf16 ? call.table.keys_bf16 : call.table.keys_f32)(block);
  if (!call.is_direct || turn.turns->is_aborted()) return;
  write_gradient(call, lanes.dx, count, call.sizes.head_dim, call.scale, call.params.dk, keys.b, keys.head, first);
  write_gradient(call, lanes.dy, count, call.sizes.head_dim_v, 1.0f, call.params.dv, keys.b, keys.head, first);
}

// A block of queries and the picked keys that they read: adds to rows of dq, dk and dv.
void run_picked(const BackwardCall& call, const Wave& wave, const LaneBlock& queries, Worker& worker, Turn& turn) {
  const PlanData& plan = *call.schedule.plan;
  const int local = queries.head % call.group;
  const int64_t domain = int64_t{queries.b} * call.schedule.heads + queries.head / call.group, at = domain - wave.first;
  worker.cut.resize(std::max<size_t>(1, worker.cut.size()));
  CutRows& cut = worker.cut[0];
  worker.pairs_read += cut_picked(plan, queries, call.queries.of(queries.b, queries.head), call.keys.of(queries.b, queries.head), cut);
  worker.sides.resize(1);
  worker.sides[0] = {.x = wave.k.rows(call, domain, at, 0),
                     .y = wave.v.rows(call, domain, at, 0),
                     .x_stride = wave.k.stride(),
                     .y_stride = wave.v.stride(),
                     .shift = bias_of(call, queries.b, queries.head),
                     .delta = nullptr,
                     .dx = sums_at(wave.dk, at),
                     .dy = sums_at(wave.dv, at),
                     .dx_stride = wave.dk.view.stride(1),
                     .dy_stride = wave.dv.view.stride(1),
                     .segments = cut.segments.data(),
                     .num_segments = static_cast<int64_t>(cut.segments.size()),
                     .row_bits = cut.row_bits.data()};
  BackwardBlock block = block_of(call, worker, turn);
  LaneSide& lanes = block.lanes;
  lanes.x = lanes_of(call, wave.q, domain, at, local, queries.first);
  lanes.y = lanes_of(call, wave.dout, domain, at, local, queries.first);
  lanes.x_stride = wave.q.stride();
  lanes.y_stride = wave.dout.stride();
  lanes.dx = sums_at(wave.dq, at, local, queries.first);
  lanes.dx_stride = wave.dq.view.stride(2);
  lanes.count = queries.lanes;
  lanes.is_added = true;
  std::copy_n(sums_at(wave.shift, at, local, queries.first), queries.lanes, lanes.shift);
  std::copy_n(sums_at(wave.delta, at, local, queries.first), queries.lanes, lanes.delta);
  (call.dtype == Dtype::bf16 ? call.table.queries_bf16 : call.table.queries_f32)(block);
}

// Runs the wave's part of `blocks`: those of one domain take turns at the sums that they share. `first` of each domain; `per_domain` heads of the blocks.
template <class Run>
void run_blocks(const BackwardCall& call, const Wave& wave, const std::vector<LaneBlock>& blocks, const std::vector<int64_t>& first, int per_domain,
                int64_t span, std::vector<Worker>& workers, const Run& run) {
  const int64_t begin = first[static_cast<size_t>(wave.first)], end = first[static_cast<size_t>(wave.last)];
  if (begin == end) return;
  Turns turns(end - begin);
  for (Worker& worker : workers) worker.hint = {};
  call.context.check_cancel();
  call.context.executor->run(end - begin, [&](int64_t item, int index) {
    Worker& worker = workers[static_cast<size_t>(index)];
    const LaneBlock& block = blocks[static_cast<size_t>(begin + item)];
    // Whatever ends an item early must be known to those that wait for it.
    try {
      call.context.check_cancel();
      const auto domain = static_cast<size_t>(int64_t{block.b} * call.schedule.heads + block.head / per_domain);
      Turn turn{.call = &call, .turns = &turns, .worker = &worker, .item = item, .first = first[domain] - begin, .span = span};
      run(block, worker, turn);
      call.context.check_cancel();
      turns.finish(item);
    } catch (...) {
      turns.abort();
      throw;
    }
  });
}

}  // namespace

std::optional<std::string> refusal(const AttendBackwardParams& params) {
  const Dtype dtype = params.forward.q.dtype();
  if (dtype != Dtype::f32 && dtype != Dtype::bf16 && dtype != Dtype::f16) {
    return "q is " + std::string(name(dtype)) + ", which is not built (has f32, bf16, f16)";
  }
  if (params.forward.q.device().type != Device::Type::cpu) return "q is not on the CPU";
  for (const auto& [name, view] : {std::pair{"q", &params.forward.q}, {"v", &params.forward.v}}) {
    const int64_t channels = view->dim(3);
    if (channels > 256) return std::string(name) + " has " + std::to_string(channels) + " channels, above 256";
    if (channels % 8 != 0) return std::string(name) + " has " + std::to_string(channels) + " channels, not a multiple of 8; pad with zeros";
  }
  return std::nullopt;
}

Ran backward(const AttendBackwardParams& params, Context& context) {
  const Sizes sizes = check_backward(params, context);
  if (const auto reason = refusal(params)) fail(Error::Kind::unsupported, "attend_backward: cpu: ", *reason);
  const Target target = machine::cpu::current_target();
  const BackwardTable& table = kTables[target];
  const AttendParams& f = params.forward;
  const PlanData& plan = *f.plan;
  const Schedule schedule = f.schedule != nullptr ? f.schedule : attend_prepare(f.plan, sizes.heads_kv, context);
  const bool is_one_tensor = params.dq.raw() == params.dk.raw() || params.dq.raw() == params.dv.raw() || params.dk.raw() == params.dv.raw();
  const bool are_slots_tokens = plan.pools.empty() && !plan.order_k.token.has_value();
  BackwardCall call{.params = params,
                    .sizes = sizes,
                    .schedule = *schedule,
                    .table = table,
                    .context = context,
                    .queries = SlotAxes::of_queries(plan),
                    .keys = SlotAxes::of_keys(plan),
                    .slots = {},
                    .bias = {},
                    .dtype = f.q.dtype() == Dtype::bf16 && table.keys_bf16 != nullptr ? Dtype::bf16 : Dtype::f32,
                    .group = sizes.heads_q / schedule->heads,
                    .slots_q = plan::slots_q(plan),
                    .slots_k = plan::slots_k_with_pools(plan),
                    .is_direct = schedule->picked_blocks.empty() && are_slots_tokens && sizes.heads_v == sizes.heads_kv && !is_one_tensor,
                    .scale = static_cast<float>(scale_of(f.softmax_scale, sizes.head_dim))};
  call.slots = key_slots(plan, call.keys, f.k, f.v, f.in_slots, context);
  for (const std::vector<float>& bias : call.slots.bias) {
    call.bias.push_back(bias);
    for (float& x : call.bias.back()) x *= kLog2E;
  }
  std::vector<Worker> workers(static_cast<size_t>(context.concurrency()));
  std::vector<std::vector<float>> scratch(workers.size());
  const size_t bytes = table.workspace_bytes(static_cast<int>(sizes.head_dim), static_cast<int>(sizes.head_dim_v));
  for (Worker& worker : workers) worker.workspace = Buffer(context.memory, bytes);
  const int64_t per_wave = domains_of_wave(call);
  Wave wave = make_wave(call, per_wave);
  for (; wave.first < call.domains(); wave.first = wave.last) {
    wave.last = std::min(call.domains(), wave.first + per_wave);
    start_wave(call, wave, scratch);
    run_blocks(call, wave, schedule->key_blocks, schedule->first_key_block, 1, call.slots_q + 1, workers,
               [&](const LaneBlock& block, Worker& worker, Turn& turn) { run_keys(call, wave, block, worker, turn); });
    run_blocks(call, wave, schedule->picked_blocks, schedule->first_picked_block, call.group, call.slots_k + 1, workers,
               [&](const LaneBlock& block, Worker& worker, Turn& turn) { run_picked(call, wave, block, worker, turn); });
    write_wave(call, wave, scratch);
  }

  if (params.dsink_logit.has_value()) {
    for (int64_t head = 0; head < sizes.heads_q; ++head) {
      double sum = 0;
      for (int64_t b = 0; b < sizes.batch; ++b) sum += wave.dsink[static_cast<size_t>(b * sizes.heads_q + head)];
      params.dsink_logit.at<float>(head) = static_cast<float>(sum);
    }
  }
  int64_t pairs_read = 0;
  for (const Worker& worker : workers) pairs_read += worker.pairs_read;
  return {.backend = "cpu", .target = std::string(machine::cpu::name(target)), .pairs_read = pairs_read};
}

}  // namespace tilewise::attend::cpu
