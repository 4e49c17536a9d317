// SPDX-License-Identifier: Apache-2.0
#include "tilewise/select/lines.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <numeric>

#include "tilewise/select/pack_rows.h"

namespace tilewise::select {

std::vector<int32_t> largest(const float* values, int64_t size, int64_t count, int64_t forced) {
  count = std::clamp<int64_t>(count, 0, size);
  std::vector<int32_t> indices(static_cast<size_t>(count));
  if (count == size) {
    std::iota(indices.begin(), indices.end(), 0);
    return indices;
  }
  if (count == 0) return indices;
  // The bits of positive floats order as the floats do: one integer holds the value, inverted, above the index.
  std::vector<uint64_t> keys(static_cast<size_t>(size));
  for (int64_t i = 0; i < size; ++i) {
    const uint32_t bits = i < forced ? 0 : ~std::bit_cast<uint32_t>(values[i] > 0 ? values[i] : 0.0f);
    keys[static_cast<size_t>(i)] = uint64_t{bits} << 32 | static_cast<uint64_t>(i);
  }
  const uint64_t last = [&] {
    const auto nth = keys.begin() + static_cast<std::ptrdiff_t>(count - 1);
    std::vector<uint64_t> order(keys);
    const auto at = order.begin() + (nth - keys.begin());
    std::nth_element(order.begin(), at, order.end());
    return *at;
  }();
  size_t next = 0;
  for (int64_t i = 0; i < size; ++i) {
    if (keys[static_cast<size_t>(i)] <= last) indices[next++] = static_cast<int32_t>(i);
  }
  return indices;
}

Lines best_lines(const float* key_sums, const float* offset_sums, int64_t seqlen_k, const LineCounts& counts) {
  const auto is_finite = [&](const float* sums) { return std::all_of(sums, sums + seqlen_k, [](float x) { return std::isfinite(x); }); };
  const bool is_known = is_finite(key_sums) && is_finite(offset_sums);
  Lines lines;
  lines.vertical = largest(key_sums, seqlen_k, is_known ? counts.vertical : 0, counts.first_keys);
  lines.slash = largest(offset_sums, seqlen_k, is_known ? counts.slash : seqlen_k, counts.nearest_offsets);
  return lines;
}

LineRows::LineRows(Lines lines, int tile, int64_t seqlen_k, Cover cover)
    : lines_(std::move(lines)), tile_(tile), seqlen_k_(seqlen_k), cover_(cover), nearest_below_(static_cast<size_t>(seqlen_k), -1) {
  for (const int32_t offset : lines_.slash) nearest_below_[static_cast<size_t>(offset)] = offset;
  int32_t below = -1;
  for (int32_t& offset : nearest_below_) offset = below = std::max(below, offset);
  has_column_.assign(static_cast<size_t>((seqlen_k + tile - 1) / tile), 0);
  for (const int32_t key : lines_.vertical) has_column_[static_cast<size_t>(key / tile)] = 1;
}

/// Whether one of the queries [first, last) reaches one of the keys [first, last) over a kept offset: the largest one up to the farthest pair's tells.
bool LineRows::is_on_slash(int64_t first_query, int64_t last_query, int64_t first_key, int64_t last_key) const {
  const int64_t farthest = std::min(last_query - 1 - first_key, seqlen_k_ - 1);
  return farthest >= 0 && nearest_below_[static_cast<size_t>(farthest)] >= std::max<int64_t>(0, first_query - (last_key - 1));
}

/// The ranges of the row that ends at token `end`, ascending and apart.
template <class Body>
void LineRows::for_ranges(int64_t end, Body&& body) const {
  // The offset that reaches furthest back, of those that end behind key `after`.
  const auto next_offset = [&](int64_t after) {
    const int64_t below = std::min(end - after, seqlen_k_) - 1;
    return below < 0 ? int64_t{-1} : int64_t{nearest_below_[static_cast<size_t>(below)]};
  };
  int64_t offset = next_offset(0);
  if (offset < 0) return;
  Range range{0, std::max(end - offset, tile_)};
  range.first = range.last - tile_;
  while ((offset = next_offset(range.last)) >= 0) {
    const int64_t reach = end - offset;
    if (reach > range.last + tile_) {
      body(range);
      range = {reach - tile_, reach};
    } else {
      range.last += tile_;
    }
  }
  body(range);
}

void LineRows::set_row(int64_t first, int64_t last, plan::PackedRow& row) const {
  if (last <= 0 || seqlen_k_ == 0) return;
  first = std::max<int64_t>(first, 0);
  if (cover_ == Cover::aligned) return set_aligned_row(first, last, row);
  const int64_t end = (last - 1) / tile_ * tile_ + tile_, seen = std::min(last, seqlen_k_);
  auto vertical = lines_.vertical.begin();
  const auto add_verticals = [&](int64_t before) {
    for (; vertical != lines_.vertical.end() && *vertical < before; ++vertical)
      add_run(row, *vertical <= first ? plan::Kind::picked : plan::Kind::masked, *vertical, *vertical + 1);
  };
  for_ranges(end, [&](Range range) {
    const int64_t start = range.first, stop = std::min(range.last, seen);
    if (start >= stop) return;
    add_verticals(start);
    while (vertical != lines_.vertical.end() && *vertical < stop) ++vertical;
    // Keys up to the first query are seen by all; whole runs keep a length that one copy of a tile can fetch.
    const int64_t untested = start + std::max<int64_t>(0, std::min(stop, first + 1) - start) / tile_ * tile_;
    add_run(row, plan::Kind::whole, start, untested);
    add_run(row, plan::Kind::masked, untested, stop);
  });
  add_verticals(seen);
}

void LineRows::set_aligned_row(int64_t first, int64_t last, plan::PackedRow& row) const {
  const int64_t seen = std::min(last, seqlen_k_);
  for (int64_t start = 0; start < seen; start += tile_) {
    const int64_t stop = std::min(start + tile_, seen);
    if (has_column_[static_cast<size_t>(start / tile_)] == 0 && !is_on_slash(first, last, start, stop)) continue;
    // Keys up to the first query are seen by all; whole runs keep a length that one copy of a tile can fetch.
    add_run(row, stop == start + tile_ && stop <= first + 1 ? plan::Kind::whole : plan::Kind::masked, start, stop);
  }
}

void LineRows::set_row(const std::vector<int64_t>& tokens, const plan::SlotTokens& keys, bool is_tested, plan::PackedRow& row) const {
  if (tokens.empty()) return;
  std::vector<Range> stretches;  // of neighbouring tokens
  for (const int64_t token : tokens) {
    if (!stretches.empty() && stretches.back().last == token)
      ++stretches.back().last;
    else
      stretches.push_back({token, token + 1});
  }
  const auto is_reached = [&](int64_t k) {
    return std::any_of(stretches.begin(), stretches.end(), [&](const Range& of) { return is_on_slash(of.first, of.last, k, k + 1); });
  };
  enum class Read : uint8_t { no, picked, run };
  std::vector<Read> reads(static_cast<size_t>(keys.count), Read::no);
  for (int64_t slot = 0; slot < keys.count; ++slot) {
    const int64_t k = keys[slot];
    if (k < 0 || k > tokens.back()) continue;
    Read& read = reads[static_cast<size_t>(slot)];
    if (is_reached(k))
      read = Read::run;
    else if (std::binary_search(lines_.vertical.begin(), lines_.vertical.end(), static_cast<int32_t>(k)))
      read = Read::picked;
  }
  for (int64_t start = 0; cover_ == Cover::aligned && start < keys.count; start += tile_) {
    const auto first = reads.begin() + start, last = reads.begin() + std::min(keys.count, start + tile_);
    if (std::all_of(first, last, [](Read read) { return read == Read::no; })) continue;
    for (auto at = first; at != last; ++at) {
      const int64_t k = keys[at - reads.begin()];
      if (k >= 0 && k <= tokens.back()) *at = Read::run;
    }
  }
  for (int64_t slot = 0; slot < keys.count; ++slot) {
    const Read read = reads[static_cast<size_t>(slot)];
    if (read == Read::no) continue;
    const bool is_masked = is_tested || keys[slot] > tokens.front();
    add_run(row, is_masked ? plan::Kind::masked : read == Read::run ? plan::Kind::whole : plan::Kind::picked, slot, slot + 1);
  }
}

}  // namespace tilewise::select
