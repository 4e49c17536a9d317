// SPDX-License-Identifier: Apache-2.0
#include "tilewise/attend/cpu/decode.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

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
// Keys of one item: 1 to 2 MB of a usual cache, 50 to 100 us of reading, so that two sequences fill many cores and merging costs 1 %.
constexpr int64_t kPartKeys = 2048;

int64_t padded(int64_t channels) { return (channels + kDecodePad - 1) / kDecodePad * kDecodePad; }

float to_float(const TensorView& view, int64_t offset) {
  switch (view.dtype()) {
    case Dtype::bf16: return static_cast<float>(static_cast<const bf16*>(view.raw())[offset]);
    case Dtype::f16: return static_cast<float>(static_cast<const f16*>(view.raw())[offset]);
    default: return static_cast<const float*>(view.raw())[offset];
  }
}

DecodeKind kind_of(const Store& store) {
  if (store.is_quantised) {
    const bool is_by_key = store.group.channels >= store.channels;
    return store.is_int4 ? (is_by_key ? DecodeKind::i4 : DecodeKind::i4_channels) : is_by_key ? DecodeKind::i8 : DecodeKind::i8_channels;
  }
  return store.data.dtype() == Dtype::bf16 ? DecodeKind::bf16 : store.data.dtype() == Dtype::f16 ? DecodeKind::f16 : DecodeKind::f32;
}

bool is_by_key(DecodeKind kind) { return kind == DecodeKind::i8 || kind == DecodeKind::i4; }

// Finds the rows of one operand for one K/V head.
class Reader {
 public:
  // `expanded`: [kDecodeStrip][2][padded channels], where scales are by channel.
  Reader(const Store& store, int64_t b, int64_t head, DecodeRows& rows, float* expanded)
      : store_(store), kind_(kind_of(store)), b_(b), head_(head), rows_(rows), expanded_(expanded) {
    row_bytes_ = store.data.stride(2) * static_cast<int64_t>(size_of(store.data.dtype()));
  }

  // Tokens [start, start + count) become keys [at, at + count) of the strip.
  void add(int64_t start, int64_t count, int at) {
    const int64_t page = store_.table.has_value() ? store_.page() : std::numeric_limits<int64_t>::max();
    while (count > 0) {
      const Place place = place_of(store_, b_, head_, start);
      const int64_t here = std::min(count, page - place.row);
      const auto* row = static_cast<const std::byte*>(store_.data.raw()) +
                        store_.data.offset(place.entry, place.head, place.row) * static_cast<int64_t>(size_of(store_.data.dtype()));
      for (int64_t i = 0; i < here; ++i, row += row_bytes_) rows_.data[at + i] = row;
      if (store_.is_quantised) add_scales(place, here, at);
      at += static_cast<int>(here);
      start += here;
      count -= here;
    }
  }
  // What a kernel loads behind the last key must be numbers.
  void end(int count) {
    if (!is_by_key(kind_)) return;
    for (int i = count; i < (count + kDecodePad - 1) / kDecodePad * kDecodePad; ++i) rows_.scale[i] = rows_.zero[i] = 0;
  }
  void start_strip() { expanded_group_ = -1; }

 private:
  float zero_at(const Place& place, int64_t channel) const {
    const float zero = store_.zero.has_value() ? store_.zero.data<float>()[scale_offset(store_, store_.zero, place, channel)] : 0.0f;
    return store_.is_int4 ? zero + 8 : zero;  // a stored half counts from the smallest code on
  }
  void add_scales(Place place, int64_t count, int at) {
    const auto* const scale = store_.scale.data<float>();
    if (is_by_key(kind_)) {
      for (int64_t i = 0; i < count; ++i, ++place.row) {
        rows_.scale[at + i] = scale[scale_offset(store_, store_.scale, place, 0)];
        rows_.zero[at + i] = zero_at(place, 0);
      }
      return;
    }
    const int64_t pad = padded(store_.channels);
    for (int64_t i = 0; i < count; ++i, ++place.row) {
      const int64_t group = place.row / store_.group.tokens;
      float* const to = expanded_ + (at + i) * 2 * pad;
      rows_.channels[at + i] = to;
      if (place.entry == expanded_entry_ && group == expanded_group_) {
        rows_.channels[at + i] = rows_.channels[at + i - 1];
        continue;
      }
      expanded_entry_ = place.entry;
      expanded_group_ = group;
      for (int64_t d = 0; d < store_.channels; ++d) {
        to[d] = scale[scale_offset(store_, store_.scale, place, d)];
        to[pad + d] = -zero_at(place, d) * to[d];
      }
      std::fill(to + store_.channels, to + pad, 0.0f);
      std::fill(to + pad + store_.channels, to + 2 * pad, 0.0f);
    }
  }

  const Store& store_;
  DecodeKind kind_;
  int64_t b_, head_;
  DecodeRows& rows_;
  float* expanded_;
  int64_t row_bytes_ = 0;
  int64_t expanded_entry_ = -1, expanded_group_ = -1;  // of the key before
};

// A unit's keys [first, last), counted over its segments.
struct Item {
  const DecodeUnit* unit;
  int64_t first, last;
  float* sums;                 // [rows][padded Dv]
  float *row_max, *row_sum;    // [rows]
};

// What one worker keeps between items.
struct Worker {
  Tensor memory;
  DecodeRows k, v;
  float *q, *scores, *expanded_k, *expanded_v;

  static int64_t floats(const DecodeProblem& problem) {
    return kDecodeRows * (padded(problem.sizes.head_dim) + kDecodeStrip) +
           2 * kDecodeStrip * (padded(problem.sizes.head_dim) + padded(problem.sizes.head_dim_v));
  }
  Worker(const DecodeProblem& problem, Context& context) : memory(context.memory, Dtype::f32, {floats(problem)}) {
    const int64_t pad = padded(problem.sizes.head_dim);
    q = memory.view.data<float>();
    scores = q + kDecodeRows * pad;
    expanded_k = scores + kDecodeRows * kDecodeStrip;
    expanded_v = expanded_k + 2 * kDecodeStrip * pad;
  }
};

class Decoder {
 public:
  Decoder(const DecodeProblem& problem, const DecodeTable& table)
      : problem_(problem), table_(table), kind_k_(kind_of(problem.k)), kind_v_(problem.v.has_value() ? kind_of(problem.v) : DecodeKind::f32) {
    has_pairs_ = table.dots_bf16 && kind_k_ == DecodeKind::bf16 && problem.sizes.head_dim % 2 == 0;
  }

  void run(const Item& item, Worker& worker) const {
    const DecodeUnit& unit = *item.unit;
    const Sizes& sizes = problem_.sizes;
    DecodeStrip strip{};
    strip.rows = unit.rows();
    strip.k = &worker.k;
    strip.v = &worker.v;
    strip.head_dim = static_cast<int>(sizes.head_dim);
    strip.head_dim_v = static_cast<int>(sizes.head_dim_v);
    strip.has_pairs = has_pairs_;
    strip.has_scale_k = is_by_key(kind_k_);
    strip.has_scale_v = problem_.v.has_value() && is_by_key(kind_v_);
    strip.scale = static_cast<float>(scale_of(problem_.params.softmax_scale, sizes.head_dim));
    strip.softcap = problem_.params.softcap;
    float q_sum[kDecodeRows], rescale[kDecodeRows], correction[kDecodeRows];
    int32_t first[kDecodeRows], last[kDecodeRows], sink[kDecodeRows], token[kDecodeStrip];
    uint8_t query[kDecodeRows], queries[kDecodeStrip];
    for (int row = 0; row < strip.rows; ++row) {
      const int head = unit.head + row / unit.queries, new_token = unit.query + row % unit.queries;
      q_sum[row] = pack(head, unit.b, new_token, worker.q + row * padded(sizes.head_dim));
      const DecodeBand band = problem_.band(unit.b, head, new_token);
      first[row] = band.first;
      last[row] = band.last;
      sink[row] = band.sink;
      query[row] = static_cast<uint8_t>(1u << new_token);
    }
    strip.q = worker.q;
    strip.q_sum = q_sum;
    strip.token = token;
    strip.queries = queries;
    strip.first = first;
    strip.last = last;
    strip.sink = sink;
    strip.query = query;
    strip.scores = worker.scores;
    strip.rescale = rescale;
    strip.correction = correction;
    strip.sums = item.sums;
    strip.row_max = item.row_max;
    strip.row_sum = item.row_sum;
    std::fill_n(item.sums, strip.rows * padded(sizes.head_dim_v), 0.0f);
    std::fill_n(item.row_max, strip.rows, -kInfinity);
    std::fill_n(item.row_sum, strip.rows, 0.0f);

    Reader keys(problem_.k, unit.b, unit.head_kv, worker.k, worker.expanded_k);
    Reader values(problem_.v.has_value() ? problem_.v : problem_.k, unit.b, unit.head_kv, worker.v, worker.expanded_v);
    const auto all = static_cast<uint8_t>(((1u << unit.queries) - 1) << unit.query);
    int64_t at = 0;  // first key of the segment
    const auto flush = [&] {
      if (strip.count == 0) return;
      keys.end(strip.count);
      table_.scores[static_cast<int>(kind_k_)](strip);
      if (problem_.v.has_value()) values.end(strip.count);
      table_.softmax(strip);
      if (problem_.v.has_value()) table_.values[static_cast<int>(kind_v_)](strip);
      strip.count = 0;
      strip.is_tested = false;
      keys.start_strip();
      values.start_strip();
    };
    for (int64_t i = unit.first; i < unit.last && at < item.last; ++i) {
      const DecodeSegment& segment = problem_.segments[static_cast<size_t>(i)];
      const int64_t length = segment.stop - segment.start;
      int64_t from = std::max<int64_t>(0, item.first - at);
      const int64_t to = std::min(length, item.last - at);
      while (from < to) {
        const auto count = static_cast<int>(std::min<int64_t>(to - from, kDecodeStrip - strip.count));
        const auto start = static_cast<int32_t>(segment.start + from);
        keys.add(start, count, strip.count);
        if (problem_.v.has_value()) values.add(start, count, strip.count);
        for (int key = 0; key < count; ++key) {
          token[strip.count + key] = segment.is_tested ? start + key : INT32_MIN;
          queries[strip.count + key] = segment.queries;
        }
        strip.is_tested |= segment.is_tested || segment.queries != all;
        strip.count += count;
        from += count;
        if (strip.count == kDecodeStrip) flush();
      }
      at += length;
    }
    flush();
  }

  // The results of a unit's parts become that of the whole.
  void merge(const Item* items, int64_t count) const {
    const DecodeUnit& unit = *items[0].unit;
    const DecodeParams& p = problem_.params;
    const int64_t dim_v = problem_.sizes.head_dim_v, pad = padded(dim_v);
    const float scale = p.softcap != 0 ? 1.0f : static_cast<float>(scale_of(p.softmax_scale, problem_.sizes.head_dim));
    std::vector<float> lses(static_cast<size_t>(count)), sums(static_cast<size_t>(dim_v));
    std::vector<double> weights(lses.size());
    for (int row = 0; row < unit.rows(); ++row) {
      const int head = unit.head + row / unit.queries;
      const int64_t query = unit.query + row % unit.queries;
      for (int64_t i = 0; i < count; ++i) {
        const float sum = items[i].row_sum[row];
        lses[static_cast<size_t>(i)] = sum == 0 ? -kInfinity : items[i].row_max[row] * scale + std::log(sum);
      }
      const double lse = merge_weights(lses, p.sink_logit.has_value() ? p.sink_logit.at<float>(head) : -kInfinity, weights);
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
  // Returns the sum of the channels.
  float pack(int head, int64_t b, int query, float* to) const {
    const TensorView& q = problem_.params.q;
    const int64_t dim = problem_.sizes.head_dim, pad = padded(dim), offset = q.offset(b, head, query);
    std::fill(to, to + pad, 0.0f);
    if (has_pairs_) {
      std::memcpy(to, static_cast<const uint16_t*>(q.raw()) + offset, static_cast<size_t>(dim) * sizeof(uint16_t));
      return 0;
    }
    float sum = 0;
    for (int64_t d = 0; d < dim; ++d) {
      to[d] = to_float(q, offset + d);
      sum += to[d];
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
  for (int i = 0; i < context.concurrency(); ++i) workers.emplace_back(problem, context);
  context.parallel_for(static_cast<int64_t>(items.size()),
                       [&](int64_t item, int worker) { decoder.run(items[static_cast<size_t>(item)], workers[static_cast<size_t>(worker)]); });
  context.parallel_for(static_cast<int64_t>(problem.units.size()), [&](int64_t unit, int) {
    const int64_t first = first_item[static_cast<size_t>(unit)];
    decoder.merge(&items[static_cast<size_t>(first)], first_item[static_cast<size_t>(unit) + 1] - first);
  });
  return {.backend = "cpu", .target = std::string(machine::cpu::name(target)), .pairs_read = problem.pairs_read};
}

}  // namespace tilewise::attend::cpu
