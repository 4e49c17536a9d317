// SPDX-License-Identifier: Apache-2.0
#include "tilewise/select/cpu/antidiagonal.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <memory>
#include <vector>

#include "tilewise/machine/cpu/gemm.h"
#include "tilewise/prepare/reorder.h"
#include "tilewise/select/as_float.h"
#include "tilewise/select/query_order.h"

namespace tilewise::select::cpu {
namespace {

using machine::cpu::kLanes;
constexpr int64_t kChunk = 128;  // key groups scored at a time: [128, 64] floats stay in the first cache

int64_t floor_div(int64_t value, int64_t step) { return value >= 0 ? value / step : -((-value + step - 1) / step); }

/// Keys as the groups read them: [B, Hkv, groups * S, D] with the neighbours of a group added up, zeros where tokens are missing.
Tensor summed_keys(const AsFloat& k, int stride, int terms, Context& context) {
  const TensorView& from = k.view;
  const int64_t groups = (from.dim(2) + stride - 1) / stride, heads = from.dim(1), dim = from.dim(3);
  Tensor sums(context.memory, Dtype::f32, {from.dim(0), heads, groups * stride, dim});
  context.parallel_for(from.dim(0) * heads * groups, [&](int64_t item, int) {
    const int64_t c = item % groups, h = item / groups % heads, b = item / groups / heads;
    for (int t = 0; t < stride; ++t) {
      float* out = &sums.view.at<float>(b, h, c * stride + t, 0);
      std::fill(out, out + dim, 0.0f);
      for (int term = 0; term < terms; ++term) {
        const int64_t token = c * stride + (t + term) % stride;
        if (token >= from.dim(2)) continue;
        const float* key = k.row(b, h, token);
        for (int64_t d = 0; d < dim; ++d) out[d] += key[d];
      }
    }
  });
  return sums;
}

struct Job {
  const AntidiagonalParams& params;
  const Scores& scores;
  TensorView q = {}, k = {};        // f32
  std::vector<int> order = {};      // query_order
  bool is_causal = false;            // by the numbers of groups: token order
  // Under orders [B, heads of q or k, groups]: the largest token of a query group, as it counts, and the smallest of a key group; a group of padding sees, and is
  // seen by, nobody. Without a mask all tokens are 0. Empty: token order.
  std::vector<int64_t> most_q = {}, least_k = {};
  int64_t k_tokens = 0, q_groups = 0;  // slots of k that are not made up; groups of q
  int64_t offset = 0;  // token of query slot 0, as groups count
  int groups_a_tile = 0;  // key groups of a key tile
  int lanes_a_tile = 0;  // scored query groups of a full row: groups_a_tile / kdb
  float scale_log2 = 0;  // of the sum over t, into the exponent of 2
  float softcap = 0, scale = 0;  // softcap > 0: the strip is scaled and capped before the exponent
};

/// A number for each group of S slots: `better` of its tokens' numbers, `none` where it holds padding alone. [B, heads, groups]
template <class Better>
std::vector<int64_t> of_groups(const RowGrid& grid, bool is_query, int64_t batch, int64_t heads, int64_t stride, int64_t none, int64_t unmasked,
                               const Better& better) {
  const int64_t slots = is_query ? grid.slots_q() : grid.slots_k(), groups = (slots + stride - 1) / stride;
  std::vector<int64_t> numbers(static_cast<size_t>(batch * heads * groups), none);
  for (int64_t b = 0; b < batch; ++b) {
    for (int64_t h = 0; h < heads; ++h) {
      const auto of_q = static_cast<int>(h * grid.heads / heads);  // a query head that reads these
      const plan::SlotTokens tokens = is_query ? grid.queries(b, of_q) : grid.keys(b, of_q);
      for (int64_t slot = 0; slot < slots; ++slot) {
        if (tokens[slot] < 0) continue;
        int64_t& number = numbers[static_cast<size_t>((b * heads + h) * groups + slot / stride)];
        number = better(number, unmasked >= 0 ? unmasked : tokens[slot] + (is_query ? grid.offset() : 0));
      }
    }
  }
  return numbers;
}

/// What one worker needs at a time, in one block of memory.
struct Workspace {
  Tensor memory = {};
  float* packed = nullptr;  // [S, D, kLanes]
  float* rows = nullptr;  // [kLanes, D]: lanes at the ragged ends
  float* zeros = nullptr;  // [D]: a token that is missing from the last group of keys
  float* strip = nullptr;  // [keys of a chunk, kLanes]
  float *tile_max = nullptr, *tile_sum = nullptr;  // [Tk, kLanes]; the maximum is in exponents of 2
  std::vector<const float*> keys = {};

  void reserve(int64_t stride, int64_t dim, int64_t groups_a_tile, int64_t tiles, const std::shared_ptr<Memory>& from) {
    if (memory.view.has_value()) return;
    const int64_t chunk = std::max(kChunk, groups_a_tile) + machine::cpu::kRowMultiple;
    const int64_t sizes[] = {stride * dim * kLanes, kLanes * dim, dim, chunk * kLanes, tiles * kLanes, tiles * kLanes};
    float** const places[] = {&packed, &rows, &zeros, &strip, &tile_max, &tile_sum};
    int64_t total = 0;
    for (const int64_t size : sizes) total += rounded(size);
    memory = Tensor(from, Dtype::f32, {total});
    float* next = static_cast<float*>(memory.view.raw());
    for (size_t i = 0; i < std::size(sizes); ++i) {
      *places[i] = next;
      next += rounded(sizes[i]);
    }
    std::fill(zeros, zeros + dim, 0.0f);
    keys.resize(static_cast<size_t>(chunk));
  }

 private:
  static int64_t rounded(int64_t floats) { return (floats + 15) / 16 * 16; }  // 64 bytes
};

/// Packs the queries of groups [first, first + count) * kdb into lanes, one [D, kLanes] for each place t of a key.
void pack_queries(const Job& job, int64_t b, int64_t head, int64_t first, int count, Workspace& work) {
  const int64_t dim = job.q.dim(3), stride = job.params.stride, step = stride * job.params.kdb;
  for (int64_t t = 0; t < stride; ++t) {
    float* packed = work.packed + t * dim * kLanes;
    const auto slot = [&](int lane) { return (first + lane) * step + job.order[static_cast<size_t>(t)] - job.offset; };
    if (slot(0) >= 0 && slot(count - 1) < job.q.dim(2)) {
      machine::cpu::pack_lanes(&job.q.at<float>(b, head, slot(0), 0), step * job.q.stride(2), count, dim, packed);
      continue;
    }
    for (int lane = 0; lane < count; ++lane) {  // the first or the last group lacks this token: it is a zero
      float* row = work.rows + lane * dim;
      if (slot(lane) < 0 || slot(lane) >= job.q.dim(2))
        std::fill(row, row + dim, 0.0f);
      else
        std::copy_n(&job.q.at<float>(b, head, slot(lane), 0), dim, row);
    }
    machine::cpu::pack_lanes(work.rows, dim, count, dim, packed);
  }
}

/// strip[c - first][lane] = sum over t of q . k for the key groups [first, last).
void multiply_groups(const Job& job, int64_t b, int64_t head_kv, int64_t first, int64_t last, int lanes, Workspace& work) {
  const int64_t dim = job.k.dim(3), stride = job.params.stride;
  for (int64_t t = 0; t < stride; ++t) {
    const int count = static_cast<int>(last - first);
    const float* key = static_cast<const float*>(job.k.raw()) + job.k.offset(b, head_kv, first * stride + t, 0);
    for (int i = 0; i < count; ++i) work.keys[static_cast<size_t>(i)] = key + i * stride * job.k.stride(2);
    if ((last - 1) * stride + t >= job.k.dim(2)) work.keys[static_cast<size_t>(count - 1)] = work.zeros;  // only the last group can lack a token
    machine::cpu::multiply(work.keys.data(), count, dim, work.packed + t * dim * kLanes, work.strip, t > 0, lanes);
  }
}

/// Scores of the query groups [first, first + count) * kdb, added to the rows that hold them. row_of[lane]: the row.
void score_lanes(const Job& job, int64_t b, int64_t head, int64_t head_kv, int64_t first, int count, const std::vector<int64_t>& row_of,
                 Workspace& work) {
  const int64_t groups = (job.k_tokens + job.params.stride - 1) / job.params.stride, kdb = job.params.kdb, r = job.groups_a_tile;
  const int64_t seen = job.is_causal ? std::min(groups, (first + count - 1) * kdb + 1) : groups;
  if (seen <= 0) return;
  pack_queries(job, b, head, first, count, work);

  const int64_t chunk = std::max<int64_t>(1, kChunk / r) * r, tiles = (seen + r - 1) / r;
  for (int64_t c0 = 0; c0 < seen; c0 += chunk) {
    const int64_t c1 = std::min(seen, c0 + chunk);
    multiply_groups(job, b, head_kv, c0, c1, count, work);
    if (job.softcap > 0) {
      for (int64_t i = 0; i < (c1 - c0) * kLanes; ++i) {
        float& x = work.strip[i];
        x = job.softcap * std::tanh(x * job.scale / job.softcap);
      }
    }
    for (int64_t c = std::max(c0, first * kdb + 1); job.is_causal && c < c1; ++c) {  // group c is seen by lanes whose group is not before it
      float* line = work.strip + (c - c0) * kLanes;
      std::fill(line, line + std::min<int64_t>(kLanes, (c + kdb - 1) / kdb - first), -HUGE_VALF);
    }
    for (int64_t c = c0; !job.least_k.empty() && c < c1; ++c) {
      const int64_t least = job.least_k[static_cast<size_t>((b * job.k.dim(1) + head_kv) * groups + c)];
      const int64_t* const most = job.most_q.data() + (b * job.q.dim(1) + head) * job.q_groups + first * kdb;
      float* line = work.strip + (c - c0) * kLanes;
      for (int lane = 0; lane < count; ++lane) {
        if (least > most[lane * kdb]) line[lane] = -HUGE_VALF;
      }
    }
    for (int64_t c = c0; c < c1; c += r) {
      float* lines = work.strip + (c - c0) * kLanes;
      const int rows = static_cast<int>(std::min(r, c1 - c));
      float* most = work.tile_max + c / r * kLanes;
      float* sum = work.tile_sum + c / r * kLanes;
      std::fill(most, most + kLanes, -HUGE_VALF);
      std::fill(sum, sum + kLanes, 0.0f);
      machine::cpu::max_lanes(lines, rows, most);
      float shift[kLanes];
      // A lane that sees nothing of the tile has -inf for its maximum; shifting by that would make NaN of -inf - -inf.
      for (int lane = 0; lane < kLanes; ++lane) {
        most[lane] *= job.scale_log2;
        shift[lane] = most[lane] == -HUGE_VALF ? 0.0f : most[lane];
      }
      machine::cpu::exp_lanes(lines, rows, job.scale_log2, shift, sum);
    }
  }

  // Bring the tiles to one maximum a lane: mass of tile j = sum_j * 2^(max_j - max) / sum over j.
  float most[kLanes], weight[kLanes], ignored[kLanes] = {};
  std::fill(most, most + kLanes, -HUGE_VALF);
  std::fill(weight, weight + kLanes, 0.0f);
  machine::cpu::max_lanes(work.tile_max, static_cast<int>(tiles), most);
  for (float& m : most) m = m == -HUGE_VALF ? 0.0f : m;
  machine::cpu::exp_lanes(work.tile_max, static_cast<int>(tiles), 1.0f, most, ignored);
  for (int64_t i = 0; i < tiles * kLanes; ++i) work.tile_sum[i] *= work.tile_max[i];
  machine::cpu::add_rows(work.tile_sum, static_cast<int>(tiles), weight);
  for (float& w : weight) w = w > 0 ? 1.0f / w : w == 0 ? 0.0f : w;  // a NaN stays one: the row is then kept whole
  for (int64_t j = 0; j < tiles; ++j) {
    const float* mass = work.tile_sum + j * kLanes;
    for (int lane = 0; lane < count;) {
      const int64_t row = row_of[static_cast<size_t>(lane)];
      float total = 0;
      for (; lane < count && row_of[static_cast<size_t>(lane)] == row; ++lane) total += mass[lane] * weight[lane];
      job.scores.row(b, head, row)[j] += total;
    }
  }
}

}  // namespace

void antidiagonal_scores(const Inputs& inputs, const AntidiagonalParams& params, bool is_causal, const Scores& scores, Context& context) {
  const RowGrid& grid = scores.grid;
  AsFloat q(inputs.q, context), k(inputs.k, context);
  if (inputs.order_q.token.has_value()) q = AsFloat(prepare::to_slots(q.view, inputs.order_q, context));
  if (inputs.order_k.token.has_value()) k = AsFloat(prepare::to_slots(k.view, inputs.order_k, context));
  Job job{params, scores};
  job.q = q.view;
  job.k = k.view;
  job.k_tokens = k.view.dim(2);
  Tensor sums;
  if (params.selector == Selector::double_inverse || params.selector == Selector::triple_inverse) {
    sums = summed_keys(k, params.stride, params.selector == Selector::double_inverse ? 2 : 3, context);
    job.k = sums.view;
  }
  job.order = query_order(params);
  if (inputs.has_orders()) {
    const auto larger = [](int64_t a, int64_t b) { return std::max(a, b); };
    const auto smaller = [](int64_t a, int64_t b) { return std::min(a, b); };
    const int64_t unmasked = is_causal ? -1 : 0;
    job.most_q = of_groups(grid, true, scores.batch, job.q.dim(1), params.stride, INT64_MIN, unmasked, larger);
    job.least_k = of_groups(grid, false, scores.batch, job.k.dim(1), params.stride, INT64_MAX, unmasked, smaller);
    job.q_groups = (grid.slots_q() + params.stride - 1) / params.stride;
  }
  job.is_causal = is_causal && !inputs.has_orders();
  job.offset = job.is_causal ? grid.offset() : 0;
  job.groups_a_tile = params.tile / params.stride;
  job.lanes_a_tile = job.groups_a_tile / params.kdb;
  job.scale = inputs.softmax_scale / (static_cast<float>(params.stride) * params.norm);
  job.softcap = inputs.softcap;
  constexpr float kLog2E = 1.44269504f;
  job.scale_log2 = job.softcap > 0 ? kLog2E : job.scale * kLog2E;

  // An item is a few whole rows of one head, so that no two items add to the same scores. Heads one after another, so that
  // the threads read the same keys; within a head the longest first.
  const int64_t rows = grid.rows(), rows_an_item = std::max(1, kLanes / job.lanes_a_tile), items = (rows + rows_an_item - 1) / rows_an_item;
  const int64_t heads = scores.heads, group = heads / job.k.dim(1), dim = inputs.head_dim(), step = static_cast<int64_t>(params.stride) * params.kdb;
  std::vector<Workspace> workspaces(static_cast<size_t>(context.concurrency()));
  context.parallel_for(items * scores.batch * heads, [&](int64_t item, int worker) {
    const int64_t last_item = items - 1 - item % items, head = item / items % heads, b = item / items / heads;
    Workspace& work = workspaces[static_cast<size_t>(worker)];
    work.reserve(params.stride, dim, job.groups_a_tile, scores.key_tiles(), context.memory);
    std::vector<int64_t> row_of;
    int64_t first = 0;
    const auto flush = [&] {
      if (!row_of.empty()) score_lanes(job, b, head, head / group, first, static_cast<int>(row_of.size()), row_of, work);
      row_of.clear();
    };
    for (int64_t row = last_item * rows_an_item; row < std::min(rows, (last_item + 1) * rows_an_item); ++row) {
      std::fill_n(scores.row(b, head, row), scores.key_tiles(), 0.0f);
      // Groups that begin in the row, in units of kdb groups. Row edges lie on group edges, but for the first row, whose first group may be cut.
      const int64_t from = row == 0 ? floor_div(job.offset, step) : floor_div(grid.first(row) + job.offset + step - 1, step);
      const int64_t to = floor_div(grid.last(row) + job.offset + step - 1, step);
      for (int64_t u = from; u < to; ++u) {
        if (job.is_causal && u < 0) continue;  // tokens before the first key see nothing
        // With kdb > 1 the sampled group of the first row may lie wholly before its first token.
        if (u * step + params.stride <= grid.first(row) + job.offset) continue;
        if (row_of.empty()) first = u;
        row_of.push_back(row);
        if (static_cast<int>(row_of.size()) == kLanes) flush();
      }
    }
    flush();
  });
}

}  // namespace tilewise::select::cpu
