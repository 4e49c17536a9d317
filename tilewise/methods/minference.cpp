// SPDX-License-Identifier: Apache-2.0
#include "tilewise/methods/minference.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <functional>
#include <optional>

#include "tilewise/methods/problem.h"
#include "tilewise/plan/make.h"
#include "tilewise/select/forced.h"
#include "tilewise/select/last_queries.h"
#include "tilewise/select/lines.h"
#include "tilewise/select/mean_pool.h"
#include "tilewise/select/pack_rows.h"
#include "tilewise/select/plan.h"
#ifdef TILEWISE_WITH_CUDA
#include "tilewise/select/cuda/patterns.h"
#endif

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

/// The tiles of the `count` largest products among those that the row sees, and those of its own tokens.
void add_best_tiles(plan::PackedRow& row, const select::Scores& products, int64_t b, int head, int64_t index, const select::Visible& visible,
                    int64_t count) {
  const int tile = products.tile_k;
  const float* values = products.row(b, head, index);
  std::vector<uint8_t> is_kept, is_seen(static_cast<size_t>(products.key_tiles()), 0);
  // The released code forces no tile, and then a row may be empty.
  select::mark_forced_tiles(products.grid, b, head, index, tile, 0, 1, is_kept);
  std::vector<uint64_t> keys;
  for (const std::vector<select::Interval>* parts : {&visible.whole, &visible.masked}) {
    for (const select::Interval& part : *parts) {
      for (int64_t j = part.first / tile; j * tile < part.last; ++j) {
        if (is_seen[static_cast<size_t>(j)] != 0) continue;
        is_seen[static_cast<size_t>(j)] = 1;
        // Floats as integers of the same order, inverted, above the index: the smallest are the best, ties go to the smaller index.
        const uint32_t bits = std::bit_cast<uint32_t>(values[j]);
        const uint32_t rising = (bits >> 31) != 0 ? ~bits : bits | 0x80000000u;
        keys.push_back(uint64_t{std::isnan(values[j]) ? 0 : ~rising} << 32 | static_cast<uint64_t>(j));
      }
    }
  }
  count = std::min(count, static_cast<int64_t>(keys.size()));
  if (count > 0) std::nth_element(keys.begin(), keys.begin() + static_cast<std::ptrdiff_t>(count - 1), keys.end());
  for (int64_t i = 0; i < count; ++i) is_kept[static_cast<size_t>(keys[static_cast<size_t>(i)] & 0xffffffffu)] = 1;
  select::add_tiles(row, visible, is_kept, tile);
}

bool has(const std::vector<Head>& heads, Pattern pattern) {
  return std::any_of(heads.begin(), heads.end(), [&](const Head& head) { return head.pattern == pattern; });
}

select::Inputs checked_inputs(const Problem& problem, const MInferenceOptions& options, Device device = {}) {
  check_ranges("minference", options);
  select::Inputs inputs = inputs_of("minference", problem, device);
  check(select::is_causal(inputs.mask, inputs.seqlen_k()), Error::Kind::unsupported,
        "minference: the mask is not plainly causal; all three patterns look back from a query, give Mask::causal()");
  return inputs;
}

/// Refuses lines that a caller gives unless they are one per head, ascending and at least 0.
void check_lines(const std::vector<select::Lines>& lines, int64_t batch, int64_t heads) {
  const auto count = static_cast<int64_t>(lines.size());
  check(count == heads || count == batch * heads, Error::Kind::value, "minference: option lines names ", count, " heads, q has ", batch, " x ", heads,
        "; give lines for each head, or for each head of each batch entry");
  for (size_t item = 0; item < lines.size(); ++item) {
    for (const std::vector<int32_t>* list : {&lines[item].vertical, &lines[item].slash}) {
      const bool is_rising =
          (list->empty() || list->front() >= 0) && std::adjacent_find(list->begin(), list->end(), std::greater_equal<>()) == list->end();
      check(is_rising, Error::Kind::value, "minference: option lines of head ", item, list == &lines[item].vertical ? ": vertical" : ": slash",
            " is not ascending from 0 on without repeats; sort it");
    }
  }
}

#ifdef TILEWISE_WITH_CUDA
/// The same on the GPU of the context.
Plan plan_on_device(const select::Inputs& inputs, const MInferenceOptions& options, const std::vector<Head>& heads, const Mask& read,
                    const Context& context) {
  using select::cuda::PatternHead;
  check(options.lines.empty(), Error::Kind::unsupported,
        "minference: option lines is not built on a GPU; leave it out and each call estimates its own, or plan on the host");
  select::cuda::PatternParams params{
      .read = read, .tile = options.tile, .aligned = options.aligned, .last = options.last, .first = options.first, .nearest = options.nearest};
  for (const Head& head : heads) {
    PatternHead pattern;
    pattern.kind = head.pattern == Pattern::vertical_slash ? PatternHead::Kind::lines
                   : head.pattern == Pattern::a_shape      ? PatternHead::Kind::band
                                                           : PatternHead::Kind::tiles;
    if (head.pattern == Pattern::vertical_slash) {
      pattern.vertical = std::max(head.sizes[0], kLeastVertical);
      pattern.slash = std::max(head.sizes[1], kLeastSlash);
    } else if (head.pattern == Pattern::block_sparse) {
      pattern.tiles = head.sizes[0];
    }
    params.heads.push_back(pattern);
  }
  return select::cuda::pattern_plan(inputs, params, context);
}
#endif

/// The lines of each vertical-slash head: given, cut to the keys that there are, or estimated.
std::vector<select::Lines> lines_of(const select::Inputs& inputs, const MInferenceOptions& options, const std::vector<Head>& heads,
                                    Context& context) {
  const int64_t batch = inputs.batch(), num_heads = inputs.heads_q(), seqlen_k = inputs.seqlen_k();
  std::vector<select::Lines> lines(static_cast<size_t>(batch * num_heads));
  if (!options.lines.empty()) check_lines(options.lines, batch, num_heads);
  if (!has(heads, Pattern::vertical_slash)) return lines;
  select::LastQuerySums sums;
  if (options.lines.empty()) sums = select::last_query_sums("minference", inputs, options.last, context);
  context.parallel_for(batch * num_heads, [&](int64_t item, int) {
    const int64_t b = item / num_heads, h = item % num_heads;
    const Head& head = heads[static_cast<size_t>(h)];
    if (head.pattern != Pattern::vertical_slash || seqlen_k == 0) return;
    select::Lines& chosen = lines[static_cast<size_t>(item)];
    if (!options.lines.empty()) {
      chosen = options.lines[static_cast<size_t>(item) % options.lines.size()];
      for (std::vector<int32_t>* list : {&chosen.vertical, &chosen.slash})
        list->erase(std::lower_bound(list->begin(), list->end(), seqlen_k), list->end());
      return;
    }
    const select::LineCounts counts{std::max(head.sizes[0], kLeastVertical), std::max(head.sizes[1], kLeastSlash), options.first, options.nearest};
    chosen = select::best_lines(&sums.key.view.at<float>(b, h, 0), &sums.offset.view.at<float>(b, h, 0), seqlen_k, counts);
  });
  return lines;
}

}  // namespace

std::vector<select::Lines> minference_lines(const Problem& problem, const MInferenceOptions& options, Context& context) {
  const select::Inputs inputs = checked_inputs(problem, options);
  return lines_of(inputs, options, heads_of(options, inputs.heads_q()), context);
}

Planned minference(const Problem& problem, const MInferenceOptions& options, Context& context) {
  const bool is_on_device = is_on_gpu(problem, context);
  const select::Inputs inputs = checked_inputs(problem, options, is_on_device ? context.device : Device{});
  const std::vector<Head> heads = heads_of(options, inputs.heads_q());
  const Mask read = mask_of(heads);
  Planned planned;
#ifdef TILEWISE_WITH_CUDA
  if (is_on_device) {
    planned.plan = plan_on_device(inputs, options, heads, read, context);
    return planned;
  }
#endif
  const select::RowGrid grid = select::score_rows(inputs, options.tile);
  const int64_t batch = inputs.batch(), num_heads = inputs.heads_q(), seqlen_k = inputs.seqlen_k();

  std::vector<select::Lines> chosen = lines_of(inputs, options, heads, context);
  select::Scores products;
  if (has(heads, Pattern::block_sparse)) products = select::mean_pool_products(inputs, options.tile, context);

  PlanData data = select::begin_plan(read, inputs.mask, grid, batch, inputs.heads_q(), context);
  std::vector<std::optional<select::LineRows>> lines(static_cast<size_t>(batch * num_heads));
  context.parallel_for(batch * num_heads, [&](int64_t item, int) {
    if (heads[static_cast<size_t>(item % num_heads)].pattern != Pattern::vertical_slash) return;
    lines[static_cast<size_t>(item)].emplace(std::move(chosen[static_cast<size_t>(item)]), options.tile, seqlen_k,
                                             options.aligned ? select::LineRows::Cover::aligned : select::LineRows::Cover::exact);
  });

  data.by_query = select::pack_rows(grid, batch, inputs.heads_q(), data, context, [&](int64_t b, int h, int64_t index, plan::PackedRow& row) {
    const Head& head = heads[static_cast<size_t>(h)];
    if (head.pattern == Pattern::vertical_slash) {
      const select::LineRows& of_head = *lines[static_cast<size_t>(b * num_heads + h)];
      if (!inputs.has_orders()) {
        of_head.set_row(grid.first(index) + grid.offset(), grid.last(index) + grid.offset(), row);
        return;
      }
      const std::vector<int64_t> tokens = select::tokens_of_row(grid, b, h, index);
      of_head.set_row(tokens, grid.keys(b, h), static_cast<int64_t>(tokens.size()) < grid.last(index) - grid.first(index), row);
      return;
    }
    const select::Visible visible = select::visible_keys(read, h, b, grid, index, options.tile);
    if (head.pattern == Pattern::a_shape) {
      select::add_visible(row, visible);
    } else {
      add_best_tiles(row, products, b, h, index, visible, head.sizes[0]);
    }
  });
  planned.plan = make_plan(std::move(data));
  return planned;
}

}  // namespace tilewise::method
