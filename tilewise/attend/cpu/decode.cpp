// SPDX-License-Identifier: Apache-2.0
#include "tilewise/attend/cpu/decode.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <optional>
#include <thread>
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
// Keys of one item: 1 to 4 MB of a usual cache, 30 to 100 us of reading.
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

// The items of a call. Each is for one worker, which gets one whenever the executor calls it; towards its end it holds another, so that its first rows are
// there when it begins. Nobody waits for what someone else holds: as many calls are to come as there are items that nobody began, held ones among them.
class Queue {
 public:
  Queue(const std::vector<Item>& items, int workers) : items_(items), held_(static_cast<size_t>(workers)) {}

  struct Got {
    const Item& item;
    bool is_held;  // by this worker
  };
  Got get(int worker) {
    if (const Item* const item = held_of(worker).exchange(nullptr)) return {*item, true};
    for (;;) {
      if (const Item* const item = take()) return {*item, false};
      for (auto& held : held_) {
        if (const Item* const item = held.exchange(nullptr)) return {*item, false};
      }
      std::this_thread::yield();  // someone is about to hold the last one
    }
  }
  /// Null: none is left.
  const Item* hold(int worker) {
    const Item* const item = take();
    held_of(worker).store(item);
    return item;
  }

 private:
  std::atomic<const Item*>& held_of(int worker) { return held_[static_cast<size_t>(worker)]; }
  const Item* take() {
    const auto count = static_cast<int64_t>(items_.size());
    if (next_.load(std::memory_order_relaxed) >= count) return nullptr;
    const int64_t item = next_.fetch_add(1, std::memory_order_relaxed);
    return item < count ? &items_[static_cast<size_t>(item)] : nullptr;
  }

  const std::vector<Item>& items_;
  std::vector<std::atomic<const Item*>> held_;  // of each worker
  std::atomic<int64_t> next_ = 0;
};

// What one worker works with.
struct Worker {
  struct Strip {
    DecodeKeys keys;
    float *expanded_k, *expanded_v;
  };
  static constexpr int kMostPieces = 2 * kDecodeStrip;  // rows of two strips

  Tensor memory;
  float *packed, *scores, *widened;
  // Filled one ahead, so that their rows can be asked for; between items, `here` has the first strip of the one that is held.
  Strip strips[2], *here = &strips[0], *next = &strips[1];
  std::optional<DecodeWalk> walk;
  // What a strip asks for, its own rows and the next one's; of rows that lie apart, a piece each.
  DecodePiece pieces_k[kMostPieces], pieces_v[kMostPieces];
  DecodeAsk ask;
  float q_sum[kDecodeRows * 4], rescale[kDecodeRows * 4], correction[kDecodeRows * 4], row_max[kDecodeRows * 4], row_sum[kDecodeRows * 4];
  int32_t first[kDecodeRows], last[kDecodeRows], sink[kDecodeRows];
  uint8_t query[kDecodeRows];

  static int64_t floats(const DecodeProblem& problem) {
    return (kDecodeRows + kDecodeStep) * padded(problem.sizes.head_dim) + kDecodeRows * kDecodeStrip +
           2 * (expanded_floats(problem.k) + expanded_floats(problem.v));
  }
  Worker(const DecodeProblem& problem, const Context& context) : memory(context.memory, Dtype::f32, {floats(problem)}) {
    packed = memory.view.data<float>();
    scores = packed + kDecodeRows * padded(problem.sizes.head_dim);
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

  /// Computes one item; says which.
  const Item& run(Queue& queue, int index, Worker& worker, const Context& context) const {
    const auto [item, is_held] = queue.get(index);
    if (!is_held) {
      enter(item, worker, *worker.here);
      ask_for_start(worker.here->keys);
    }
    DecodeStrip strip = strip_of(worker);
    begin(item, worker, strip);
    for (bool has_next = true; has_next; std::swap(worker.here, worker.next)) {
      context.check_cancel();
      Worker::Strip& next = *worker.next;
      const int count = worker.here->keys.count;
      has_next = count > 0 && worker.walk->next(next.keys, next.expanded_k, next.expanded_v);
      if (!has_next) {
        next.keys.count = 0;
        if (const Item* const held = queue.hold(index)) enter(*held, worker, next);
      }
      if (count > 0) compute(worker, strip);
    }
    finish(item, strip);
    return item;
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
  DecodeStrip strip_of(Worker& worker) const {
    const Sizes& sizes = problem_.sizes;
    worker.ask = {};
    worker.ask.k.lines = lines_of(row_bytes_k_);
    worker.ask.v.lines = lines_of(row_bytes_v_);
    DecodeStrip strip{};
    strip.ask = &worker.ask;
    strip.head_dim = static_cast<int>(sizes.head_dim);
    strip.head_dim_v = static_cast<int>(sizes.head_dim_v);
    strip.q = worker.packed;
    strip.chunks = chunks_;
    strip.has_pairs = has_pairs_;
    strip.widened = worker.widened;
    strip.has_scale_k = is_by_key(kind_k_);
    strip.has_scale_v = has_values() && is_by_key(kind_v_);
    strip.q_sum = worker.q_sum;
    strip.scale = static_cast<float>(scale_of(problem_.params.softmax_scale, sizes.head_dim));
    strip.softcap = problem_.params.softcap;
    strip.first = worker.first;
    strip.last = worker.last;
    strip.sink = worker.sink;
    strip.query = worker.query;
    strip.scores = worker.scores;
    strip.rescale = worker.rescale;
    strip.correction = worker.correction;
    strip.row_max = worker.row_max;
    strip.row_sum = worker.row_sum;
    return strip;
  }

  // `strip` becomes the first of an item; it may be empty.
  void enter(const Item& item, Worker& worker, Worker::Strip& strip) const {
    worker.walk.emplace(table_, problem_, *item.unit, item.first, item.last);
    worker.walk->next(strip.keys, strip.expanded_k, strip.expanded_v);
  }

  // What kernels take from a unit.
  void begin(const Item& item, Worker& worker, DecodeStrip& strip) const {
    const DecodeUnit& unit = *item.unit;
    strip.rows = unit.rows();
    strip.sums = item.sums;
    const int padded_rows = (strip.rows + table_.rows - 1) / table_.rows * table_.rows;
    std::fill_n(worker.packed, padded_rows * chunks_ * 4, 0.0f);
    std::fill_n(worker.q_sum, padded_rows * 4, 0.0f);
    std::fill_n(worker.row_max, padded_rows * 4, -kInfinity);
    std::fill_n(worker.row_sum, padded_rows * 4, 0.0f);
    for (int row = 0; row < strip.rows; ++row) {
      const int head = unit.head + row / unit.queries, new_token = unit.query + row % unit.queries;
      std::fill_n(worker.q_sum + row * 4, 4, pack(head, unit.b, new_token, row, worker.packed));
      const DecodeBand band = problem_.band(unit.b, head, new_token);
      worker.first[row] = band.first;
      worker.last[row] = band.last;
      worker.sink[row] = band.sink;
      worker.query[row] = static_cast<uint8_t>(1u << new_token);
    }
    std::fill_n(item.sums, strip.rows * padded(problem_.sizes.head_dim_v), 0.0f);
  }

  void compute(Worker& worker, DecodeStrip& strip) const {
    const DecodeKeys &here = worker.here->keys, &next = worker.next->keys;
    DecodeAsk& ask = worker.ask;
    ask.at = ask.end = 0;
    plan_side(here.k, lead_k(here.count), here.count, next.k, lead_k(next.count), row_bytes_k_, worker.pieces_k, ask.k);
    if (has_values()) plan_side(here.v, lead_v(here.count), here.count, next.v, lead_v(next.count), row_bytes_v_, worker.pieces_v, ask.v);
    strip.count = here.count;
    strip.is_tested = here.is_tested;
    strip.k = &here.k;
    strip.v = &here.v;
    strip.token = here.token;
    strip.queries = here.queries;
    table_.scores[static_cast<int>(kind_k_)](strip);
    table_.softmax(strip);
    if (has_values()) table_.values[static_cast<int>(kind_v_)](strip);
  }

  static void finish(const Item& item, const DecodeStrip& strip) {
    for (int row = 0; row < strip.rows; ++row) {
      const float* const parts = strip.row_sum + row * 4;
      item.row_max[row] = strip.row_max[row * 4];
      item.row_sum[row] = (parts[0] + parts[2]) + (parts[1] + parts[3]);
    }
  }

  // How many of a strip's rows have been asked for before it begins. While scores read all its keys, half a strip of keys and half of values are asked for,
  // and as much while its values are read: so keys lead by seven eighths at first and by three eighths behind the scores, values the other way round.
  int lead_k(int count) const { return has_values() ? count - count / 8 : count; }
  static int lead_v(int count) { return count * 3 / 8; }
  // While four keys are computed, in scores and then in values; without values, in scores alone.
  int lines_of(int row_bytes) const { return (row_bytes * kDecodeStep / (has_values() ? 2 : 1) + 63) / 64; }

  // Before a strip that no other one asked for.
  void ask_for_start(const DecodeKeys& keys) const {
    const auto ask_for = [](const void* const* rows, int count, int bytes) {
      for (int i = 0; i < count; ++i) {
        for (int at = 0; at < bytes; at += 64) __builtin_prefetch(static_cast<const char*>(rows[i]) + at);
      }
    };
    ask_for(keys.k.data, lead_k(keys.count), row_bytes_k_);
    if (has_values()) ask_for(keys.v.data, lead_v(keys.count), row_bytes_v_);
  }

  // What is left of a strip's rows, then those that the next one wants to find.
  static void plan_side(const DecodeRows& here, int lead, int count, const DecodeRows& next, int lead_next, int bytes, DecodePiece* pieces,
                        DecodeAsk::Side& side) {
    side.at = side.end = nullptr;
    side.next = pieces;
    const auto add = [&](const void* const* rows, int begin, int end) {
      if (begin >= end) return;
      const auto* const first = static_cast<const char*>(rows[begin]);
      const auto* const last = static_cast<const char*>(rows[end - 1]);
      // Ends as far apart as those of one piece: were it none, only what is asked for would be wrong.
      if (reinterpret_cast<intptr_t>(last) - reinterpret_cast<intptr_t>(first) == static_cast<intptr_t>(end - 1 - begin) * bytes) {
        if (pieces != side.next && pieces[-1].end == first) {
          pieces[-1].end = last + bytes;
        } else {
          *pieces++ = {first, last + bytes};
        }
        return;
      }
      for (int i = begin; i < end; ++i) {
        const auto* const row = static_cast<const char*>(rows[i]);
        *pieces++ = {row, row + bytes};
      }
    };
    add(here.data, lead, count);
    add(next.data, 0, lead_next);
    side.last = pieces;
  }

  bool has_values() const { return problem_.v.has_value(); }
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
  Queue queue(items, context.concurrency());
  std::vector<std::unique_ptr<Worker>> workers;
  for (int i = 0; i < context.concurrency(); ++i) workers.push_back(std::make_unique<Worker>(problem, context));
  std::vector<std::atomic<int64_t>> open(problem.units.size());  // items of each unit that are not done
  for (size_t unit = 0; unit < open.size(); ++unit) open[unit] = first_item[unit + 1] - first_item[unit];
  context.parallel_for(static_cast<int64_t>(items.size()), [&](int64_t, int worker) {
    const Item& item = decoder.run(queue, worker, *workers[static_cast<size_t>(worker)], context);
    const auto unit = static_cast<size_t>(item.unit - problem.units.data());
    if (open[unit].fetch_sub(1) == 1) decoder.merge(&items[static_cast<size_t>(first_item[unit])], first_item[unit + 1] - first_item[unit]);
  });
  return {.backend = "cpu", .target = std::string(machine::cpu::name(target)), .pairs_read = problem.pairs_read};
}

}  // namespace tilewise::attend::cpu
