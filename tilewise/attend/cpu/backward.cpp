// SPDX-License-Identifier: Apache-2.0
#include "tilewise/attend/cpu/backward.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "tilewise/attend/check.h"
#include "tilewise/attend/cpu/backward_block.h"
#include "tilewise/attend/cpu/backward_cut.h"
#include "tilewise/attend/cpu/cut.h"
#include "tilewise/attend/cpu/turns.h"
#include "tilewise/attend/schedule.h"
#include "tilewise/machine/cpu/gemm.h"
#include "tilewise/machine/cpu/target.h"
#include "tilewise/plan/rows.h"

namespace tilewise::attend::cpu {
namespace {

using machine::cpu::Target;

#if defined(__x86_64__)
constexpr machine::cpu::PerTarget<BackwardTable> kTables{
    {&portable::backward_table, &avx2::backward_table, &avx512::backward_table, &avx512bf16::backward_table}};
constexpr machine::cpu::PerTarget<ForwardTable> kForwardTables{
    {&portable::forward_table, &avx2::forward_table, &avx512::forward_table, &avx512bf16::forward_table}};
#else
constexpr machine::cpu::PerTarget<BackwardTable> kTables{{&portable::backward_table, nullptr, nullptr, nullptr}};
constexpr machine::cpu::PerTarget<ForwardTable> kForwardTables{{&portable::forward_table, nullptr, nullptr, nullptr}};
#endif

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kLog2E = 1.44269504088896341f;
// Of sums and copies of the heads that run together: small, so that they are used again while they are in the cache and their pages are there; larger only
// where so few heads would not keep all threads busy.
constexpr int64_t kWaveBytes = int64_t{16} << 20, kMostWaveBytes = int64_t{256} << 20;
constexpr int64_t kItems = 32;  // of each thread in a wave
constexpr int64_t kChunk = 256;  // rows of an item before and after the products

const std::byte* row_at(const TensorView& view, int64_t b, int64_t head, int64_t token) {
  return static_cast<const std::byte*>(view.raw()) + view.offset(b, head, token) * static_cast<int64_t>(size_of(view.dtype()));
}

template <class... Index>
float* sums_at(const Tensor& sums, Index... index) {
  return static_cast<float*>(sums.view.raw()) + sums.view.offset(index...);
}

// count rows to contiguous f32.
void widen_rows(const TensorView& view, int64_t b, int64_t head, int64_t first, int64_t count, float* out) {
  const int64_t channels = view.dim(3);
  for (int64_t i = 0; i < count; ++i) {
    const std::byte* const row = row_at(view, b, head, first + i);
    if (view.dtype() == Dtype::f16) {
      for (int64_t d = 0; d < channels; ++d) out[i * channels + d] = static_cast<float>(reinterpret_cast<const f16*>(row)[d]);
    } else {
      machine::cpu::to_float(row, view.dtype(), channels, out + i * channels);
    }
  }
}

// An operand as the kernels read it: the caller's memory, or a copy in the computing dtype for the heads of a wave.
struct Operand {
  const TensorView* source = nullptr;
  Tensor copy;  // [domains, heads of each, S, D], or absent
  Tensor pairs;  // [domains, heads of each, ceil(S / 2), D, 2], or absent
  int heads = 1;  // of q's or k's in each domain

  int64_t stride() const { return copy.view.has_value() ? copy.view.stride(2) : source->stride(2); }
  // Row 0 of a head: the `local`th of `domain` in the wave, head `head` of the caller's.
  const void* rows(int64_t domain, int local, int64_t b, int64_t head) const {
    return copy.view.has_value() ? row_at(copy.view, domain, local, 0) : row_at(*source, b, head, 0);
  }
  const uint16_t* pairs_of(int64_t domain, int local) const {
    return pairs.view.has_value() ? static_cast<const uint16_t*>(pairs.view.raw()) + pairs.view.offset(domain, local) : nullptr;
  }
};

struct Call {
  const AttendBackwardParams& params;
  const Sizes& sizes;
  const ScheduleData& schedule;
  const BackwardTable& table;
  const ForwardTable& forward_table;
  Context& context;
  Dtype dtype;  // that is computed in
  int group;  // heads of q for each of k
  bool has_pairs;  // q and dout are worth pairing
  bool is_direct;  // rows of dk and dv are done with their block of keys: nothing is added to them later
  float scale;

  int64_t b_of(int64_t domain) const { return domain / sizes.heads_kv; }
  int64_t head_of(int64_t domain) const { return domain % sizes.heads_kv; }
  int64_t head_v(int64_t domain) const { return sizes.heads_v == 1 ? 0 : head_of(domain); }
};

// What the heads [first, last) of k, counted over the batch, need while they run. Tensors have room for the largest wave.
struct Wave {
  int64_t first = 0, last = 0;
  Operand q, k, v, dout;
  Tensor shift, delta;  // [domains, group, Sq]
  Tensor dq, dk, dv;  // f32 sums, [domains, group, Sq, sum_stride(D)], [domains, Sk, ...]; dk and dv where sums are kept
  Tensor dv_total;  // [Sk, sum_stride(Dv)] where all heads of k share one of v
  std::vector<double> dsink;  // [B * Hq]

  int64_t domains() const { return last - first; }
};

struct Worker {
  Buffer workspace;
  std::vector<CutRows> cut;
  std::vector<RowSide> sides;
  Turns::Hint hint;
  std::vector<float> rows;
  int64_t pairs_read = 0;
};

bool is_read_in_place(const TensorView& view, Dtype dtype) {
  if (view.dtype() != dtype) return false;
  if (dtype == Dtype::f32) return true;
  bool is_even = reinterpret_cast<uintptr_t>(view.raw()) % 4 == 0;  // bf16 is read 32 bits at a time
  for (int axis = 0; axis < 3; ++axis) is_even = is_even && (view.dim(axis) <= 1 || view.stride(axis) % 2 == 0);
  return is_even;
}

// Memory for waves of `domains` heads of k.
Wave make_wave(const Call& call, int64_t domains) {
  const Sizes& s = call.sizes;
  const AttendBackwardParams& p = call.params;
  const std::shared_ptr<Memory>& memory = call.context.memory;
  Wave wave;
  const auto set = [&](Operand& operand, const TensorView& source, bool is_of_q) {
    operand.source = &source;
    operand.heads = is_of_q ? call.group : 1;
    const int64_t rows = source.dim(2), channels = source.dim(3);
    if (!is_read_in_place(source, call.dtype)) operand.copy = Tensor(memory, call.dtype, {domains, operand.heads, rows, channels});
    if (is_of_q && call.has_pairs) operand.pairs = Tensor(memory, Dtype::bf16, {domains, operand.heads, (rows + 1) / 2, channels, 2});
  };
  set(wave.q, p.forward.q, true);
  set(wave.dout, p.dout, true);
  set(wave.k, p.forward.k, false);
  set(wave.v, p.forward.v, false);
  wave.shift = Tensor(memory, Dtype::f32, {domains, call.group, s.seqlen_q});
  wave.delta = Tensor(memory, Dtype::f32, {domains, call.group, s.seqlen_q});
  wave.dq = Tensor(memory, Dtype::f32, {domains, call.group, s.seqlen_q, sum_stride(s.head_dim)});
  if (!call.is_direct) {
    wave.dk = Tensor(memory, Dtype::f32, {domains, s.seqlen_k, sum_stride(s.head_dim)});
    wave.dv = Tensor(memory, Dtype::f32, {domains, s.seqlen_k, sum_stride(s.head_dim_v)});
  }
  if (s.heads_v != s.heads_kv) wave.dv_total = Tensor(memory, Dtype::f32, {s.seqlen_k, sum_stride(s.head_dim_v)});
  wave.dsink.assign(static_cast<size_t>(s.batch * s.heads_q), 0.0);
  return wave;
}

// Heads of k that run together. The bits do not depend on it.
int64_t domains_of_wave(const Call& call, int64_t domains) {
  const Sizes& s = call.sizes;
  const int64_t rows_q = call.group * s.seqlen_q, channels = s.head_dim + s.head_dim_v, width = static_cast<int64_t>(size_of(call.dtype));
  const auto copies = [&](const TensorView& view, int64_t rows) { return is_read_in_place(view, call.dtype) ? 0 : rows * view.dim(3) * width; };
  int64_t bytes = 4 * rows_q * (sum_stride(s.head_dim) + 2);
  if (!call.is_direct) bytes += 4 * s.seqlen_k * (sum_stride(s.head_dim) + sum_stride(s.head_dim_v));
  if (call.has_pairs) bytes += rows_q * channels * width;
  bytes += copies(call.params.forward.q, rows_q) + copies(call.params.dout, rows_q);
  bytes += copies(call.params.forward.k, s.seqlen_k) + copies(call.params.forward.v, s.seqlen_k);
  const int64_t blocks = std::max<int64_t>(1, static_cast<int64_t>(call.schedule.key_blocks.size()) / std::max<int64_t>(1, domains));
  const int64_t busy = (kItems * call.context.concurrency() + blocks - 1) / blocks;
  const int64_t fit = kWaveBytes / std::max<int64_t>(1, bytes), most = kMostWaveBytes / std::max<int64_t>(1, bytes);
  const int64_t wanted = std::clamp<int64_t>(std::max(fit, std::min(busy, most)), 1, std::max<int64_t>(1, domains));
  const int64_t waves = (domains + wanted - 1) / wanted;
  return waves == 0 ? 1 : (domains + waves - 1) / waves;
}

// Brings one operand into the form that kernels read.
void stage(const Call& call, const Wave& wave, bool is_of_q, const Operand& operand) {
  const TensorView& source = *operand.source;
  const int64_t rows = source.dim(2), channels = source.dim(3), domains = wave.domains(), parts = (rows + kChunk - 1) / kChunk;
  const auto head_of = [&](int64_t domain, int64_t local) {
    if (is_of_q) return call.head_of(domain) * call.group + local;
    return source.dim(1) == 1 ? int64_t{0} : call.head_of(domain);
  };
  if (operand.copy.view.has_value()) {
    call.context.parallel_for(domains * operand.heads * parts, [&](int64_t item, int) {
      const int64_t part = item % parts, local = item / parts % operand.heads, at = item / parts / operand.heads, domain = wave.first + at;
      const int64_t begin = part * kChunk, count = std::min(kChunk, rows - begin);
      auto* const to = const_cast<std::byte*>(row_at(operand.copy.view, at, local, begin));
      if (call.dtype == Dtype::f32) {
        widen_rows(source, call.b_of(domain), head_of(domain, local), begin, count, reinterpret_cast<float*>(to));
        return;
      }
      const int64_t bytes = channels * static_cast<int64_t>(size_of(call.dtype));
      for (int64_t i = 0; i < count; ++i) {
        const std::byte* const from = row_at(source, call.b_of(domain), head_of(domain, local), begin + i);
        std::copy(from, from + bytes, to + i * bytes);
      }
    });
  }
  if (!operand.pairs.view.has_value()) return;
  const int64_t pair_rows = (rows + 1) / 2;
  call.context.parallel_for(domains * operand.heads * parts, [&](int64_t item, int) {
    const int64_t part = item % parts, local = item / parts % operand.heads, at = item / parts / operand.heads, domain = wave.first + at;
    const void* const from = operand.rows(at, static_cast<int>(local), call.b_of(domain), head_of(domain, local));
    call.forward_table.pair_values(static_cast<const uint16_t*>(from), operand.stride(), rows, static_cast<int>(channels), part * kChunk / 2,
                                   std::min(pair_rows, (part + 1) * kChunk / 2),
                                   const_cast<uint16_t*>(operand.pairs_of(at, static_cast<int>(local))));
  });
}

// shift = -lse * log2(e), delta = dout . out - dlse, and each head's part of dsink: dsink[domain, local, part].
void prepare_rows(const Call& call, Wave& wave, std::vector<Worker>& workers) {
  const AttendParams& f = call.params.forward;
  const int64_t rows = call.sizes.seqlen_q, channels = call.sizes.head_dim_v, parts = (rows + kChunk - 1) / kChunk;
  std::vector<double> partial(static_cast<size_t>(wave.domains() * call.group * parts), 0.0);
  call.context.parallel_for(wave.domains() * call.group * parts, [&](int64_t item, int worker) {
    const int64_t part = item % parts, local = item / parts % call.group, at = item / parts / call.group, domain = wave.first + at;
    const int64_t b = call.b_of(domain), head = call.head_of(domain) * call.group + local;
    const int64_t begin = part * kChunk, count = std::min(kChunk, rows - begin);
    float* const shift = sums_at(wave.shift, at, local, begin);
    float* const delta = sums_at(wave.delta, at, local, begin);
    const void *dout = row_at(call.params.dout, b, head, begin), *out = row_at(f.out, b, head, begin);
    if (f.q.dtype() == Dtype::bf16) {
      call.table.delta_bf16(static_cast<const uint16_t*>(dout), call.params.dout.stride(2), static_cast<const uint16_t*>(out), f.out.stride(2), count,
                            static_cast<int>(channels), delta);
    } else if (f.q.dtype() == Dtype::f32) {
      call.table.delta_f32(static_cast<const float*>(dout), call.params.dout.stride(2), static_cast<const float*>(out), f.out.stride(2), count,
                           static_cast<int>(channels), delta);
    } else {
      std::vector<float>& wide = workers[static_cast<size_t>(worker)].rows;
      wide.resize(static_cast<size_t>(2 * count * channels));
      widen_rows(call.params.dout, b, head, begin, count, wide.data());
      widen_rows(f.out, b, head, begin, count, wide.data() + count * channels);
      call.table.delta_f32(wide.data(), channels, wide.data() + count * channels, channels, count, static_cast<int>(channels), delta);
    }
    double sink = 0;
    for (int64_t i = 0; i < count; ++i) {
      const float lse = f.lse.at<float>(b, head, begin + i);
      if (call.params.dlse.has_value()) delta[i] -= call.params.dlse.at<float>(b, head, begin + i);
      const bool is_empty = lse == -kInfinity;  // no key and no sink: the outputs are constants
      shift[i] = is_empty ? -kInfinity : -lse * kLog2E;
      if (is_empty) delta[i] = 0;
      if (f.sink_logit.has_value() && !is_empty) {
        sink -= std::exp(static_cast<double>(f.sink_logit.at<float>(head)) - static_cast<double>(lse)) * static_cast<double>(delta[i]);
      }
    }
    partial[static_cast<size_t>(item)] = sink;
  });
  for (int64_t i = 0; i < wave.domains() * call.group; ++i) {
    double& sum = wave.dsink[static_cast<size_t>(wave.first * call.group + i)];  // heads of q, over the batch
    for (int64_t part = 0; part < parts; ++part) sum += partial[static_cast<size_t>(i * parts + part)];
  }
}

// One item of a phase and how it takes its turns.
struct Turn {
  const Call* call;
  Turns* turns;
  Worker* worker;
  int64_t item, first;  // first: of the items that add to the same sums
  int64_t span;  // positions of a side
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

BackwardBlock block_of(const Call& call, Worker& worker, Turn& turn) {
  BackwardBlock block{};
  block.sides = worker.sides.data();
  block.num_sides = static_cast<int>(worker.sides.size());
  block.head_dim = static_cast<int>(call.sizes.head_dim);
  block.head_dim_v = static_cast<int>(call.sizes.head_dim_v);
  block.scale = call.scale;
  block.softcap = call.params.forward.softcap;
  block.wait = &wait_for_turn;
  block.done = &end_turn;
  block.state = &turn;
  block.workspace = static_cast<std::byte*>(worker.workspace.data());
  return block;
}

const void* offset_rows(const void* rows, int64_t stride, int64_t first, Dtype dtype) {
  return static_cast<const std::byte*>(rows) + first * stride * static_cast<int64_t>(size_of(dtype));
}

// Rows of f32 sums to rows of a gradient, rounded once.
void write_gradient(const Call& call, const float* sums, int64_t rows, int64_t channels, float scale, const TensorView& to, int64_t b, int64_t head,
                    int64_t first) {
  auto* const place = const_cast<std::byte*>(row_at(to, b, head, first));
  const int64_t stride = to.stride(2);
  const int width = static_cast<int>(channels);
  if (to.dtype() == Dtype::f32) {
    call.table.write_f32(sums, rows, width, scale, reinterpret_cast<float*>(place), stride);
  } else if (to.dtype() == Dtype::bf16) {
    call.table.write_bf16(sums, rows, width, scale, reinterpret_cast<uint16_t*>(place), stride);
  } else {
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t d = 0; d < channels; ++d) reinterpret_cast<f16*>(place)[i * stride + d] = f16(sums[i * sum_stride(channels) + d] * scale);
    }
  }
}

// 64 keys of one head of k, and the queries of its group of heads that read them: writes rows of dk and dv, adds to dq.
void run_keys(const Call& call, const Wave& wave, const LaneBlock& keys, Worker& worker, Turn& turn) {
  const PlanData& plan = *call.schedule.by_key;
  const int64_t at = int64_t{keys.b} * call.sizes.heads_kv + keys.head - wave.first;
  worker.cut.resize(static_cast<size_t>(call.group));
  worker.sides.resize(static_cast<size_t>(call.group));
  for (int local = 0; local < call.group; ++local) {
    const int head = keys.head * call.group + local;
    CutRows& cut = worker.cut[static_cast<size_t>(local)];
    worker.pairs_read += cut_queries(plan, head, keys, plan::Axis::of_queries(plan, keys.b, head), plan::Axis::of_keys(plan, keys.b, head), cut);
    worker.sides[static_cast<size_t>(local)] = {.x = wave.q.rows(at, local, keys.b, head),
                                                .y = wave.dout.rows(at, local, keys.b, head),
                                                .x_stride = wave.q.stride(),
                                                .y_stride = wave.dout.stride(),
                                                .x_pairs = wave.q.pairs_of(at, local),
                                                .y_pairs = wave.dout.pairs_of(at, local),
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
  const int64_t head_v = call.head_v(wave.first + at);
  block.lanes.x = offset_rows(wave.k.rows(at, 0, keys.b, keys.head), wave.k.stride(), keys.first, call.dtype);
  block.lanes.y = offset_rows(wave.v.rows(at, 0, keys.b, head_v), wave.v.stride(), keys.first, call.dtype);
  block.lanes.x_stride = wave.k.stride();
  block.lanes.y_stride = wave.v.stride();
  block.lanes.dx_stride = sum_stride(call.sizes.head_dim);
  block.lanes.dy_stride = sum_stride(call.sizes.head_dim_v);
  if (call.is_direct) {
    worker.rows.resize(static_cast<size_t>(kBlockLanes * (block.lanes.dx_stride + block.lanes.dy_stride)));
    block.lanes.dx = worker.rows.data();
    block.lanes.dy = block.lanes.dx + kBlockLanes * block.lanes.dx_stride;
  } else {
    block.lanes.dx = sums_at(wave.dk, at, keys.first);
    block.lanes.dy = sums_at(wave.dv, at, keys.first);
  }
  block.lanes.count = keys.lanes;
  (call.dtype == Dtype::bf16 ? call.table.keys_bf16 : call.table.keys_f32)(block);
  if (!call.is_direct || turn.turns->is_aborted()) return;
  write_gradient(call, block.lanes.dx, keys.lanes, call.sizes.head_dim, call.scale, call.params.dk, keys.b, keys.head, keys.first);
  write_gradient(call, block.lanes.dy, keys.lanes, call.sizes.head_dim_v, 1.0f, call.params.dv, keys.b, keys.head, keys.first);
}

// Up to 64 queries and the picked keys that they read: adds to rows of dq, dk and dv.
void run_picked(const Call& call, const Wave& wave, const LaneBlock& queries, Worker& worker, Turn& turn) {
  const PlanData& plan = *call.schedule.plan;
  const int local = queries.head % call.group, head_k = queries.head / call.group;
  const int64_t at = int64_t{queries.b} * call.sizes.heads_kv + head_k - wave.first, head_v = call.head_v(wave.first + at);
  worker.cut.resize(std::max<size_t>(1, worker.cut.size()));
  CutRows& cut = worker.cut[0];
  worker.pairs_read +=
      cut_picked(plan, queries, plan::Axis::of_queries(plan, queries.b, queries.head), plan::Axis::of_keys(plan, queries.b, queries.head), cut);
  worker.sides.resize(1);
  worker.sides[0] = {.x = wave.k.rows(at, 0, queries.b, head_k),
                     .y = wave.v.rows(at, 0, queries.b, head_v),
                     .x_stride = wave.k.stride(),
                     .y_stride = wave.v.stride(),
                     .x_pairs = nullptr,
                     .y_pairs = nullptr,
                     .shift = nullptr,
                     .delta = nullptr,
                     .dx = sums_at(wave.dk, at),
                     .dy = sums_at(wave.dv, at),
                     .dx_stride = wave.dk.view.stride(1),
                     .dy_stride = wave.dv.view.stride(1),
                     .segments = cut.segments.data(),
                     .num_segments = static_cast<int64_t>(cut.segments.size()),
                     .row_bits = cut.row_bits.data()};
  BackwardBlock block = block_of(call, worker, turn);
  block.lanes.x = offset_rows(wave.q.rows(at, local, queries.b, queries.head), wave.q.stride(), queries.first, call.dtype);
  block.lanes.y = offset_rows(wave.dout.rows(at, local, queries.b, queries.head), wave.dout.stride(), queries.first, call.dtype);
  block.lanes.x_stride = wave.q.stride();
  block.lanes.y_stride = wave.dout.stride();
  block.lanes.dx = sums_at(wave.dq, at, local, queries.first);
  block.lanes.dx_stride = wave.dq.view.stride(2);
  block.lanes.count = queries.lanes;
  block.lanes.is_added = true;
  for (int i = 0; i < queries.lanes; ++i) {
    block.lanes.shift[i] = wave.shift.view.at<float>(at, local, queries.first + i);
    block.lanes.delta[i] = wave.delta.view.at<float>(at, local, queries.first + i);
  }
  (call.dtype == Dtype::bf16 ? call.table.queries_bf16 : call.table.queries_f32)(block);
}

// Runs the blocks of the wave's heads: those of one head take turns at the sums that they share.
template <class Run>
void run_blocks(const Call& call, const Wave& wave, const std::vector<LaneBlock>& blocks, const std::vector<int64_t>& first, int64_t span,
                std::vector<Worker>& workers, const Run& run) {
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
      const auto domain =
          static_cast<size_t>(block.b * call.sizes.heads_kv + (&blocks == &call.schedule.key_blocks ? block.head : block.head / call.group));
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

// Rows of f32 sums, `scale` still to be applied.
struct Part {
  const float* sums;
  float scale;
};

void add_parts(const std::vector<Part>& parts, int64_t floats, std::vector<float>& total) {
  total.assign(static_cast<size_t>(floats), 0.0f);
  for (const Part& part : parts) {
    for (int64_t i = 0; i < floats; ++i) total[static_cast<size_t>(i)] += part.sums[i] * part.scale;
  }
}

// dq, dk and dv of the wave's heads. Gradients of one tensor (q, k and v may be one) are added before they are rounded.
void write_wave(const Call& call, const Wave& wave, std::vector<Worker>& workers) {
  const Sizes& s = call.sizes;
  const AttendBackwardParams& p = call.params;
  const int64_t parts_q = (s.seqlen_q + kChunk - 1) / kChunk, parts_k = (s.seqlen_k + kChunk - 1) / kChunk;
  const bool is_q_k = p.dq.raw() == p.dk.raw(), is_q_v = p.dq.raw() == p.dv.raw(), is_k_v = p.dk.raw() == p.dv.raw();
  const bool is_v_shared = s.heads_v != s.heads_kv;
  call.context.parallel_for(wave.domains() * call.group * parts_q, [&](int64_t item, int worker) {
    const int64_t part = item % parts_q, local = item / parts_q % call.group, at = item / parts_q / call.group, domain = wave.first + at;
    const int64_t first = part * kChunk, rows = std::min(kChunk, s.seqlen_q - first);
    std::vector<Part> all{{sums_at(wave.dq, at, local, first), call.scale}};
    if (is_q_k) all.push_back({sums_at(wave.dk, at, first), call.scale});
    if (is_q_v) all.push_back({sums_at(wave.dv, at, first), 1.0f});
    if (all.size() > 1) {
      std::vector<float>& total = workers[static_cast<size_t>(worker)].rows;
      add_parts(all, rows * sum_stride(s.head_dim), total);
      all = {{total.data(), 1.0f}};
    }
    write_gradient(call, all[0].sums, rows, s.head_dim, all[0].scale, p.dq, call.b_of(domain), call.head_of(domain) * call.group + local, first);
  });
  if (call.is_direct) return;
  call.context.parallel_for(wave.domains() * parts_k, [&](int64_t item, int worker) {
    const int64_t part = item % parts_k, at = item / parts_k, domain = wave.first + at, b = call.b_of(domain), head = call.head_of(domain);
    const int64_t first = part * kChunk, rows = std::min(kChunk, s.seqlen_k - first);
    std::vector<Part> of_k{{sums_at(wave.dk, at, first), call.scale}};
    if (is_k_v) of_k.push_back({sums_at(wave.dv, at, first), 1.0f});
    if (of_k.size() > 1) {
      std::vector<float>& total = workers[static_cast<size_t>(worker)].rows;
      add_parts(of_k, rows * sum_stride(s.head_dim), total);
      of_k = {{total.data(), 1.0f}};
    }
    if (!is_q_k) write_gradient(call, of_k[0].sums, rows, s.head_dim, of_k[0].scale, p.dk, b, head, first);
    if (!is_q_v && !is_k_v && !is_v_shared) write_gradient(call, sums_at(wave.dv, at, first), rows, s.head_dim_v, 1.0f, p.dv, b, head, first);
  });
  if (!is_v_shared) return;
  // One head of v for all: its gradient grows head by head, and is written with the last.
  for (int64_t domain = wave.first; domain < wave.last; ++domain) {
    call.context.parallel_for(parts_k, [&](int64_t part, int) {
      const int64_t first = part * kChunk, rows = std::min(kChunk, s.seqlen_k - first), floats = rows * sum_stride(s.head_dim_v);
      const float* const from = sums_at(wave.dv, domain - wave.first, first);
      float* const total = sums_at(wave.dv_total, first);
      const bool is_first = call.head_of(domain) == 0;
      for (int64_t i = 0; i < floats; ++i) total[i] = is_first ? from[i] : total[i] + from[i];
      if (call.head_of(domain) == s.heads_kv - 1) write_gradient(call, total, rows, s.head_dim_v, 1.0f, p.dv, call.b_of(domain), 0, first);
    });
  }
}

void run_wave(const Call& call, Wave& wave, std::vector<Worker>& workers) {
  stage(call, wave, true, wave.q);
  stage(call, wave, true, wave.dout);
  stage(call, wave, false, wave.k);
  stage(call, wave, false, wave.v);
  prepare_rows(call, wave, workers);
  const int64_t floats = wave.domains() * wave.dq.view.stride(0);
  constexpr int64_t kFloats = 1 << 16;
  call.context.parallel_for((floats + kFloats - 1) / kFloats, [&](int64_t item, int) {
    float* const sums = static_cast<float*>(wave.dq.view.raw());
    std::fill(sums + item * kFloats, sums + std::min(floats, (item + 1) * kFloats), 0.0f);
  });
  run_blocks(call, wave, call.schedule.key_blocks, call.schedule.first_key_block, call.sizes.seqlen_q + 1, workers,
             [&](const LaneBlock& block, Worker& worker, Turn& turn) { run_keys(call, wave, block, worker, turn); });
  run_blocks(call, wave, call.schedule.picked_blocks, call.schedule.first_picked_block, call.sizes.seqlen_k + 1, workers,
             [&](const LaneBlock& block, Worker& worker, Turn& turn) { run_picked(call, wave, block, worker, turn); });
  write_wave(call, wave, workers);
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
  const PlanData& plan = *params.forward.plan;
  if (params.forward.in_slots) return "in_slots is not built";
  if (!plan.pools.empty()) return "pooled keys are not built";
  if (plan.order_q.token.has_value() || plan.order_k.token.has_value()) return "orders are not built";
  return std::nullopt;
}

Ran backward(const AttendBackwardParams& params, Context& context) {
  const Sizes sizes = check_backward(params, context);
  if (const auto reason = refusal(params)) fail(Error::Kind::unsupported, "attend_backward: cpu: ", *reason);
  const Target target = machine::cpu::current_target();
  const BackwardTable& table = kTables[target];
  const AttendParams& f = params.forward;
  const Schedule schedule = f.schedule != nullptr ? f.schedule : attend_prepare(f.plan, sizes.heads_kv, context);
  Call call{.params = params,
            .sizes = sizes,
            .schedule = *schedule,
            .table = table,
            .forward_table = kForwardTables[target],
            .context = context,
            .dtype = f.q.dtype() == Dtype::bf16 && table.keys_bf16 != nullptr ? Dtype::bf16 : Dtype::f32,
            .group = sizes.heads_q / sizes.heads_kv,
            .has_pairs = false,
            .is_direct = schedule->picked_blocks.empty() && sizes.heads_v == sizes.heads_kv && params.dq.raw() != params.dk.raw() &&
                         params.dq.raw() != params.dv.raw() && params.dk.raw() != params.dv.raw(),
            .scale = static_cast<float>(scale_of(f.softmax_scale, sizes.head_dim))};
  int64_t reads = 0;
  for (const LaneBlock& block : schedule->key_blocks) reads += block.work;
  call.has_pairs = call.dtype == Dtype::bf16 && reads >= 3 * sizes.batch * sizes.heads_q * sizes.seqlen_q;

  std::vector<Worker> workers(static_cast<size_t>(context.concurrency()));
  const size_t bytes = table.workspace_bytes(static_cast<int>(sizes.head_dim), static_cast<int>(sizes.head_dim_v));
  for (Worker& worker : workers) worker.workspace = Buffer(context.memory, bytes);
  const int64_t domains = sizes.batch * sizes.heads_kv, per_wave = domains_of_wave(call, domains);
  Wave wave = make_wave(call, per_wave);
  for (; wave.first < domains; wave.first = wave.last) {
    wave.last = std::min(domains, wave.first + per_wave);
    run_wave(call, wave, workers);
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
