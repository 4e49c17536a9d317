// SPDX-License-Identifier: Apache-2.0
#include "tilewise/attend/cpu/backward_wave.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "tilewise/machine/cpu/gemm.h"
#include "tilewise/plan/rows.h"

namespace tilewise::attend::cpu {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kLog2E = 1.44269504088896341f;
// Of sums and copies of a wave: small, so that they are used again while they are in the cache and their pages are there; larger only where so few heads
// would not keep all threads busy.
constexpr int64_t kWaveBytes = int64_t{8} << 20, kMostWaveBytes = int64_t{256} << 20;
constexpr int64_t kItems = 32;  // of each thread in a wave
constexpr int64_t kChunk = 256;  // rows of an item before and after the products

int64_t chunks(int64_t rows) { return (rows + kChunk - 1) / kChunk; }

const std::byte* row_at(const TensorView& view, int64_t b, int64_t head, int64_t row) {
  return static_cast<const std::byte*>(view.raw()) + view.offset(b, head, row) * static_cast<int64_t>(size_of(view.dtype()));
}

bool is_read_in_place(const TensorView& view, Dtype dtype) {
  if (view.dtype() != dtype) return false;
  if (dtype == Dtype::f32) return true;
  bool is_even = reinterpret_cast<uintptr_t>(view.raw()) % 4 == 0;  // bf16 is read 32 bits at a time
  for (int axis = 0; axis < 3; ++axis) is_even = is_even && (view.dim(axis) <= 1 || view.stride(axis) % 2 == 0);
  return is_even;
}

bool is_copied(const BackwardCall& call, const TensorView& source, bool is_of_q) {
  return !is_read_in_place(source, call.dtype) || (is_of_q && call.is_q_gathered());
}

// One row in the computing dtype; a null row is zeros.
void copy_row(const std::byte* from, Dtype dtype, int64_t channels, Dtype to_dtype, std::byte* to) {
  if (from == nullptr) {
    std::memset(to, 0, static_cast<size_t>(channels) * size_of(to_dtype));
  } else if (dtype == to_dtype) {
    std::memcpy(to, from, static_cast<size_t>(channels) * size_of(dtype));
  } else if (dtype == Dtype::f16) {
    for (int64_t d = 0; d < channels; ++d) reinterpret_cast<float*>(to)[d] = static_cast<float>(reinterpret_cast<const f16*>(from)[d]);
  } else {
    machine::cpu::to_float(from, dtype, channels, reinterpret_cast<float*>(to));
  }
}

// Head of the operand's tensor for the `local`th head of a domain.
int64_t head_of(const BackwardCall& call, const Operand& operand, int64_t domain, int64_t local) {
  if (operand.is_of_q) return call.head_of(domain) * call.group + local;
  return call.head_of(domain) * operand.source.dim(1) / call.schedule.heads;
}

// Fills an operand's copy, where it has one.
void stage(const BackwardCall& call, const Wave& wave, const Operand& operand) {
  if (!operand.copy.view.has_value()) return;
  const TensorView& source = operand.source;
  const int64_t rows = operand.is_of_q ? call.slots_q : call.slots_k, channels = source.dim(3), parts = chunks(rows);
  call.context.parallel_for(wave.domains() * operand.heads * parts, [&](int64_t item, int) {
    const int64_t part = item % parts, local = item / parts % operand.heads, at = item / parts / operand.heads, domain = wave.first + at;
    const int64_t b = call.b_of(domain), head = head_of(call, operand, domain, local);
    for (int64_t slot = part * kChunk; slot < std::min(rows, (part + 1) * kChunk); ++slot) {
      const int64_t place = operand.is_of_q ? call.place_q(b, head, slot) : slot;
      copy_row(place < 0 ? nullptr : row_at(source, b, head, place), source.dtype(), channels, call.dtype,
               const_cast<std::byte*>(row_at(operand.copy.view, at, local, slot)));
    }
  });
}

// delta of `count` rows that lie one after another.
void set_delta(const BackwardCall& call, int64_t b, int64_t head, int64_t first, int64_t count, std::vector<float>& scratch, float* delta) {
  const TensorView &dout = call.params.dout, &out = call.params.forward.out;
  const int64_t channels = dout.dim(3);
  const std::byte *from = row_at(dout, b, head, first), *with = row_at(out, b, head, first);
  if (dout.dtype() == Dtype::bf16) {
    call.table.delta_bf16(reinterpret_cast<const uint16_t*>(from), dout.stride(2), reinterpret_cast<const uint16_t*>(with), out.stride(2), count,
                          static_cast<int>(channels), delta);
    return;
  }
  if (dout.dtype() == Dtype::f32) {
    call.table.delta_f32(reinterpret_cast<const float*>(from), dout.stride(2), reinterpret_cast<const float*>(with), out.stride(2), count,
                         static_cast<int>(channels), delta);
    return;
  }
  scratch.resize(static_cast<size_t>(2 * channels));
  for (int64_t i = 0; i < count; ++i) {
    copy_row(row_at(dout, b, head, first + i), dout.dtype(), channels, Dtype::f32, reinterpret_cast<std::byte*>(scratch.data()));
    copy_row(row_at(out, b, head, first + i), out.dtype(), channels, Dtype::f32, reinterpret_cast<std::byte*>(scratch.data() + channels));
    call.table.delta_f32(scratch.data(), channels, scratch.data() + channels, channels, 1, static_cast<int>(channels), delta + i);
  }
}

// shift and delta of all slots, and what each head adds to dsink.
void prepare_rows(const BackwardCall& call, Wave& wave, std::vector<std::vector<float>>& scratch) {
  const AttendParams& f = call.params.forward;
  const int64_t parts = chunks(call.slots_q);
  std::vector<double> partial(static_cast<size_t>(wave.domains() * call.group * parts), 0.0);
  call.context.parallel_for(wave.domains() * call.group * parts, [&](int64_t item, int worker) {
    const int64_t part = item % parts, local = item / parts % call.group, at = item / parts / call.group, domain = wave.first + at;
    const int64_t b = call.b_of(domain), head = call.head_of(domain) * call.group + local;
    const int64_t begin = part * kChunk, count = std::min(kChunk, call.slots_q - begin);
    float *const shift = sums_at(wave.shift, at, local, begin), *const delta = sums_at(wave.delta, at, local, begin);
    if (!call.is_q_gathered()) set_delta(call, b, head, begin, count, scratch[static_cast<size_t>(worker)], delta);
    double sink = 0;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t place = call.place_q(b, head, begin + i);
      const float lse = place < 0 ? -kInfinity : f.lse.at<float>(b, head, place);
      if (lse == -kInfinity) {  // padding; or no key and no sink: the outputs are constants
        shift[i] = -kInfinity;
        delta[i] = 0;
        continue;
      }
      if (call.is_q_gathered()) set_delta(call, b, head, place, 1, scratch[static_cast<size_t>(worker)], delta + i);
      if (call.params.dlse.has_value()) delta[i] -= call.params.dlse.at<float>(b, head, place);
      shift[i] = -lse * kLog2E;
      if (!f.sink_logit.has_value()) continue;
      sink -= std::exp(static_cast<double>(f.sink_logit.at<float>(head)) - static_cast<double>(lse)) * static_cast<double>(delta[i]);
    }
    partial[static_cast<size_t>(item)] = sink;
  });
  for (int64_t i = 0; i < wave.domains() * call.group; ++i) {
    double& sum = wave.dsink[static_cast<size_t>(wave.first * call.group + i)];  // heads of q, over the batch
    for (int64_t part = 0; part < parts; ++part) sum += partial[static_cast<size_t>(i * parts + part)];
  }
}

// Gradients that go to one tensor, since q, k and v may be one.
struct Shared {
  bool q_k, q_v, k_v;
  explicit Shared(const AttendBackwardParams& p) : q_k(p.dq.raw() == p.dk.raw()), q_v(p.dq.raw() == p.dv.raw()), k_v(p.dk.raw() == p.dv.raw()) {}
};

void add_scaled(float* total, const float* row, int64_t floats, float scale) {
  for (int64_t i = 0; i < floats; ++i) total[i] += row[i] * scale;
}

// dq of the domains [from, to) of the wave.
void write_queries(const BackwardCall& call, const Wave& wave, int64_t from, int64_t to, std::vector<std::vector<float>>& scratch) {
  const Shared shared(call.params);
  const TensorView& dq = call.params.dq;
  const int64_t parts = chunks(call.slots_q), channels = call.sizes.head_dim, stride = sum_stride(channels);
  call.context.parallel_for((to - from) * call.group * parts, [&](int64_t item, int worker) {
    const int64_t part = item % parts, local = item / parts % call.group, at = from + item / parts / call.group, domain = wave.first + at;
    const int64_t b = call.b_of(domain), head = call.head_of(domain) * call.group + local;
    const int64_t first = part * kChunk, rows = std::min(kChunk, call.slots_q - first);
    const float* const sums = sums_at(wave.dq, at, local, first);
    if (!call.is_q_gathered() && !shared.q_k && !shared.q_v) {
      write_gradient(call, sums, rows, channels, call.scale, dq, b, head, first);
      return;
    }
    std::vector<float>& total = scratch[static_cast<size_t>(worker)];
    total.resize(static_cast<size_t>(stride));
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t place = call.is_q_gathered() ? call.place_q(b, head, first + i) : first + i;
      if (place < 0) continue;
      std::fill(total.begin(), total.end(), 0.0f);
      add_scaled(total.data(), sums + i * stride, stride, call.scale);
      if (shared.q_k) add_scaled(total.data(), sums_at(wave.dk_total, place), stride, call.scale);
      if (shared.q_v) add_scaled(total.data(), sums_at(wave.dv_total, place), stride, 1.0f);
      write_gradient(call, total.data(), 1, channels, 1.0f, dq, b, head, place);
    }
  });
}

// Sums of a domain's keys, pools spread over their members, into the totals of tokens.
void fold_keys(const BackwardCall& call, const Tensor& sums, int64_t domain, int64_t at, bool is_first, const Tensor& total) {
  const PlanData& plan = *call.params.forward.plan;
  const plan::Axis& axis = call.keys.of(call.b_of(domain), static_cast<int>(call.head_of(domain) * call.group));
  const int64_t slots = plan::slots_k(plan), stride = sums.view.stride(1);
  call.context.parallel_for(chunks(slots), [&](int64_t part, int) {
    for (int64_t slot = part * kChunk; slot < std::min(slots, (part + 1) * kChunk); ++slot) {
      const int64_t place = axis.token(slot) < 0 && call.params.forward.in_slots ? slot : call.place(axis, slot);
      if (place < 0) continue;
      float* const row = sums_at(total, place);
      if (is_first) std::fill(row, row + stride, 0.0f);
      add_scaled(row, sums_at(sums, at, slot), stride, 1.0f);
      if (axis.token(slot) < 0) continue;
      int64_t first = slots;  // of the pool
      for (const int group : plan.pools) {
        const int64_t members = slot / group * group, real = axis.real(members, std::min<int64_t>(slots, members + group));
        add_scaled(row, sums_at(sums, at, first + slot / group), stride, 1.0f / static_cast<float>(real));
        first += (slots + group - 1) / group;
      }
    }
  });
}

void write_keys(const BackwardCall& call, const Wave& wave, int64_t domain, bool is_k_done, bool is_v_done,
                std::vector<std::vector<float>>& scratch) {
  const Shared shared(call.params);
  const AttendBackwardParams& p = call.params;
  const int64_t rows_k = call.sizes.seqlen_k, stride = sum_stride(call.sizes.head_dim), b = call.b_of(domain);
  const int64_t head_k = call.head_of(domain) * p.dk.dim(1) / call.schedule.heads, head_v = call.head_of(domain) * p.dv.dim(1) / call.schedule.heads;
  call.context.parallel_for(chunks(rows_k), [&](int64_t part, int worker) {
    const int64_t first = part * kChunk, rows = std::min(kChunk, rows_k - first);
    if (is_k_done && !shared.q_k && !shared.k_v) {
      write_gradient(call, sums_at(wave.dk_total, first), rows, call.sizes.head_dim, call.scale, p.dk, b, head_k, first);
    } else if (is_k_done && !shared.q_k) {
      std::vector<float>& total = scratch[static_cast<size_t>(worker)];
      total.assign(static_cast<size_t>(rows * stride), 0.0f);
      add_scaled(total.data(), sums_at(wave.dk_total, first), rows * stride, call.scale);
      add_scaled(total.data(), sums_at(wave.dv_total, first), rows * stride, 1.0f);
      write_gradient(call, total.data(), rows, call.sizes.head_dim, 1.0f, p.dk, b, head_k, first);
    }
    if (is_v_done && !shared.q_v && !shared.k_v) {
      write_gradient(call, sums_at(wave.dv_total, first), rows, call.sizes.head_dim_v, 1.0f, p.dv, b, head_v, first);
    }
  });
}

}  // namespace

const std::byte* Operand::rows(const BackwardCall& call, int64_t domain, int64_t at, int64_t local) const {
  return copy.view.has_value() ? row_at(copy.view, at, local, 0) : row_at(source, call.b_of(domain), head_of(call, *this, domain, local), 0);
}

int64_t domains_of_wave(const BackwardCall& call) {
  const Sizes& s = call.sizes;
  const int64_t rows_q = call.group * call.slots_q, width = static_cast<int64_t>(size_of(call.dtype));
  const auto copies = [&](const TensorView& view, bool is_of_q) {
    return is_copied(call, view, is_of_q) ? (is_of_q ? rows_q : call.slots_k) * view.dim(3) * width : 0;
  };
  int64_t bytes = 4 * rows_q * (sum_stride(s.head_dim) + 2);
  if (!call.is_direct) bytes += 4 * call.slots_k * (sum_stride(s.head_dim) + sum_stride(s.head_dim_v));
  bytes += copies(call.params.forward.q, true) + copies(call.params.dout, true) + copies(call.slots.k, false) + copies(call.slots.v, false);
  const int64_t domains = std::max<int64_t>(1, call.domains());
  const int64_t blocks = std::max<int64_t>(1, static_cast<int64_t>(call.schedule.key_blocks.size()) / domains);
  const int64_t busy = (kItems * call.context.concurrency() + blocks - 1) / blocks;
  const int64_t fit = kWaveBytes / std::max<int64_t>(1, bytes), most = kMostWaveBytes / std::max<int64_t>(1, bytes);
  const int64_t wanted = std::clamp<int64_t>(std::max(fit, std::min(busy, most)), 1, domains);
  const int64_t waves = (domains + wanted - 1) / wanted;
  return (domains + waves - 1) / waves;
}

Wave make_wave(const BackwardCall& call, int64_t domains) {
  const Sizes& s = call.sizes;
  const std::shared_ptr<Memory>& memory = call.context.memory;
  Wave wave;
  const auto set = [&](Operand& operand, const TensorView& source, bool is_of_q) {
    operand.source = source;
    operand.is_of_q = is_of_q;
    operand.heads = is_of_q ? call.group : 1;
    const int64_t rows = is_of_q ? call.slots_q : call.slots_k, channels = source.dim(3);
    if (is_copied(call, source, is_of_q)) operand.copy = Tensor(memory, call.dtype, {domains, operand.heads, rows, channels});
  };
  set(wave.q, call.params.forward.q, true);
  set(wave.dout, call.params.dout, true);
  set(wave.k, call.slots.k, false);
  set(wave.v, call.slots.v, false);
  wave.shift = Tensor(memory, Dtype::f32, {domains, call.group, call.slots_q});
  wave.delta = Tensor(memory, Dtype::f32, {domains, call.group, call.slots_q});
  wave.dq = Tensor(memory, Dtype::f32, {domains, call.group, call.slots_q, sum_stride(s.head_dim)});
  if (!call.is_direct) {
    wave.dk = Tensor(memory, Dtype::f32, {domains, call.slots_k, sum_stride(s.head_dim)});
    wave.dv = Tensor(memory, Dtype::f32, {domains, call.slots_k, sum_stride(s.head_dim_v)});
    wave.dk_total = Tensor(memory, Dtype::f32, {s.seqlen_k, sum_stride(s.head_dim)});
    wave.dv_total = Tensor(memory, Dtype::f32, {s.seqlen_k, sum_stride(s.head_dim_v)});
  }
  wave.dsink.assign(static_cast<size_t>(s.batch * s.heads_q), 0.0);
  return wave;
}

void start_wave(const BackwardCall& call, Wave& wave, std::vector<std::vector<float>>& scratch) {
  for (const Operand* operand : {&wave.q, &wave.dout, &wave.k, &wave.v}) stage(call, wave, *operand);
  prepare_rows(call, wave, scratch);
  const int64_t floats = wave.domains() * wave.dq.view.stride(0);
  constexpr int64_t kFloats = 1 << 16;
  call.context.parallel_for((floats + kFloats - 1) / kFloats, [&](int64_t item, int) {
    float* const sums = static_cast<float*>(wave.dq.view.raw());
    std::fill(sums + item * kFloats, sums + std::min(floats, (item + 1) * kFloats), 0.0f);
  });
}

void write_wave(const BackwardCall& call, const Wave& wave, std::vector<std::vector<float>>& scratch) {
  if (call.is_direct) {
    write_queries(call, wave, 0, wave.domains(), scratch);
    return;
  }
  const int64_t heads = call.schedule.heads, each_k = heads / call.params.dk.dim(1), each_v = heads / call.params.dv.dim(1);
  for (int64_t domain = wave.first; domain < wave.last; ++domain) {
    const int64_t at = domain - wave.first, head = call.head_of(domain);
    fold_keys(call, wave.dk, domain, at, head % each_k == 0, wave.dk_total);
    fold_keys(call, wave.dv, domain, at, head % each_v == 0, wave.dv_total);
    write_keys(call, wave, domain, (head + 1) % each_k == 0, (head + 1) % each_v == 0, scratch);
    write_queries(call, wave, at, at + 1, scratch);
  }
}

void write_gradient(const BackwardCall& call, const float* sums, int64_t rows, int64_t channels, float scale, const TensorView& to, int64_t b,
                    int64_t head, int64_t first) {
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

}  // namespace tilewise::attend::cpu
