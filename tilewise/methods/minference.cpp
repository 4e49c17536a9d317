// SPDX-License-Identifier: Apache-2.0
#include "tilewise/methods/minference.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <optional>

#include "tilewise/methods/problem.h"
#include "tilewise/plan/make.h"
#include "tilewise/select/last_queries.h"
#include "tilewise/select/lines.h"
#include "tilewise/select/mean_pool.h"
#include "tilewise/select/pack_rows.h"
#include "tilewise/select/plan.h"

namespace tilewise::method {
namespace {

using Head = MInferenceOptions::Head;
using Pattern = MInferenceOptions::Pattern;

constexpr int kLeastVertical = 30, kLeastSlash = 50;  // of the released code: fewer lines are never asked for

/// What each head reads, sizes scaled by `ratio`.
std::vector<Head> heads_of(const MInferenceOptions& options, int heads_q) {
  check(options.heads.empty() || static_cast<int>(options.heads.size()) == heads_q, Error::Kind::value, "minference: option heads names ",
        options.heads.size(), " heads, q has ", heads_q, "; give one pattern for each, or none");
  std::vector<Head> heads = options.heads;
  if (heads.empty()) {
    Head all{options.pattern, {options.vertical, options.slash}};
    if (options.pattern == Pattern::a_shape) all = {options.pattern, {options.init, options.local}};
    if (options.pattern == Pattern::block_sparse) all = {options.pattern, {options.blocks, 0}};
    heads.assign(static_cast<size_t>(heads_q), all);
  }
  for (size_t h = 0; h < heads.size(); ++h) {
    Head& head = heads[h];
    check(head.pattern <= Pattern::block_sparse && head.sizes[0] >= 0 && head.sizes[1] >= (head.pattern == Pattern::a_shape ? 1 : 0),
          Error::Kind::value, "minference: head ", h, " has the sizes ", head.sizes[0], " and ", head.sizes[1],
          "; they take 0 or more, a window at least 1");
    for (int& size : head.sizes) {
      const double scaled = std::floor(static_cast<double>(size) * static_cast<double>(options.ratio));
      size = static_cast<int>(std::min(scaled, static_cast<double>(1 << 30)));
    }
    if (head.pattern == Pattern::a_shape) head.sizes[1] = std::max(head.sizes[1], 1);
  }
  return heads;
}

/// Causal for the heads that look for their keys, a band of its own for each size of the others.
Mask mask_of(const std::vector<Head>& heads) {
  Mask mask = Mask::causal();
  for (const Head& head : heads) {
    Mask::Band band = mask.bands[0];
    if (head.pattern == Pattern::a_shape) band = {head.sizes[1] - 1, 0, head.sizes[0]};
    const auto at = std::find(mask.bands.begin(), mask.bands.end(), band);
    mask.head_class.push_back(static_cast<uint8_t>(at - mask.bands.begin()));
    if (at == mask.bands.end()) mask.bands.push_back(band);
    check(mask.bands.size() <= 16, Error::Kind::value, "minference: heads have more than 15 different sizes of a_shape; one plan takes 16 bands");
  }
  return mask;
}

/// The tiles of the `count` largest products among those that the row sees, and its own.
void add_best_tiles(plan::PackedRow& row, const float* products, const select::Visible& visible, int64_t count, int tile) {
  std::vector<select::Interval> parts = visible.whole;
  parts.insert(parts.end(), visible.masked.begin(), visible.masked.end());
  if (parts.empty()) return;
  const int64_t tiles = (parts.back().last + tile - 1) / tile;  // a causal row sees one stretch from key 0
  std::vector<uint8_t> is_kept(static_cast<size_t>(tiles), count >= tiles ? 1 : 0);
  if (count < tiles) {
    // Floats as integers of the same order, inverted, above the index: the smallest are the best, ties go to the smaller index.
    std::vector<uint64_t> keys(static_cast<size_t>(tiles));
    for (int64_t j = 0; j < tiles; ++j) {
      const uint32_t bits = std::bit_cast<uint32_t>(products[j]);
      const uint32_t rising = (bits >> 31) != 0 ? ~bits : bits | 0x80000000u;
      keys[static_cast<size_t>(j)] = uint64_t{std::isnan(products[j]) ? 0 : ~rising} << 32 | static_cast<uint64_t>(j);
    }
    if (count > 0) std::nth_element(keys.begin(), keys.begin() + static_cast<std::ptrdiff_t>(count - 1), keys.end());
    for (int64_t i = 0; i < count; ++i) is_kept[static_cast<size_t>(keys[static_cast<size_t>(i)] & 0xffffffffu)] = 1;
  }
  is_kept.back() = 1;  // the released code forces none, and then a row may be empty
  select::add_tiles(row, visible, is_kept, tile);
}

bool has(const std::vector<Head>& heads, Pattern pattern) {
  return std::any_of(heads.begin(), heads.end(), [&](const Head& head) { return head.pattern == pattern; });
}

}  // namespace

Planned minference(const Problem& problem, const MInferenceOptions& options, Context& context) {
  check_ranges("minference", options);
  const select::Inputs inputs = inputs_of("minference", problem);
  refuse_orders("minference", problem);
  check(select::is_causal(inputs.mask, inputs.seqlen_k()), Error::Kind::unsupported,
        "minference: the mask is not plainly causal; all three patterns look back from a query, give Mask::causal()");
  const std::vector<Head> heads = heads_of(options, inputs.heads_q());
  const Mask read = mask_of(heads);
  const auto grid = select::RowGrid::on_key_tiles(inputs.seqlen_q(), inputs.seqlen_k(), options.tile);
  const int64_t batch = inputs.batch(), num_heads = inputs.heads_q(), seqlen_k = inputs.seqlen_k();

  select::LastQuerySums sums;
  if (has(heads, Pattern::vertical_slash)) sums = select::last_query_sums("minference", inputs, options.last, context);
  select::Scores products;
  if (has(heads, Pattern::block_sparse)) products = select::mean_pool_products(inputs, options.tile, context);

  PlanData data = select::begin_plan(read, inputs.mask, grid, batch, inputs.heads_q(), context);
  std::vector<std::optional<select::LineRows>> lines(static_cast<size_t>(batch * num_heads));
  context.parallel_for(batch * num_heads, [&](int64_t item, int) {
    const int64_t b = item / num_heads, h = item % num_heads;
    const Head& head = heads[static_cast<size_t>(h)];
    if (head.pattern != Pattern::vertical_slash) return;
    select::Lines chosen;
    if (seqlen_k > 0) {
      const select::LineCounts counts{std::max(head.sizes[0], kLeastVertical), std::max(head.sizes[1], kLeastSlash), options.first, options.nearest};
      chosen = select::best_lines(&sums.key.view.at<float>(b, h, 0), &sums.offset.view.at<float>(b, h, 0), seqlen_k, counts);
    }
    lines[static_cast<size_t>(item)].emplace(std::move(chosen), options.tile, seqlen_k,
                                             options.aligned ? select::LineRows::Cover::aligned : select::LineRows::Cover::exact);
  });

  data.by_query = select::pack_rows(grid, batch, inputs.heads_q(), data, context, [&](int64_t b, int h, int64_t index, plan::PackedRow& row) {
    const Head& head = heads[static_cast<size_t>(h)];
    if (head.pattern == Pattern::vertical_slash) {
      lines[static_cast<size_t>(b * num_heads + h)]->set_row(grid.first(index) + grid.offset(), grid.last(index) + grid.offset(), row);
      return;
    }
    const select::Visible visible = select::visible_keys(read, h, b, grid, index, options.tile);
    if (head.pattern == Pattern::a_shape) {
      select::add_visible(row, visible);
    } else {
      add_best_tiles(row, products.row(b, h, index), visible, head.sizes[0], options.tile);
    }
  });
  Planned planned;
  planned.plan = make_plan(std::move(data));
  return planned;
}

}  // namespace tilewise::method
