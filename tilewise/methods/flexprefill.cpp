// SPDX-License-Identifier: Apache-2.0
#include "tilewise/methods/flexprefill.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>
#include <optional>

#include "tilewise/methods/problem.h"
#include "tilewise/plan/make.h"
#include "tilewise/prepare/pool.h"
#include "tilewise/select/last_queries.h"
#include "tilewise/select/lines.h"
#include "tilewise/select/mean_pool.h"
#include "tilewise/select/pack_rows.h"
#include "tilewise/select/plan.h"
#ifdef TILEWISE_WITH_CUDA
#include "tilewise/select/cuda/flex.h"
#include "tilewise/select/cuda/mask_plan.h"
#endif

namespace tilewise::method {
namespace {

/// What one head reads: a row the tiles j with has_column[j], has_tile[row][j], or with a key of token tile c and has_diagonal[m - c], where m is the token
/// tile of one of its queries. In token order a row is one m and c is j.
struct HeadTiles {
  std::vector<uint8_t> has_column;  // [tiles of slots]
  std::vector<uint8_t> has_diagonal;  // [tiles of tokens]
  std::vector<uint8_t> has_tile;  // [rows, tiles of slots], or empty
};

/// Sums of the values of the tokens in neighbouring slots, `tile` at a time.
std::vector<float> pooled_sums(const float* values, const plan::SlotTokens& tokens, int64_t tile) {
  std::vector<float> sums(static_cast<size_t>((tokens.count + tile - 1) / tile), 0.0f);
  for (int64_t slot = 0; slot < tokens.count; ++slot) {
    if (tokens[slot] >= 0) sums[static_cast<size_t>(slot / tile)] += values[tokens[slot]];
  }
  return sums;
}

/// The `count` largest, `first` before all others.
std::vector<uint8_t> best_of(std::vector<float> sums, int64_t count, int64_t first) {
  sums[static_cast<size_t>(first)] = std::numeric_limits<float>::max();
  std::vector<uint8_t> marks(sums.size(), 0);
  for (const int32_t i : select::largest(sums.data(), static_cast<int64_t>(sums.size()), count)) marks[static_cast<size_t>(i)] = 1;
  return marks;
}

/// softmax over tiles of logit(mean query . mean key), on the pooled tensors.
std::vector<double> mean_attention(const TensorView& query, const TensorView& keys, const select::Inputs& inputs) {
  std::vector<double> p(static_cast<size_t>(keys.dim(2)));
  for (size_t j = 0; j < p.size(); ++j) {
    double dot = 0;
    for (int64_t d = 0; d < keys.dim(3); ++d)
      dot += static_cast<double>(query.at<float>(0, 0, 0, d)) * static_cast<double>(keys.at<float>(0, 0, static_cast<int64_t>(j), d));
    dot *= static_cast<double>(inputs.softmax_scale);
    const auto cap = static_cast<double>(inputs.softcap);
    p[j] = cap > 0 ? cap * std::tanh(dot / cap) : dot;
  }
  const double most = *std::max_element(p.begin(), p.end());
  double total = 0;
  for (double& x : p) total += x = std::exp(x - most);
  for (double& x : p) x /= total;
  return p;
}

/// The best tiles of a map over all its rows, as long as their sum stays within `share` of all. Tiles outside the rows' sight hold 0.
std::vector<uint8_t> best_of_map(const float* map, int64_t size, double share) {
  const double total = std::accumulate(map, map + size, 0.0);
  std::vector<uint8_t> marks(static_cast<size_t>(size), 0);
  if (!std::isfinite(total)) {
    std::fill(marks.begin(), marks.end(), uint8_t{1});
    return marks;
  }
  std::vector<uint64_t> order;  // the value's bits, inverted, above the index: ascending is best first
  for (int64_t i = 0; i < size; ++i) {
    if (map[i] > 0) order.push_back(uint64_t{~std::bit_cast<uint32_t>(map[i])} << 32 | static_cast<uint64_t>(i));
  }
  std::sort(order.begin(), order.end());
  double held = 0;
  for (const uint64_t key : order) {
    const auto i = static_cast<size_t>(key & 0xffffffffu);
    held += static_cast<double>(map[i]);
    if (held > share * total) break;
    marks[i] = 1;
  }
  return marks;
}

}  // namespace

int64_t count_cover(std::span<const float> values, double share) {
  // By the exponent and the upper bits of the mantissa: only the values of one bucket, where the sum passes `share`, need sorting.
  constexpr int kDropped = 19;
  const auto bucket_of = [](float value) { return std::bit_cast<uint32_t>(value > 0 ? value : 0.0f) >> kDropped; };
  constexpr size_t kBuckets = size_t{1} << (31 - kDropped);
  std::array<double, kBuckets> sums{};
  std::array<int64_t, kBuckets> counts{};
  for (const float value : values) {
    sums[bucket_of(value)] += static_cast<double>(value);
    ++counts[bucket_of(value)];
  }
  double held = 0;
  int64_t covered = 0;
  const auto size = static_cast<int64_t>(values.size());
  size_t bucket = kBuckets;
  while (bucket > 0 && held + sums[bucket - 1] <= share) {
    held += sums[--bucket];
    covered += counts[bucket];
  }
  if (bucket > 0) {
    std::vector<float> rest;
    for (const float value : values) {
      if (bucket_of(value) == bucket - 1) rest.push_back(value);
    }
    std::sort(rest.begin(), rest.end(), std::greater<float>());
    for (const float value : rest) {
      held += static_cast<double>(value);
      if (held > share) break;
      ++covered;
    }
  }
  return std::min(covered + 1, size);
}

double jensen_shannon_distance(std::span<const double> p, std::span<const double> q) {
  double divergence = 0;
  for (size_t i = 0; i < p.size(); ++i) {
    const double middle = (p[i] + q[i]) / 2;
    if (p[i] > 0) divergence += p[i] * std::log(p[i] / middle) / 2;
    if (q[i] > 0) divergence += q[i] * std::log(q[i] / middle) / 2;
  }
  return std::sqrt(std::max(divergence, 0.0));  // equal distributions may round below 0
}

Planned flexprefill(const Problem& problem, const FlexPrefillOptions& options, Context& context) {
  check_ranges("flexprefill", options);
  const bool is_on_device = is_on_gpu(problem, context);
  const select::Inputs inputs = inputs_of("flexprefill", problem, is_on_device ? context.device : Device{});
  check(select::is_causal(inputs.mask, inputs.seqlen_k()), Error::Kind::unsupported,
        "flexprefill: the mask is not plainly causal; its lines look back from a query, give Mask::causal()");
  check(options.max_budget == 0 || options.max_budget >= options.min_budget, Error::Kind::value, "flexprefill: option max_budget is ",
        options.max_budget, ", below min_budget ", options.min_budget, "; give at least that, or 0 for no limit");
  const int64_t tile = options.tile, seqlen_k = inputs.seqlen_k(), heads = inputs.heads_q(), batch = inputs.batch();
  const select::RowGrid grid = select::score_rows(inputs, options.tile);
  Planned planned;
  const bool is_short = seqlen_k <= std::max<int64_t>(2, options.min_budget) * tile || grid.rows() == 0;
#ifdef TILEWISE_WITH_CUDA
  if (is_on_device) {
    const select::cuda::FlexParams params{options.gamma, options.tau, options.min_budget, options.max_budget, options.tile};
    planned.plan = is_short ? select::cuda::mask_plan(inputs.mask, inputs.mask, grid, batch, inputs.heads_q(), context)
                            : select::cuda::flex_plan(inputs, params, context);
    return planned;
  }
#endif
  if (is_short) {
    planned.plan = select::plan_of_mask(inputs.mask, inputs.mask, grid, batch, inputs.heads_q(), context);
    return planned;
  }

  const select::LastQuerySums sums = select::last_query_sums("flexprefill", inputs, tile, context);
  const int64_t tiles = (grid.slots_k() + tile - 1) / tile, token_tiles = (seqlen_k + tile - 1) / tile;
  const Tensor mean_q = prepare::mean_pool(inputs.q.slice(2, inputs.seqlen_q() - sums.queries, sums.queries), options.tile, {}, context);
  const Tensor mean_k = select::tile_means(inputs.k, inputs.order_k, options.tile, {}, context);
  std::vector<HeadTiles> chosen(static_cast<size_t>(batch * heads));
  std::vector<uint8_t> asks_for_map(chosen.size(), 0);
  context.parallel_for(batch * heads, [&](int64_t item, int) {
    const int64_t b = item / heads, h = item % heads;
    HeadTiles& head = chosen[static_cast<size_t>(item)];
    std::array<std::vector<float>, 2> means;  // over the queries: by key, by distance
    std::array<int64_t, 2> counts{};
    bool is_known = true;
    for (size_t i = 0; i < 2; ++i) {
      const float* of = i == 0 ? &sums.key.view.at<float>(b, h, 0) : &sums.offset.view.at<float>(b, h, 0);
      means[i].assign(of, of + seqlen_k);
      for (float& value : means[i]) {
        value /= static_cast<float>(sums.queries);
        is_known = is_known && std::isfinite(value);
      }
    }
    const plan::SlotTokens keys = grid.keys(b, static_cast<int>(h));
    const std::vector<float> columns = pooled_sums(means[0].data(), keys, tile), diagonals = pooled_sums(means[1].data(), {nullptr, seqlen_k}, tile);
    for (size_t i = 0; i < 2 && is_known; ++i) {
      counts[i] = std::max<int64_t>(count_cover(means[i], static_cast<double>(options.gamma)) / tile + 1, options.min_budget);
      if (options.max_budget > 0) counts[i] = std::min<int64_t>(counts[i], options.max_budget);
    }
    if (!is_known) counts = {tiles, token_tiles};
    if (is_known && options.tau > 0) {
      const int64_t head_k = h * mean_k.view.dim(1) / heads;
      const std::vector<double> of_mean =
                                    mean_attention(mean_q.view.slice(0, b, 1).slice(1, h, 1), mean_k.view.slice(0, b, 1).slice(1, head_k, 1), inputs),
                                of_queries(columns.begin(), columns.end());
      if (jensen_shannon_distance(of_mean, of_queries) < static_cast<double>(options.tau)) {
        asks_for_map[static_cast<size_t>(item)] = 1;
        counts = {options.min_budget, options.min_budget};
      }
    }
    int64_t first = 0;  // the slot of token 0
    while (keys[first] != 0) ++first;
    // The first column and the diagonal come before all others, and count.
    head.has_column = best_of(columns, counts[0], first / tile);
    head.has_diagonal = best_of(diagonals, counts[1], 0);
  });

  if (std::find(asks_for_map.begin(), asks_for_map.end(), uint8_t{1}) != asks_for_map.end()) {
    const select::Scores map = select::mean_pool_scores(inputs, options.tile, context);
    context.parallel_for(batch * heads, [&](int64_t item, int) {
      if (asks_for_map[static_cast<size_t>(item)] == 0) return;
      chosen[static_cast<size_t>(item)].has_tile =
          best_of_map(map.row(item / heads, item % heads, 0), grid.rows() * tiles, static_cast<double>(options.gamma));
    });
  }

  PlanData data = select::begin_plan(inputs.mask, inputs.mask, grid, batch, inputs.heads_q(), context);
  data.by_query = select::pack_rows(grid, batch, inputs.heads_q(), data, context, [&](int64_t b, int h, int64_t index, plan::PackedRow& row) {
    const HeadTiles& head = chosen[static_cast<size_t>(b * heads + h)];
    std::vector<uint8_t> is_kept = head.has_column;
    std::vector<int64_t> of_queries;  // token tiles
    for (const int64_t token : select::tokens_of_row(grid, b, h, index)) {
      if (token >= 0 && (of_queries.empty() || of_queries.back() != token / tile)) of_queries.push_back(token / tile);
    }
    const plan::SlotTokens keys = grid.keys(b, h);
    const int64_t step = inputs.has_orders() ? 1 : tile;
    for (int64_t slot = 0, before = -1; slot < keys.count; slot += step) {
      if (keys[slot] < 0) continue;
      const int64_t of_key = keys[slot] / tile;
      uint8_t& kept = is_kept[static_cast<size_t>(slot / tile)];
      if (kept != 0 || (of_key == before && slot % tile != 0)) continue;  // as the slot before
      before = of_key;
      for (const int64_t m : of_queries) {
        if (m >= of_key) kept |= head.has_diagonal[static_cast<size_t>(m - of_key)];
      }
    }
    for (int64_t j = 0; j < tiles && !head.has_tile.empty(); ++j)
      is_kept[static_cast<size_t>(j)] |= head.has_tile[static_cast<size_t>(index * tiles + j)];
    select::add_tiles(row, select::visible_keys(inputs.mask, h, b, grid, index, options.tile), is_kept, options.tile);
  });
  planned.plan = make_plan(std::move(data));
  return planned;
}

}  // namespace tilewise::method
