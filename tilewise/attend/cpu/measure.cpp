// SPDX-License-Identifier: Apache-2.0
#include "tilewise/attend/cpu/measure.h"

#include <algorithm>
#include <array>
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
#include "tilewise/prepare/reorder.h"

namespace tilewise::attend::cpu {
namespace {

using machine::cpu::Target;

#if defined(__x86_64__)
constexpr machine::cpu::PerTarget<MeasureTable> kTables{
    {&portable::measure_table, &avx2::measure_table, &avx512::measure_table, &avx512bf16::measure_table}};
#else
constexpr machine::cpu::PerTarget<MeasureTable> kTables{{&portable::measure_table, nullptr, nullptr, nullptr}};
#endif

constexpr float kInfinity = std::numeric_limits<float>::infinity();
// Sums over queries (key, offset) are taken in at most so many parts of a head, each in order, then added in order: bits that no thread count moves.
constexpr int64_t kParts = 8;

const void* row_at(const TensorView& view, int64_t b, int64_t head, int64_t token) {
  return static_cast<const std::byte*>(view.raw()) + view.offset(b, head, token) * static_cast<int64_t>(size_of(view.dtype()));
}

// NaN wins; nothing is above it, so it stays.
void take_max(float& most, float value) {
  if (std::isnan(value) || value > most) most = value;
}

struct Call {
  const MeasureParams& params;
  const PlanData& plan;
  Sizes sizes;
  const MeasureTable& table;
  const Context& context;
  const Cut& cut;
  const KeySlots& keys;
  const TensorView& key_bias;  // in slots
  int tile_q, tile_k;

  // Where the caller's tensors have the query of a lane, which holds `token`.
  int64_t place(const QueryBlock& query, int64_t lane, int64_t token) const { return params.in_slots ? query.first + lane : token; }
};

// What one worker keeps between blocks.
struct Worker {
  Buffer workspace, q;
  BlockCut cut;
  std::vector<Segment> pieces;
  std::array<float, kBlockLanes> lse;
  int64_t pairs_read = 0;
};

// Adds a stretch of keys to the cells of its lanes. Tiles count slots, queries are rows by token.
struct LaneCells {
  const Call& call;
  const QueryBlock& query;
  const BlockCut& cut;

  float* place(const TensorView& view, int64_t row, int64_t cell) const {
    if (!view.has_value()) return nullptr;
    const bool has_columns = view.rank() == 4;
    return static_cast<float*>(view.raw()) + (has_columns ? view.offset(query.b, query.head, row, cell) : view.offset(query.b, query.head, row));
  }

  void add(int64_t row, int64_t cell, float sum, float max, float count) const {
    if (float* const p = place(call.params.sum, row, cell)) *p += sum;
    if (float* const p = place(call.params.max, row, cell)) take_max(*p, max);
    if (float* const p = place(call.params.count, row, cell)) *p += count;
  }

  void add_queries(int first, int lanes, int32_t cell, const float* sum, const float* max, const float* count) const {
    for (int i = 0; i < lanes; ++i) {
      const int64_t token = cut.token[static_cast<size_t>(int64_t{first} + i)];
      if (token >= 0) add(call.place(query, int64_t{first} + i, token), cell, sum[i], max[i], count[i]);
    }
  }

  void add_tiles(int first, int lanes, int32_t cell, const float* sum, const float* max, const float* count) const {
    constexpr int kTogether = 8;  // partial results side by side, which the compiler turns into vectors
    for (int i = 0; i < lanes;) {
      const int64_t tile = (query.first + first + i) / call.tile_q;
      const int stop = static_cast<int>(std::min<int64_t>(lanes, (tile + 1) * call.tile_q - query.first - first));
      float sums[kTogether] = {}, counts[kTogether] = {}, maxima[kTogether];
      std::fill(maxima, maxima + kTogether, -kInfinity);
      bool has_nan = false;
      for (; i + kTogether <= stop; i += kTogether) {
        for (int t = 0; t < kTogether; ++t) {
          sums[t] += sum[i + t];
          counts[t] += count[i + t];
          maxima[t] = max[i + t] > maxima[t] ? max[i + t] : maxima[t];
        }
      }
      for (int t = 0; i < stop; ++i, ++t) {
        sums[t] += sum[i];
        counts[t] += count[i];
        maxima[t] = max[i] > maxima[t] ? max[i] : maxima[t];
      }
      float total = 0, most = -kInfinity, number = 0;
      for (int t = 0; t < kTogether; ++t) {
        total += sums[t];
        number += counts[t];
        take_max(most, maxima[t]);
      }
      if (std::isnan(total)) {  // the comparisons above passed over NaN
        for (int t = 0; t < lanes; ++t) has_nan |= (query.first + first + t) / call.tile_q == tile && std::isnan(max[t]);
      }
      add(tile, cell, total, has_nan ? std::numeric_limits<float>::quiet_NaN() : most, number);
    }
  }

  static void take_queries(void* state, int first, int lanes, int32_t cell, const float* sum, const float* max, const float* count) {
    static_cast<const LaneCells*>(state)->add_queries(first, lanes, cell, sum, max, count);
  }
  static void take_tiles(void* state, int first, int lanes, int32_t cell, const float* sum, const float* max, const float* count) {
    static_cast<const LaneCells*>(state)->add_tiles(first, lanes, cell, sum, max, count);
  }
};

// Adds single keys to the offsets of its lanes: of queries or keys that have an order, whose offsets do not ascend with the lanes.
struct OffsetCells {
  const Call& call;
  const BlockCut& cut;
  const plan::Axis& keys;
  float *sum, *max, *count;

  static void take(void* state, int first, int lanes, int32_t cell, const float* sum, const float* max, const float* count) {
    const OffsetCells& cells = *static_cast<const OffsetCells*>(state);
    const int64_t shift = cells.call.plan.seqlen_k - cells.call.plan.seqlen_q - cells.keys.token(cell);
    for (int i = 0; i < lanes; ++i) {
      const int64_t offset = cells.cut.token[static_cast<size_t>(int64_t{first} + i)] + shift;
      if (count[i] == 0 || offset < 0) continue;
      cells.sum[offset] += sum[i];
      take_max(cells.max[offset], max[i]);
      cells.count[offset] += count[i];
    }
  }
};

// Cuts the segments at multiples of tile_k and numbers the pieces.
void cut_at_tiles(std::vector<Segment>& segments, int tile_k, std::vector<Segment>& out) {
  out.clear();
  for (const Segment& segment : segments) {
    for (int32_t start = segment.start; start < segment.stop;) {
      const int32_t cell = start / tile_k;
      const auto stop = static_cast<int32_t>(std::min<int64_t>(segment.stop, (int64_t{cell} + 1) * tile_k));
      out.push_back({start, stop, segment.bits, cell, segment.is_tested});
      start = stop;
    }
  }
  segments.swap(out);
}

// The block's problem, for the walk that is filled in by the caller. `tile_k`: keys of a cell, 0: as the plan's runs have it.
MeasureBlock prepare_block(const Call& call, const QueryBlock& query, int tile_k, Worker& worker) {
  const MeasureParams& params = call.params;
  BlockCut& cut = worker.cut;
  worker.pairs_read += call.cut.cut(query, params.over == MeasureOver::query_run ? CutFor::measure_runs : CutFor::measure, cut);
  if (tile_k > 0) cut_at_tiles(cut.segments, tile_k, worker.pieces);
  MeasureBlock measure{};
  Block& block = measure.block;
  if (call.cut.queries().is_plain()) {
    block.q = row_at(params.q, query.b, query.head, query.first);
    block.q_stride = params.q.stride(2);
  } else {
    const size_t bytes = static_cast<size_t>(params.q.dim(3)) * size_of(params.q.dtype());
    auto* const rows = static_cast<std::byte*>(worker.q.data());
    for (size_t i = 0; i < static_cast<size_t>(query.lanes); ++i) {
      if (cut.token[i] < 0) {
        std::memset(rows + i * bytes, 0, bytes);
      } else {
        std::memcpy(rows + i * bytes, row_at(params.q, query.b, query.head, call.place(query, static_cast<int64_t>(i), cut.token[i])), bytes);
      }
    }
    block.q = rows;
    block.q_stride = params.q.dim(3);
  }
  const TensorView& k = call.keys.k;
  block.k = row_at(k, query.b, KeySlots::head_of(k, query.head, call.sizes.heads_q), 0);
  block.k_stride = k.stride(2);
  block.head_dim = static_cast<int>(call.sizes.head_dim);
  block.lanes = query.lanes;
  block.segments = cut.segments.data();
  block.num_segments = static_cast<int64_t>(cut.segments.size());
  block.band = &cut.band;
  block.scale = static_cast<float>(scale_of(params.softmax_scale, call.sizes.head_dim));
  block.softcap = params.softcap;
  set_stop(call.context, block);
  if (params.lse.has_value()) {
    worker.lse.fill(0);
    for (size_t i = 0; i < static_cast<size_t>(query.lanes); ++i) {
      if (cut.token[i] >= 0) worker.lse[i] = params.lse.at<float>(query.b, query.head, call.place(query, static_cast<int64_t>(i), cut.token[i]));
    }
    measure.lse = worker.lse.data();
  }
  if (call.key_bias.has_value() && call.key_bias.numel() > 0) {
    measure.key_bias = static_cast<const float*>(row_at(call.key_bias, query.b, query.head, 0));
  } else if (!call.keys.bias.empty()) {  // never both: a bias of single keys is refused beside pools
    measure.key_bias = call.keys.bias[call.cut.keys().index(query.b, query.head)].data();
  }
  measure.workspace = static_cast<std::byte*>(worker.workspace.data());
  return measure;
}

void run(const Call& call, const MeasureBlock& measure) {
  const Dtype dtype = call.params.q.dtype();
  (dtype == Dtype::bf16 ? call.table.measure_bf16 : dtype == Dtype::f16 ? call.table.measure_f16 : call.table.measure_f32)(measure);
  call.context.check_cancel();
}

// Blocks that write the same cells are one item; items of a head run longest first.
std::vector<std::vector<QueryBlock>> items_of(const Call& call, std::vector<QueryBlock> blocks) {
  std::vector<std::vector<QueryBlock>> items;
  if (call.params.over != MeasureOver::tile) {
    for (const QueryBlock& block : blocks) items.push_back({block});
    return items;
  }
  std::sort(blocks.begin(), blocks.end(), [](const QueryBlock& x, const QueryBlock& y) {
    return std::array<int64_t, 3>{x.b, x.head, x.first} < std::array<int64_t, 3>{y.b, y.head, y.first};
  });
  for (const QueryBlock& block : blocks) {
    const bool shares_cell = !items.empty() && items.back().back().b == block.b && items.back().back().head == block.head &&
                             (items.back().back().first + items.back().back().lanes - 1) / call.tile_q >= block.first / call.tile_q;
    if (shares_cell) {
      items.back().push_back(block);
    } else {
      items.push_back({block});
    }
  }
  const auto work = [](const std::vector<QueryBlock>& item) {
    int64_t total = 0;
    for (const QueryBlock& block : item) total += block.keys * block.lanes;
    return total;
  };
  std::sort(items.begin(), items.end(), [&](const auto& x, const auto& y) {
    return std::array<int64_t, 4>{x[0].b, x[0].head, -work(x), x[0].first} < std::array<int64_t, 4>{y[0].b, y[0].head, -work(y), y[0].first};
  });
  return items;
}

void fill(const TensorView& view, float value, Context& context) {
  if (!view.has_value() || view.numel() == 0) return;
  context.parallel_for(view.dim(0) * view.dim(1), [&](int64_t item, int) {
    const int64_t b = item / view.dim(1), head = item % view.dim(1);
    for (int64_t i = 0; i < view.dim(2); ++i) {
      if (view.rank() == 3) {
        view.at<float>(b, head, i) = value;
        continue;
      }
      for (int64_t j = 0; j < view.dim(3); ++j) view.at<float>(b, head, i, j) = value;
    }
  });
}

void measure_lanes(const Call& call, std::vector<Worker>& workers, Context& context) {
  fill(call.params.sum, 0, context);
  fill(call.params.max, -kInfinity, context);
  fill(call.params.count, 0, context);
  const auto items = items_of(call, call.cut.blocks(call.sizes.batch));
  const bool is_by_tile = call.params.over == MeasureOver::tile || call.params.over == MeasureOver::query_tile;
  context.parallel_for(static_cast<int64_t>(items.size()), [&](int64_t item, int worker) {
    for (const QueryBlock& query : items[static_cast<size_t>(item)]) {
      Worker& here = workers[static_cast<size_t>(worker)];
      LaneCells cells{call, query, here.cut};
      MeasureBlock measure = prepare_block(call, query, is_by_tile ? call.tile_k : 0, here);
      measure.walk = MeasureWalk::lanes;
      measure.take = call.params.over == MeasureOver::tile ? &LaneCells::take_tiles : &LaneCells::take_queries;
      measure.state = &cells;
      run(call, measure);
    }
  });
}

// Per key or per offset, head by head: the parts' arrays would be too many for all heads at once.
void measure_across(const Call& call, std::vector<Worker>& workers, Context& context) {
  const bool is_offset = call.params.over == MeasureOver::offset;
  // Offsets run from 1 - Sq; a vector of lanes may reach past either end.
  const int64_t before = is_offset ? call.sizes.seqlen_q + kBlockLanes : 0;
  const int64_t length = before + call.keys.k.dim(2) + kBlockLanes;
  const bool is_plain = call.cut.queries().is_plain() && call.cut.keys().is_plain();
  const Tensor parts(context.memory, Dtype::f32, {kParts, 3, length});
  std::vector<QueryBlock> blocks = call.cut.blocks(call.sizes.batch);
  std::sort(blocks.begin(), blocks.end(), [](const QueryBlock& x, const QueryBlock& y) {
    return std::array<int64_t, 3>{x.b, x.head, x.first} < std::array<int64_t, 3>{y.b, y.head, y.first};
  });
  size_t begin = 0;
  for (int64_t head = 0; head < call.sizes.batch * call.sizes.heads_q; ++head) {
    size_t end = begin;
    while (end < blocks.size() && blocks[end].b * call.sizes.heads_q + blocks[end].head == head) ++end;
    const auto count = static_cast<int64_t>(end - begin);
    const int64_t used = std::min(kParts, std::max<int64_t>(1, count));
    context.parallel_for(used, [&](int64_t part, int worker) {
      float* const sum = &parts.view.at<float>(part, 0, 0);
      float* const max = &parts.view.at<float>(part, 1, 0);
      float* const number = &parts.view.at<float>(part, 2, 0);
      std::fill(sum, sum + length, 0.0f);
      std::fill(max, max + length, -kInfinity);
      std::fill(number, number + length, 0.0f);
      for (int64_t i = count * part / used; i < count * (part + 1) / used; ++i) {
        const QueryBlock& query = blocks[begin + static_cast<size_t>(i)];
        Worker& here = workers[static_cast<size_t>(worker)];
        const bool is_single = is_offset && !is_plain;
        MeasureBlock measure = prepare_block(call, query, is_single ? 1 : 0, here);
        OffsetCells cells{call, here.cut, call.cut.keys().of(query.b, query.head), sum + before, max + before, number + before};
        measure.take = &OffsetCells::take;
        measure.state = &cells;
        measure.walk = is_single ? MeasureWalk::lanes : is_offset ? MeasureWalk::offsets : MeasureWalk::keys;
        measure.sum = sum + before;
        measure.max = max + before;
        measure.count = number + before;
        measure.first_query = query.first + call.sizes.seqlen_k - call.sizes.seqlen_q;
        run(call, measure);
      }
    });
    const int64_t b = head / call.sizes.heads_q, h = head % call.sizes.heads_q;
    // Keys were counted by slot, offsets as they are. Padding that the caller has in its tensors was read by nobody.
    const plan::Axis& keys = call.cut.keys().of(b, static_cast<int>(h));
    for (int64_t i = 0; i < (is_offset ? call.plan.seqlen_k : keys.slots()); ++i) {
      const int64_t cell = is_offset || call.params.in_slots ? i : keys.token(i);
      if (cell < 0) continue;
      float sum = 0, max = -kInfinity, number = 0;
      for (int64_t part = 0; part < used; ++part) {
        sum += parts.view.at<float>(part, 0, before + i);
        take_max(max, parts.view.at<float>(part, 1, before + i));
        number += parts.view.at<float>(part, 2, before + i);
      }
      if (call.params.sum.has_value()) call.params.sum.at<float>(b, h, cell) = sum;
      if (call.params.max.has_value()) call.params.max.at<float>(b, h, cell) = max;
      if (call.params.count.has_value()) call.params.count.at<float>(b, h, cell) = number;
    }
    begin = end;
  }
}

}  // namespace

std::optional<std::string> refusal(const MeasureParams& params) {
  if (auto reason = refusal_of_operand("q", params.q)) return reason;
  return std::nullopt;
}

Ran measure(const MeasureParams& given, Context& context) {
  const Sizes sizes = check_measure(given, context);
  if (const auto reason = refusal(given)) fail(Error::Kind::unsupported, "measure: cpu: ", *reason);
  MeasureParams params = given;
  params.plan = with_by_query(given.plan, context);
  const Target target = machine::cpu::current_target();
  const Cut cut(*params.plan, sizes.heads_q);
  const KeySlots keys = key_slots(*params.plan, cut.keys(), params.k, {}, params.in_slots, context);
  const bool is_bias_moved = params.key_bias.has_value() && !params.in_slots && params.plan->order_k.token.has_value();
  const Tensor own_bias = is_bias_moved ? prepare::to_slots(params.key_bias, params.plan->order_k, context) : Tensor();
  const TensorView& key_bias = is_bias_moved ? own_bias.view : params.key_bias;
  const Call call{params, *params.plan, sizes, kTables[target], context, cut, keys, key_bias, measure_tile_q(params), measure_tile_k(params)};
  std::vector<Worker> workers(static_cast<size_t>(context.concurrency()));
  const size_t row_bytes = cut.queries().is_plain() ? 0 : static_cast<size_t>(sizes.head_dim) * size_of(params.q.dtype());
  for (Worker& worker : workers) {
    worker.workspace = Buffer(context.memory, call.table.workspace_bytes(static_cast<int>(sizes.head_dim)));
    worker.q = Buffer(context.memory, row_bytes * kBlockLanes);
  }
  if (params.over == MeasureOver::key || params.over == MeasureOver::offset) {
    measure_across(call, workers, context);
  } else {
    measure_lanes(call, workers, context);
  }
  int64_t pairs_read = 0;
  for (const Worker& worker : workers) pairs_read += worker.pairs_read;
  return {.backend = "cpu", .target = std::string(machine::cpu::name(target)), .pairs_read = pairs_read};
}

}  // namespace tilewise::attend::cpu
