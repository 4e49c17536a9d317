// SPDX-License-Identifier: Apache-2.0
#include "tilewise/attend/cpu/decode.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>
#include <vector>

#include "tilewise/attend/cpu/decode_reader.h"
#include "tilewise/attend/cpu/decode_strip.h"
#include "tilewise/attend/merge.h"
#include "tilewise/machine/cpu/target.h"

namespace tilewise::attend::cpu {
namespace {

using machine::cpu::Target;

#if defined(__x86_64__)
constexpr machine::cpu::PerTarget<DecodeTable> kTables{
    {&portable::decode_table, &avx2::decode_table, &avx512::decode_table, &avx512bf16::decode_table}};
#else
constexpr machine::cpu::PerTarget<DecodeTable> kTables{{&portable::decode_table, nullptr, nullptr, nullptr}};
#endif

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr int64_t kMostChannels = 1024;
// Keys of one item: 1 to 4 MB of a usual cache, 30 to 100 us of reading. Halves cost 3 to 10 %: each begins with rows that nobody asked for.
constexpr int64_t kPartKeys = 4096;

float to_float(const TensorView& view, int64_t offset) {
  switch (view.dtype()) {
    case Dtype::bf16: return static_cast<float>(static_cast<const bf16*>(view.raw())[offset]);
    case Dtype::f16: return static_cast<float>(static_cast<const f16*>(view.raw())[offset]);
    default: return static_cast<const float*>(view.raw())[offset];
  }
}

// A unit's keys [first, last), counted over its segments.
struct Item {
  const DecodeUnit* unit;
  int64_t first, last;
  float* sums;                 // [rows][padded Dv]
  float *row_max, *row_sum;    // [rows]
};

// What one worker keeps between items.
struct Worker {
  // Strips are filled one ahead, so that their rows can be asked for.
  struct Strip {
    DecodeKeys keys;
    float *expanded_k, *expanded_v;
  };
  Tensor memory;
  float *q, *scores, *widened;
  Strip strips[2];

  static int64_t floats(const DecodeProblem& problem) {
    return (kDecodeRows + kDecodeStep) * padded(problem.sizes.head_dim) + kDecodeRows * kDecodeStrip +
           2 * (expanded_floats(problem.k) + expanded_floats(problem.v));
  }
  Worker(const DecodeProblem& problem, Context& context) : memory(context.memory, Dtype::f32, {floats(problem)}) {
    q = memory.view.data<float>();
    scores = q + kDecodeRows * padded(problem.sizes.head_dim);
    widened = scores + kDecodeRows * kDecodeStrip;
    float* at = widened + kDecodeStep * padded(problem.sizes.head_dim);
    for (Strip& strip : strips) {
      strip.expanded_k = at;
      strip.expanded_v = at + expanded_floats(problem.k);
      at = strip.expanded_v + expanded_floats(problem.v);
    }
  }
};

class Decoder {
 public:
  Decoder(const DecodeProblem& problem, const DecodeTable& table)
      : problem_(problem), table_(table), kind_k_(kind_of(problem.k)), kind_v_(problem.v.has_value() ? kind_of(problem.v) : DecodeKind::f32) {
    has_pairs_ = table.dots_bf16 && kind_k_ == DecodeKind::bf16;
    const int64_t channels = has_pairs_ ? 8 : 4;  // of a chunk
    chunks_ = static_cast<int>((problem.sizes.head_dim + channels - 1) / channels);
    row_bytes_k_ = bytes_of_row(problem.k);
    if (problem.v.has_value()) row_bytes_v_ = bytes_of_row(problem.v);
  }

  void run(const Item& item, Worker& worker, const Context& context) const {
    const DecodeUnit& unit = *item.unit;
    const Sizes& sizes = problem_.sizes;
    DecodeStrip strip{};
    strip.rows = unit.rows();
    strip.head_dim = static_cast<int>(sizes.head_dim);
    strip.head_dim_v = static_cast<int>(sizes.head_dim_v);
    strip.has_pairs = has_pairs_;
    strip.has_scale_k = is_by_key(kind_k_);
    strip.has_scale_v = problem_.v.has_value() && is_by_key(kind_v_);
    strip.scale = static_cast<float>(scale_of(problem_.params.softmax_scale, sizes.head_dim));
    strip.softcap = problem_.params.softcap;
    DecodeWalk walk(problem_, unit, item.first, item.last);
    const bool has_values = problem_.v.has_value();
    Worker::Strip *here = &worker.strips[0], *ahead = &worker.strips[1];
    walk.next(here->keys, here->expanded_k, here->expanded_v);
    for (int i = 0; i < here->keys.count; ++i) {  // no strip before this one has asked for them
      for (int at = 0; at < row_bytes_k_; at += 64) __builtin_prefetch(static_cast<const char*>(here->keys.k.data[i]) + at);
    }
    float q_sum[kDecodeRows * 4], rescale[kDecodeRows * 4], correction[kDecodeRows * 4], row_max[kDecodeRows * 4], row_sum[kDecodeRows * 4];
    int32_t first[kDecodeRows], last[kDecodeRows], sink[kDecodeRows];
    uint8_t query[kDecodeRows];
    const int padded_rows = (strip.rows + table_.rows - 1) / table_.rows * table_.rows;
    std::fill_n(worker.q, padded_rows * chunks_ * 4, 0.0f);
    std::fill_n(q_sum, padded_rows * 4, 0.0f);
    std::fill_n(row_max, padded_rows * 4, -kInfinity);
    std::fill_n(row_sum, padded_rows * 4, 0.0f);
    for (int row = 0; row < strip.rows; ++row) {
      const int head = unit.head + row / unit.queries, new_token = unit.query + row % unit.queries;
      std::fill_n(q_sum + row * 4, 4, pack(head, unit.b, new_token, row, worker.q));
      const DecodeBand band = problem_.band(unit.b, head, new_token);
      first[row] = band.first;
      last[row] = band.last;
      sink[row] = band.sink;
      query[row] = static_cast<uint8_t>(1u << new_token);
    }
    strip.q = worker.q;
    strip.chunks = chunks_;
    strip.widened = worker.widened;
    strip.q_sum = q_sum;
    strip.first = first;
    strip.last = last;
    strip.sink = sink;
    strip.query = query;
    strip.scores = worker.scores;
    strip.rescale = rescale;
    strip.correction = correction;
    strip.sums = item.sums;
    strip.row_max = row_max;
    strip.row_sum = row_sum;
    std::fill_n(item.sums, strip.rows * padded(sizes.head_dim_v), 0.0f);

    for (; here->keys.count > 0; std::swap(here, ahead)) {
      context.check_cancel();
      walk.next(ahead->keys, ahead->expanded_k, ahead->expanded_v);
      strip.count = here->keys.count;
      strip.is_tested = here->keys.is_tested;
      strip.k = &here->keys.k;
      strip.v = &here->keys.v;
      strip.token = here->keys.token;
      strip.queries = here->keys.queries;
      const DecodeAhead next{(ahead->keys.count > 0 ? ahead : here)->keys.k.data, row_bytes_k_};
      strip.ahead = has_values ? DecodeAhead{here->keys.v.data, row_bytes_v_} : next;
      table_.scores[static_cast<int>(kind_k_)](strip);
      table_.softmax(strip);
      strip.ahead = next;
      if (has_values) table_.values[static_cast<int>(kind_v_)](strip);
    }
    for (int row = 0; row < strip.rows; ++row) {
      const float* const parts = row_sum + row * 4;
      item.row_max[row] = row_max[row * 4];
      item.row_sum[row] = (parts[0] + parts[2]) + (parts[1] + parts[3]);
    }
  }

  // The results of a unit's parts become that of the whole.
  void merge(const Item* items, int64_t count) const {
    const DecodeUnit& unit = *items[0].unit;
    const DecodeParams& p = problem_.params;
    const int64_t dim_v = problem_.sizes.head_dim_v, pad = padded(dim_v);
    const double scale = p.softcap != 0 ? 1.0 : static_cast<double>(static_cast<float>(scale_of(p.softmax_scale, problem_.sizes.head_dim)));
    std::vector<float> sums(static_cast<size_t>(dim_v));
    std::vector<double> lses(static_cast<size_t>(count)), weights(lses.size());
    for (int row = 0; row < unit.rows(); ++row) {
      const int head = unit.head + row / unit.queries;
      const int64_t query = unit.query + row % unit.queries;
      for (int64_t i = 0; i < count; ++i) {
        const double sum = static_cast<double>(items[i].row_sum[row]);
        lses[static_cast<size_t>(i)] =
            sum == 0 ? -static_cast<double>(kInfinity) : static_cast<double>(items[i].row_max[row]) * scale + std::log(sum);
      }
      const double lse = merge_weights(lses, static_cast<double>(p.sink_logit.has_value() ? p.sink_logit.at<float>(head) : -kInfinity), weights);
      if (p.lse.has_value()) p.lse.at<float>(unit.b, head, query) = static_cast<float>(lse);
      if (!p.out.has_value()) continue;
      std::fill(sums.begin(), sums.end(), 0.0f);
      for (int64_t i = 0; i < count; ++i) {
        if (weights[static_cast<size_t>(i)] == 0) continue;
        const auto weight = static_cast<float>(weights[static_cast<size_t>(i)] / static_cast<double>(items[i].row_sum[row]));
        const float* const part = items[i].sums + row * pad;
        for (int64_t d = 0; d < dim_v; ++d) sums[static_cast<size_t>(d)] += weight * part[d];
      }
      write(head, unit.b, query, sums);
    }
  }

 private:
  static int bytes_of_row(const Store& store) { return static_cast<int>(store.data.dim(3) * static_cast<int64_t>(size_of(store.data.dtype()))); }
  // Lays a query where DecodeStrip::q has it; returns the sum of its channels.
  float pack(int head, int64_t b, int query, int row, float* packed) const {
    const TensorView& q = problem_.params.q;
    const int64_t dim = problem_.sizes.head_dim, offset = q.offset(b, head, query), width = table_.rows * 4;
    float* const to = packed + row / table_.rows * chunks_ * width + row % table_.rows * 4;
    float sum = 0;
    if (has_pairs_) {
      for (int64_t d = 0; d < dim; d += 8) {
        std::memcpy(to + d / 8 * width, static_cast<const uint16_t*>(q.raw()) + offset + d,
                    static_cast<size_t>(std::min<int64_t>(8, dim - d)) * sizeof(uint16_t));
      }
      return sum;
    }
    for (int64_t d = 0; d < dim; ++d) {
      const float x = to_float(q, offset + d);
      to[d / 4 * width + d % 4] = x;
      sum += x;
    }
    return sum;
  }

  void write(int head, int64_t b, int64_t query, const std::vector<float>& sums) const {
    const TensorView& out = problem_.params.out;
    const int64_t offset = out.offset(b, head, query);
    for (size_t d = 0; d < sums.size(); ++d) {
      const int64_t place = offset + static_cast<int64_t>(d);
      switch (out.dtype()) {
        case Dtype::bf16: static_cast<bf16*>(out.raw())[place] = bf16(sums[d]); break;
        case Dtype::f16: static_cast<f16*>(out.raw())[place] = f16(sums[d]); break;
        default: static_cast<float*>(out.raw())[place] = sums[d];
      }
    }
  }

  const DecodeProblem& problem_;
  const DecodeTable& table_;
  DecodeKind kind_k_, kind_v_;
  int chunks_ = 0, row_bytes_k_ = 0, row_bytes_v_ = 0;
  bool has_pairs_ = false;
};

}  // namespace

std::optional<std::string> refusal(const DecodeProblem& problem) {
  const Dtype dtype = problem.params.q.dtype();
  if (dtype != Dtype::f32 && dtype != Dtype::bf16 && dtype != Dtype::f16) {
    return "q is " + std::string(name(dtype)) + ", which is not built (has f32, bf16, f16)";
  }
  if (problem.params.q.device().type != Device::Type::cpu) return "q is not on the CPU";
  for (const int64_t channels : {problem.sizes.head_dim, problem.sizes.head_dim_v}) {
    if (channels > kMostChannels) return "head_dim " + std::to_string(channels) + " is above " + std::to_string(kMostChannels);
  }
  if (problem.params.plan->mask.bands.empty()) return "the mask is of spans or a grid, which is not built for decode (has bands)";
  return std::nullopt;
}

Ran decode(const DecodeProblem& problem, Context& context) {
  if (const auto reason = refusal(problem)) fail(Error::Kind::unsupported, "attend_decode: cpu: ", *reason);
  const Target target = machine::cpu::current_target();
  const Decoder decoder(problem, kTables[target]);
  const int64_t pad = padded(problem.sizes.head_dim_v);
  std::vector<Item> items;
  std::vector<int64_t> first_item{0};  // of each unit
  int64_t floats = 0;
  for (const DecodeUnit& unit : problem.units) {
    for (int64_t first = 0; first == 0 || first < unit.keys; first += kPartKeys) {
      items.push_back({&unit, first, std::min(unit.keys, first + kPartKeys), nullptr, nullptr, nullptr});
      floats += unit.rows() * (pad + kDecodePad);
    }
    first_item.push_back(static_cast<int64_t>(items.size()));
  }
  const Tensor parts(context.memory, Dtype::f32, {floats});
  float* at = parts.view.data<float>();
  for (Item& item : items) {
    const int64_t rows = item.unit->rows();
    item.sums = at;
    item.row_max = at + rows * pad;
    item.row_sum = item.row_max + rows;
    at += rows * (pad + kDecodePad);
  }
  std::vector<Worker> workers;
  workers.reserve(static_cast<size_t>(context.concurrency()));
  for (int i = 0; i < context.concurrency(); ++i) workers.emplace_back(problem, context);
  std::vector<std::atomic<int64_t>> open(problem.units.size());  // items of each unit that are not done
  for (size_t unit = 0; unit < open.size(); ++unit) open[unit] = first_item[unit + 1] - first_item[unit];
  context.parallel_for(static_cast<int64_t>(items.size()), [&](int64_t index, int worker) {
    const Item& item = items[static_cast<size_t>(index)];
    decoder.run(item, workers[static_cast<size_t>(worker)], context);
    const auto unit = static_cast<size_t>(item.unit - problem.units.data());
    if (open[unit].fetch_sub(1) == 1) decoder.merge(&items[static_cast<size_t>(first_item[unit])], first_item[unit + 1] - first_item[unit]);
  });
  return {.backend = "cpu", .target = std::string(machine::cpu::name(target)), .pairs_read = problem.pairs_read};
}

}  // namespace tilewise::attend::cpu
