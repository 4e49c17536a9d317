// SPDX-License-Identifier: Apache-2.0
// Neighbourhoods of grids under box orders (GNA).
#include <gtest/gtest.h>

#include <algorithm>

#include "tests/plan/systems/harness.h"

namespace tilewise::testing {
namespace {

// gna.md 3.1 and 3.2 for one axis, by the letter: the keys that query i sees.
std::vector<uint8_t> axis_keys(const Mask::Axis& axis, int i) {
  std::vector<uint8_t> sees(static_cast<size_t>(axis.length), 0);
  const int d = axis.dilation, group = i % d, at = i / d, w = axis.window, s = axis.stride;
  const int length = axis.length / d + (group < axis.length % d ? 1 : 0);
  const int left = w / 2, right = w / 2 + (w % 2) - 1;
  int start, end;
  if (axis.is_causal) {
    const int leader = std::min((at / s) * s + s - 1, length - 1);
    start = std::max(leader - left - right, 0);
    end = std::min(at + 1, length);
  } else {
    const int leader = std::min((at / s) * s + s / 2, length - 1);
    start = std::max(leader - left, 0);
    if (leader + right >= length) start = length - w;
    end = start + w;
  }
  for (int j = start; j < end; ++j) sees[static_cast<size_t>(j * d + group)] = 1;
  return sees;
}

// Dilation group by group, box by box, cell by cell; incomplete boxes are filled with -1; text last.
std::vector<int32_t> box_order(const std::vector<Mask::Axis>& grid, const std::vector<int>& box, int64_t text) {
  const size_t axes = grid.size();
  int64_t cells = 1, groups = 1;
  for (const Mask::Axis& axis : grid) {
    cells *= axis.length;
    groups *= axis.dilation;
  }
  std::vector<int32_t> tokens;
  for (int64_t group = 0; group < groups; ++group) {
    std::vector<int> residue(axes), boxes(axes);
    int64_t rest = group, count = 1, size = 1;
    for (size_t a = axes; a-- > 0;) {
      residue[a] = static_cast<int>(rest % grid[a].dilation);
      rest /= grid[a].dilation;
      // Every group has the boxes of the longest one, as one call of the kernel asks.
      const int length = (grid[a].length + grid[a].dilation - 1) / grid[a].dilation;
      boxes[a] = (length + box[a] - 1) / box[a];
      count *= boxes[a];
      size *= box[a];
    }
    for (int64_t at = 0; at < count; ++at) {
      for (int64_t cell = 0; cell < size; ++cell) {
        int64_t box_rest = at, cell_rest = cell, token = 0, factor = 1;
        bool is_real = true;
        for (size_t a = axes; a-- > 0;) {
          const int64_t coordinate = ((box_rest % boxes[a]) * box[a] + cell_rest % box[a]) * grid[a].dilation + residue[a];
          box_rest /= boxes[a];
          cell_rest /= box[a];
          is_real = is_real && coordinate < grid[a].length;
          token += coordinate * factor;
          factor *= grid[a].length;
        }
        tokens.push_back(is_real ? static_cast<int32_t>(token) : -1);
      }
    }
  }
  for (int64_t t = 0; t < text; ++t) tokens.push_back(static_cast<int32_t>(cells + t));
  return tokens;
}

struct Problem {
  std::string name;
  std::vector<Mask::Axis> grid;
  std::vector<int> box_q, box_k;
  int64_t text;
};

void check_grid(const Problem& problem) {
  const std::vector<Mask::Axis>& grid = problem.grid;
  int64_t cells = 1;
  for (const Mask::Axis& axis : grid) cells *= axis.length;
  const int64_t n = cells + problem.text;
  const auto sees = [=](int64_t q, int64_t k) {
    if (q >= cells || k >= cells) return true;
    for (size_t a = grid.size(); a-- > 0;) {
      if (axis_keys(grid[a], static_cast<int>(q % grid[a].length))[static_cast<size_t>(k % grid[a].length)] == 0) return false;
      q /= grid[a].length;
      k /= grid[a].length;
    }
    return true;
  };
  // The second class of heads sees its whole dilation group: another window, the same grid.
  std::vector<Mask::Axis> wide = grid;
  for (Mask::Axis& axis : wide) {
    axis.window = axis.length / axis.dilation;
    axis.stride = 1;
    axis.is_causal = false;
  }
  const auto sees_wide = [=](int64_t q, int64_t k) {
    if (q >= cells || k >= cells) return true;
    for (size_t a = wide.size(); a-- > 0;) {
      if (axis_keys(wide[a], static_cast<int>(q % wide[a].length))[static_cast<size_t>(k % wide[a].length)] == 0) return false;
      q /= wide[a].length;
      k /= wide[a].length;
    }
    return true;
  };
  Mask mask;
  mask.grids = {grid, wide};
  mask.head_class = {0, 0, 0, 1};
  PlanData data = plan_data(n, n, mask);
  const std::vector<int32_t> tokens_q = box_order(grid, problem.box_q, problem.text), tokens_k = box_order(grid, problem.box_k, problem.text);
  data.order_q = make_order(data, tokens_q);
  data.order_k = make_order(data, tokens_k);
  data.order_q.boxes = BoxOrder{{}, problem.box_q, {}};
  data.order_k.boxes = BoxOrder{{}, problem.box_k, {}};
  for (const Mask::Axis& axis : grid) {
    for (Order* order : {&data.order_q, &data.order_k}) {
      order->boxes->grid.push_back(axis.length);
      order->boxes->dilation.push_back(axis.dilation);
    }
  }
  int tile = 1, grain = 1;
  for (size_t a = 0; a < grid.size(); ++a) {
    tile *= problem.box_q[a];
    grain *= problem.box_k[a];
  }
  const auto slots_k = static_cast<int64_t>(tokens_k.size());
  make_by_query(data, tile, kHeadsQ, [&](int64_t, int g, int64_t, int64_t first, int64_t last) {
    RowRuns runs;
    for (int64_t start = 0; start < slots_k; start += grain) {
      const int64_t stop = std::min(start + grain, slots_k);
      bool is_any = false, is_all = true;
      for (int64_t key = start; key < stop; ++key) {
        const int32_t k = tokens_k[static_cast<size_t>(key)];
        if (k < 0) is_all = false;
        for (int64_t slot = first; slot < last && k >= 0; ++slot) {
          const int32_t q = tokens_q[static_cast<size_t>(slot)];
          if (q < 0) continue;
          const bool is_seen = g == 3 ? sees_wide(q, k) : sees(q, k);
          is_any = is_any || is_seen;
          is_all = is_all && is_seen;
        }
      }
      if (is_any) add_run(is_all ? runs.whole : runs.masked, start, stop);
    }
    return runs;
  });
  check_system(
      {problem.name, make_plan(std::move(data)), [=](int64_t, int h, int64_t q, int64_t k) { return h == 3 ? sees_wide(q, k) : sees(q, k); }});
}

TEST(SystemsGrid, GnaStridedVideoWithText) {
  check_grid({"gna strided", {{6, 3, 2, 1, false}, {7, 4, 1, 1, false}, {5, 4, 3, 1, false}}, {2, 4, 2}, {2, 2, 4}, 13});
}

TEST(SystemsGrid, GnaCausalTime) {
  check_grid({"gna causal", {{6, 3, 2, 1, true}, {8, 5, 1, 1, false}, {5, 2, 2, 1, false}}, {2, 4, 2}, {2, 4, 2}, 0});
}

TEST(SystemsGrid, GnaDilated) { check_grid({"gna dilated", {{13, 4, 2, 2, false}, {11, 3, 1, 3, false}}, {4, 4}, {2, 8}, 5}); }

TEST(SystemsGrid, GnaOneAxis) { check_grid({"gna one axis", {{333, 64, 32, 1, false}}, {64}, {32}, 7}); }

TEST(SystemsGrid, GnaFullyBlockSparse) { check_grid({"gna block-sparse", {{16, 8, 8, 1, false}, {16, 8, 8, 1, false}}, {8, 8}, {8, 8}, 0}); }

}  // namespace
}  // namespace tilewise::testing
