// SPDX-License-Identifier: Apache-2.0
#include "tilewise/plan/visible.h"

#include <algorithm>
#include <map>
#include <numeric>
#include <utility>

#include "tilewise/plan/rows.h"

namespace tilewise::plan {
namespace {

struct Cover {
  std::vector<Interval> all, some;  // seen by every query of the row, by at least one; ascending
};

Cover cover_of_spans(const TensorView& spans, int head_class, int64_t batch, int64_t q_first, int64_t q_last, int64_t seqlen_k) {
  std::map<int64_t, int64_t> change;  // key -> how many queries begin minus end to see it there
  const int64_t b = spans.dim(1) == 1 ? 0 : batch;
  for (int64_t q = q_first; q < q_last; ++q) {
    const auto bound = [&](int i) { return std::clamp<int64_t>(spans.at<int32_t>(head_class, b, q, i), 0, seqlen_k); };
    Interval one{bound(0), bound(1)}, two{bound(2), bound(3)};
    if (two.first < one.first) std::swap(one, two);
    std::vector<Interval> seen;  // at most two, joined where they overlap, so that no query counts twice
    append(seen, one.first, one.last, seqlen_k);
    append(seen, two.first, two.last, seqlen_k);
    for (const Interval& part : seen) {
      ++change[part.first];
      --change[part.last];
    }
  }
  Cover cover;
  int64_t seen_by = 0;
  for (auto it = change.begin(); it != change.end(); ++it) {
    seen_by += it->second;
    const auto next = std::next(it);
    if (next == change.end()) break;
    if (seen_by > 0) append(cover.some, it->first, next->first, seqlen_k);
    if (seen_by == q_last - q_first) append(cover.all, it->first, next->first, seqlen_k);
  }
  return cover;
}

}  // namespace

int64_t Visible::length() const {
  int64_t total = 0;
  for (const Interval& interval : whole) total += interval.length();
  for (const Interval& interval : masked) total += interval.length();
  return total;
}

int64_t RowGrid::last(int64_t row) const { return edge.empty() ? std::min(slots_q(), (row + 1) * tile) : edge[static_cast<size_t>(row) + 1]; }

SlotTokens RowGrid::queries(int64_t b, int head) const {
  if (!order_q.token.has_value()) return {nullptr, seqlen_q};
  return {&order_q.token.at<int32_t>(batch_index(order_q.token, b), group_index(order_q.token, head, heads), 0), slots_q()};
}

SlotTokens RowGrid::keys(int64_t b, int head) const {
  if (!order_k.token.has_value()) return {nullptr, seqlen_k};
  return {&order_k.token.at<int32_t>(batch_index(order_k.token, b), group_index(order_k.token, head, heads), 0), slots_k()};
}

int64_t RowGrid::real_queries(int64_t b, int head, int64_t row) const {
  if (!order_q.token.has_value()) return last(row) - first(row);
  const SlotTokens tokens = queries(b, head);
  int64_t count = 0;
  for (int64_t slot = first(row); slot < last(row); ++slot) count += tokens[slot] >= 0 ? 1 : 0;
  return count;
}

RowGrid RowGrid::on_key_tiles(int64_t seqlen_q, int64_t seqlen_k, int tile) {
  RowGrid grid = plain(seqlen_q, seqlen_k, tile);
  if (seqlen_q == 0 || grid.offset() % tile == 0) return grid;
  grid.edge.push_back(0);
  for (int64_t slot = ceil_to(grid.offset(), tile) - grid.offset(); slot < seqlen_q; slot += tile) grid.edge.push_back(static_cast<int32_t>(slot));
  grid.edge.push_back(static_cast<int32_t>(seqlen_q));
  return grid;
}

namespace {

/// What queries of given tokens see of one key.
enum class Sight : uint8_t { none, some, all };

Sight sight_of_band(const Mask::Band& band, const std::vector<int64_t>& tokens, int64_t least, int64_t most, int64_t k) {
  if (band.right != Mask::kAll && k > most + band.right) return Sight::none;
  if (k < band.sink || band.left == Mask::kAll) return band.right == Mask::kAll || k <= least + band.right ? Sight::all : Sight::some;
  if (k < least - band.left) return Sight::none;
  if (k >= most - band.left && (band.right == Mask::kAll || k <= least + band.right)) return Sight::all;
  size_t seen = 0;
  for (const int64_t token : tokens) seen += band_allows(band, token, k) ? 1 : 0;
  return seen == 0 ? Sight::none : seen == tokens.size() ? Sight::all : Sight::some;
}

Sight sight_of_spans(const TensorView& spans, int head_class, int64_t batch, const std::vector<int64_t>& queries, int64_t k) {
  const int64_t b = spans.dim(1) == 1 ? 0 : batch;
  size_t seen = 0;
  for (const int64_t query : queries) {
    const auto bound = [&](int i) { return spans.at<int32_t>(head_class, b, query, i); };
    seen += (k >= bound(0) && k < bound(1)) || (k >= bound(2) && k < bound(3)) ? 1 : 0;
  }
  return seen == 0 ? Sight::none : seen == queries.size() ? Sight::all : Sight::some;
}

Visible visible_slots(const Mask& mask, int head, int64_t batch, const RowGrid& grid, int64_t row) {
  const SlotTokens of_query = grid.queries(batch, head), of_key = grid.keys(batch, head);
  std::vector<int64_t> queries, tokens;
  for (int64_t slot = grid.first(row); slot < grid.last(row); ++slot) {
    if (of_query[slot] < 0) continue;
    queries.push_back(of_query[slot]);
    tokens.push_back(of_query[slot] + grid.offset());
  }
  Visible visible;
  if (queries.empty()) return visible;
  // `whole` promises that every slot of the row may see the key; a padding slot is not one that may.
  const bool has_padding = static_cast<int64_t>(queries.size()) < grid.last(row) - grid.first(row);
  const auto [least, most] = std::minmax_element(tokens.begin(), tokens.end());
  const int index = head_class(mask, head);
  for (int64_t slot = 0; slot < of_key.count; ++slot) {
    const int64_t k = of_key[slot];
    if (k < 0) continue;
    const Sight sight = !mask.grids.empty()      ? Sight::some
                        : mask.spans.has_value() ? sight_of_spans(mask.spans, index, batch, queries, k)
                                                 : sight_of_band(mask.bands[static_cast<size_t>(index)], tokens, *least, *most, k);
    if (sight != Sight::none) append(sight == Sight::all && !has_padding ? visible.whole : visible.masked, slot, slot + 1, of_key.count);
  }
  return visible;
}

bool has_many(const TensorView& order, int axis) { return order.has_value() && order.dim(axis) > 1; }

}  // namespace

Visible visible_keys(const Mask& mask, int head, int64_t batch, const RowGrid& grid, int64_t row, int align) {
  if (grid.has_orders()) return visible_slots(mask, head, batch, grid, row);
  const int64_t q_first = grid.first(row), q_last = grid.last(row), end = grid.seqlen_k;
  Visible visible;
  if (q_first >= q_last || end == 0) return visible;
  if (!mask.grids.empty()) {
    visible.masked.push_back({0, end});
    return visible;
  }
  const int index = head_class(mask, head);
  if (!mask.spans.has_value()) {
    const BandSight sight = band_sight(mask.bands[static_cast<size_t>(index)], q_first + grid.offset(), q_last - 1 + grid.offset(), end, align);
    visible.whole.assign(sight.whole.begin(), sight.whole.end());
    visible.masked.assign(sight.masked.begin(), sight.masked.end());
    return visible;
  }
  const Cover cover = cover_of_spans(mask.spans, index, batch, q_first, q_last, end);
  for (const Interval& interval : cover.all) {
    append(visible.whole, ceil_to(interval.first, align), interval.last == end ? end : floor_to(interval.last, align), end);
  }
  append_without(visible.masked, cover.some, visible.whole);
  return visible;
}

bool is_causal(const Mask& mask, int64_t seqlen_k) {
  return !mask.bands.empty() && std::all_of(mask.bands.begin(), mask.bands.end(), [&](const Mask::Band& band) {
    return band.right == 0 && (band.left >= seqlen_k - 1 || band.sink >= seqlen_k);
  });
}

bool is_full(const Mask& mask, int64_t seqlen_q, int64_t seqlen_k) {
  return !mask.bands.empty() && std::all_of(mask.bands.begin(), mask.bands.end(), [&](const Mask::Band& band) {
    // The first query is token Sk - Sq and must reach key Sk - 1.
    return band.right >= std::max<int64_t>(seqlen_q - 1, 0) && (band.left >= seqlen_k - 1 || band.sink >= seqlen_k);
  });
}

bool differs_by_head(const Mask& mask) {
  return std::any_of(mask.head_class.begin(), mask.head_class.end(), [&](uint8_t c) { return c != mask.head_class.front(); });
}

bool differs_by_batch(const Mask& mask) { return mask.spans.has_value() && mask.spans.dim(1) > 1; }

bool differs_by_head(const Mask& mask, const RowGrid& grid) {
  return differs_by_head(mask) || has_many(grid.order_q.token, 1) || has_many(grid.order_k.token, 1);
}

bool differs_by_batch(const Mask& mask, const RowGrid& grid) {
  return differs_by_batch(mask) || has_many(grid.order_q.token, 0) || has_many(grid.order_k.token, 0);
}

std::vector<int64_t> dense_reads_of_heads(const Mask& mask, const RowGrid& grid, int64_t batch, int heads) {
  const int64_t entries = differs_by_batch(mask, grid) ? batch : std::min<int64_t>(batch, 1);
  const bool has_order_of_head = has_many(grid.order_q.token, 1) || has_many(grid.order_k.token, 1);
  std::vector<int64_t> reads(differs_by_head(mask, grid) ? static_cast<size_t>(heads) : 1, 0);
  std::vector<int> head_of_class(256, -1);
  for (int head = 0; head < static_cast<int>(reads.size()); ++head) {
    int& same = head_of_class[static_cast<size_t>(head_class(mask, head))];
    if (same >= 0 && !has_order_of_head) {
      reads[static_cast<size_t>(head)] = reads[static_cast<size_t>(same)];
      continue;
    }
    same = head;
    int64_t& total = reads[static_cast<size_t>(head)];
    for (int64_t b = 0; b < entries; ++b) {
      for (int64_t row = 0; row < grid.rows(); ++row) {
        total += grid.real_queries(b, head, row) * visible_keys(mask, head, b, grid, row, grid.tile).length();
      }
    }
    if (entries > 0) total *= batch / entries;
  }
  return reads;
}

int64_t dense_reads(const Mask& mask, const RowGrid& grid, int64_t batch, int heads) {
  const std::vector<int64_t> reads = dense_reads_of_heads(mask, grid, batch, heads);
  return std::accumulate(reads.begin(), reads.end(), int64_t{0}) * (heads / static_cast<int>(reads.size()));
}

void set_dense_reads(PlanData& plan, const Mask& model, const RowGrid& grid) {
  std::vector<int64_t> reads = dense_reads_of_heads(model, grid, plan.batch, plan.heads_q);
  const bool is_alike = reads.size() == 1;
  plan.dense_reads = std::accumulate(reads.begin(), reads.end(), int64_t{0}) * (is_alike ? plan.heads_q : 1);
  plan.dense_reads_of_head = is_alike ? std::vector<int64_t>{} : std::move(reads);
}

}  // namespace tilewise::plan
