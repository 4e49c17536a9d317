// SPDX-License-Identifier: Apache-2.0
// Systems that read single keys: vertical lines, stripes, links, the best keys of each query, and the queries of each block.
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <set>

#include "tests/plan/systems/harness.h"

namespace tilewise::testing {
namespace {

// picked = the keys that some query of the row reads, with a bit for each that does. `lists` says which keys may be listed there.
void pick(RowRuns& runs, int tile, int64_t first, int64_t last, int64_t keys, const std::function<bool(int64_t q, int64_t k)>& reads) {
  for (int64_t k = 0; k < keys; ++k) {
    std::vector<uint64_t> bits = bits_where(tile, last - first, [&](int64_t slot) { return reads(first + slot, k); });
    if (!is_zero(bits)) add_run(runs.picked, k, k + 1, std::move(bits));
  }
}

TEST(SystemsPicked, MInferenceVerticalSlash) {
  // Heads 0, 1: vertical-slash. Head 2: A-shape, a mask class of its own. Head 3: 64-key blocks.
  const int64_t n = 450, tile = 64, init = 20, local = 150;
  const auto is_vertical = [](int h, int64_t k) { return draw_one_in(20, {h, k, 79}); };
  // Slash offsets, largest first; 0 always, so that the diagonal is read.
  const auto offsets = [](int h) { return h == 0 ? std::vector<int64_t>{301, 177, 90, 13, 0} : std::vector<int64_t>{222, 200, 64, 0}; };
  // 3.3: for rows of 64 queries from r, an offset o becomes the range [r - o, r - o + 64) widened so that all its diagonals fit; touching ranges join.
  const auto ranges = [&](int h, int64_t first) {
    std::vector<std::pair<int64_t, int64_t>> result;
    for (const int64_t offset : offsets(h)) {
      int64_t start = std::max<int64_t>(first - offset, 0), stop = first - offset + tile;
      if (stop <= 0) continue;
      stop = std::max(stop, start + tile);
      stop = std::min(stop, n);
      if (!result.empty() && start <= result.back().second)
        result.back().second = std::max(result.back().second, stop);
      else
        result.emplace_back(start, stop);
    }
    return result;
  };
  const auto in_ranges = [&](int h, int64_t first, int64_t k) {
    for (const auto& [start, stop] : ranges(h, first)) {
      if (k >= start && k < stop) return true;
    }
    return false;
  };
  const auto keeps_block = [](int64_t row, int64_t j) { return j == row || draw_one_in(3, {row, j, 83}); };
  PlanData data = plan_data(n, n, {.bands = {{n, 0, 0}, {local - 1, 0, init}}, .head_class = {0, 0, 1, 0}});
  make_by_query(data, 64, kHeadsQ, [&](int64_t, int g, int64_t row, int64_t first, int64_t last) {
    RowRuns runs;
    if (g == 3) {
      for (int64_t j = 0; j <= row; ++j) {
        if (keeps_block(row, j)) add_run(j == row ? runs.masked : runs.whole, j * tile, std::min(j * tile + tile, n));
      }
    } else if (g == 2) {
      const int64_t sink = std::min(init, first), low_first = std::max(sink, first - local + 1), low_last = std::max(sink, last - local);
      add_run(runs.whole, 0, sink);
      add_run(runs.masked, low_first, std::min(low_last, first));
      add_run(runs.whole, low_last, first);
      add_run(runs.masked, first, last);
    } else {
      for (const auto& [start, stop] : ranges(g, first)) {
        add_run(runs.whole, start, std::min(stop, first));
        add_run(runs.masked, std::max(start, first), stop);
      }
      for (int64_t k = 0; k < first; ++k) {
        if (is_vertical(g, k) && !in_ranges(g, first, k)) add_run(runs.picked, k, k + 1);
      }
    }
    return runs;
  });
  check_system({"minference", make_plan(std::move(data)), [=](int64_t, int h, int64_t q, int64_t k) {
                  if (k > q) return false;
                  if (h == 3) return keeps_block(q / tile, k / tile);
                  if (h == 2) return k < init || q - k < local;
                  return in_ranges(h, q / tile * tile, k) || (is_vertical(h, k) && k < q / tile * tile);
                }});
}

TEST(SystemsPicked, AnchorAttention) {
  // Rows of 32, 4 rows share the stripes of their group (16 rows of 128 in the paper).
  const int64_t n = 470, block = 32, span = 128;
  const auto is_stripe = [](int h, int64_t g, int64_t k) { return draw_one_in(5, {h, g, k, 89}); };
  PlanData data = plan_data(n, n, Mask::causal());
  make_by_query(data, 32, kHeadsQ, [&](int64_t, int h, int64_t, int64_t first, int64_t last) {
    const int64_t group = first / span * span, window = std::max(block, group - block);
    RowRuns runs;
    add_run(runs.whole, 0, std::min(block, first));
    add_run(runs.whole, window, first);
    add_run(runs.masked, first, last);
    for (int64_t k = block; k < group - block; ++k) {
      if (is_stripe(h, group, k)) add_run(runs.picked, k, k + 1);
    }
    return runs;
  });
  const Plan plan = make_plan(std::move(data));
  // The rows of a group share one list: the builder stores it once.
  for (int64_t row = 9; row < 12; ++row) {
    EXPECT_EQ(plan->by_query.picked.begin.at<int64_t>(0, 0, row), plan->by_query.picked.begin.at<int64_t>(0, 0, 8));
  }
  check_system({"anchorattention", plan, [=](int64_t, int h, int64_t q, int64_t k) {
                  const int64_t group = q / span * span;
                  return k <= q && (k < block || k >= group - block || is_stripe(h, group, k));
                }});
}

TEST(SystemsPicked, AxFormer) {
  // The K best keys of each query among the real ones; full plan with padding beside it.
  const int64_t n = 150, real = 141, best = 17;
  const auto score = [](int h, int64_t q, int64_t k) { return draw(40, {h, q, k, 97}); };  // ties are common
  const auto keeps = [=](int h, int64_t q, int64_t k) {
    if (k >= real) return false;
    int64_t before = 0;
    for (int64_t other = 0; other < real; ++other)
      before += score(h, q, other) > score(h, q, k) || (score(h, q, other) == score(h, q, k) && other < k) ? 1 : 0;
    return before < best;
  };
  PlanData data = plan_data(n, n, Mask::full());
  make_by_query(data, 64, kHeadsQ, [&](int64_t, int g, int64_t, int64_t first, int64_t last) {
    RowRuns runs;
    pick(runs, 64, first, last, n, [&](int64_t q, int64_t k) { return keeps(g, q, k); });
    return runs;
  });
  check_system({"axformer kept", make_plan(std::move(data)), [=](int64_t, int h, int64_t q, int64_t k) { return keeps(h, q, k); }});
  PlanData full = plan_data(n, n, Mask::full());
  make_by_query(full, 64, 1, [&](int64_t, int, int64_t, int64_t, int64_t) { return RowRuns{{{0, 141, {}}}, {}, {}}; });
  check_system({"axformer full", make_plan(std::move(full)), [=](int64_t, int, int64_t, int64_t k) { return k < real; }});
}

TEST(SystemsPicked, OrionMsp) {
  // Specials see all and are seen by all; others see a window and two random links.
  const int64_t specials = 6, window = 8;
  for (const int64_t n : {int64_t{112}, int64_t{300}}) {
    const auto is_linked = [=](int64_t q, int64_t k) {
      for (int64_t i = 0; i < 2; ++i) {
        if (k == specials + draw(n - specials, {q, i, n, 101})) return true;
      }
      return false;
    };
    const auto reads = [=](int64_t q, int64_t k) { return q < specials || k < specials || std::abs(q - k) <= window || is_linked(q, k); };
    std::vector<int32_t> edge{0, static_cast<int32_t>(specials)};
    while (edge.back() < n) edge.push_back(static_cast<int32_t>(std::min<int64_t>(edge.back() + 64, n)));
    PlanData data = plan_data(n, n, Mask::full());
    make_by_query(
        data, 64, 1,
        [&](int64_t, int, int64_t row, int64_t first, int64_t last) {
          RowRuns runs;
          if (row == 0) {
            add_run(runs.whole, 0, n);
            return runs;
          }
          const int64_t start = std::max(specials, last - 1 - window), stop = std::min(n, first + window + 1);
          add_run(runs.whole, 0, specials);
          add_run(runs.whole, start, stop);
          pick(runs, 64, first, last, n, [&](int64_t q, int64_t k) { return k >= specials && (k < start || k >= stop) && reads(q, k); });
          return runs;
        },
        edge);
    check_system({"orion_msp", make_plan(std::move(data)), [=](int64_t, int, int64_t q, int64_t k) { return reads(q, k); }});
  }
}

TEST(SystemsPicked, SmoeGot) {
  // A causal window and a graph of the nearest tokens: a key in some windows and linked from other queries stands once.
  const int64_t n = 333, window = 90;
  const auto is_linked = [=](int64_t q, int64_t k) { return k < q && draw_one_in(25, {q, k, 103}); };
  const auto reads = [=](int64_t q, int64_t k) { return k <= q && (q - k < window || is_linked(q, k)); };
  PlanData data = plan_data(n, n, Mask::causal());
  make_by_query(data, 64, 1, [&](int64_t, int, int64_t, int64_t first, int64_t last) {
    RowRuns runs;
    const int64_t start = std::max<int64_t>(0, last - window), stop = first + 1;  // in every query's window
    add_run(runs.whole, start, stop);
    pick(runs, 64, first, last, n, [&](int64_t q, int64_t k) { return (k < start || k >= stop) && reads(q, k); });
    return runs;
  });
  check_system({"smoe_got graph", make_plan(std::move(data)), [=](int64_t, int, int64_t q, int64_t k) { return reads(q, k); }});

  // Documents by spans, causal inside.
  const std::vector<int32_t> starts{0, 57, 60, 201, 333};
  PlanData documents = plan_data(n, n, {});
  std::vector<int32_t> spans;
  const auto start_of = [=](int64_t q) { return *(std::upper_bound(starts.begin(), starts.end(), q) - 1); };
  for (int64_t q = 0; q < n; ++q) spans.insert(spans.end(), {start_of(q), static_cast<int32_t>(q + 1), 0, 0});
  make_spans(documents, spans);
  make_by_query(documents, 64, 1, [&](int64_t, int, int64_t, int64_t first, int64_t last) {
    RowRuns runs;
    add_run(runs.masked, start_of(first), last);
    return runs;
  });
  check_system(
      {"smoe_got documents", make_plan(std::move(documents)), [=](int64_t, int, int64_t q, int64_t k) { return k <= q && k >= start_of(q); }});
}

TEST(SystemsPicked, HyperSigmaRounded) {
  // Sampling at learned positions has no plan; rounded to cells it is `picked` with one bit a query. The positions of a query are distinct and inside.
  const int64_t side = 15, n = side * side, points = 9;
  const auto reads = [=](int h, int64_t q, int64_t k) {
    const int64_t shift_y = draw(3, {h, q, 107}) - 1, shift_x = draw(3, {h, q, 109}) - 1;
    const int64_t y = std::clamp<int64_t>(q / side + shift_y, 1, side - 2), x = std::clamp<int64_t>(q % side + shift_x, 1, side - 2);
    return std::abs(k / side - y) <= 1 && std::abs(k % side - x) <= 1;
  };
  PlanData data = plan_data(n, n, Mask::full());
  make_by_query(data, 64, kHeadsQ, [&](int64_t, int g, int64_t, int64_t first, int64_t last) {
    RowRuns runs;
    pick(runs, 64, first, last, n, [&](int64_t q, int64_t k) { return reads(g, q, k); });
    return runs;
  });
  for (int64_t q = 0; q < n; ++q) {
    int64_t count = 0;
    for (int64_t k = 0; k < n; ++k) count += reads(1, q, k) ? 1 : 0;
    ASSERT_EQ(count, points);
  }
  check_system({"hypersigma rounded", make_plan(std::move(data)), [=](int64_t, int h, int64_t q, int64_t k) { return reads(h, q, k); }});
  PlanData blocks = plan_data(n, n, Mask::full());
  make_by_query(blocks, 64, 1, [&](int64_t, int, int64_t, int64_t, int64_t) { return RowRuns{{{0, static_cast<int32_t>(n), {}}}, {}, {}}; });
  check_system({"hypersigma full blocks", make_plan(std::move(blocks)), [](int64_t, int, int64_t, int64_t) { return true; }});
}

TEST(SystemsPicked, VMoba) {
  // Blocks of unlike length under a block order; by_key first: a block's own queries are one whole run, those that chose it are single picked slots.
  const std::vector<int32_t> block_first{0, 70, 97, 180, 250, 331};
  const int64_t n = 331, blocks = 5;
  std::vector<int32_t> tokens(static_cast<size_t>(n));
  std::iota(tokens.begin(), tokens.end(), 0);
  std::sort(tokens.begin(), tokens.end(),
            [](int32_t a, int32_t c) { return std::pair{draw(5000, {a, 113}), a} < std::pair{draw(5000, {c, 113}), c}; });
  const auto block_of = [=](int64_t slot) { return std::upper_bound(block_first.begin(), block_first.end(), slot) - block_first.begin() - 1; };
  const auto chooses = [=](int h, int64_t query_slot, int64_t block) {
    return block_of(query_slot) == block || draw_one_in(3, {h, query_slot, block, 127});
  };

  PlanData data = plan_data(n, n, Mask::full());
  data.order_q = make_order(data, tokens);
  data.order_k = data.order_q;
  std::vector<int32_t> edge{0};
  for (int64_t block = 0; block < blocks; ++block) {
    while (edge.back() < block_first[static_cast<size_t>(block) + 1])
      edge.push_back(std::min(edge.back() + 64, block_first[static_cast<size_t>(block) + 1]));
  }
  ListsBuilder builder(64, 1, kHeadsQ, static_cast<int64_t>(edge.size()) - 1, edge);
  for (int h = 0; h < kHeadsQ; ++h) {
    for (size_t row = 0; row + 1 < edge.size(); ++row) {
      const int64_t block = block_of(edge[row]);
      if (row > 0 && block_of(edge[row - 1]) == block) {  // pieces of a block share one list
        builder.share(0, h, static_cast<int64_t>(row),
                      static_cast<int64_t>(std::lower_bound(edge.begin(), edge.end(), block_first[static_cast<size_t>(block)]) - edge.begin()));
        continue;
      }
      RowRuns runs;
      add_run(runs.whole, block_first[static_cast<size_t>(block)], block_first[static_cast<size_t>(block) + 1]);
      for (int64_t slot = 0; slot < n; ++slot) {
        if (block_of(slot) != block && chooses(h, slot, block)) add_run(runs.picked, slot, slot + 1);
      }
      builder.set(0, h, static_cast<int64_t>(row), std::move(runs));
    }
  }
  data.by_key = builder.build_by_key(host_memory(), data);
  std::vector<int64_t> slot_of(static_cast<size_t>(n));
  for (int64_t slot = 0; slot < n; ++slot) slot_of[static_cast<size_t>(tokens[static_cast<size_t>(slot)])] = slot;
  check_system({"vmoba", make_plan(std::move(data)), [=](int64_t, int h, int64_t q, int64_t k) {
                  return chooses(h, slot_of[static_cast<size_t>(q)], block_of(slot_of[static_cast<size_t>(k)]));
                }});
}

}  // namespace
}  // namespace tilewise::testing
