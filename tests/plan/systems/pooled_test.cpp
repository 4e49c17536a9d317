// SPDX-License-Identifier: Apache-2.0
// Systems that read mean keys beside tokens: a pooled key counts as many times as it holds real tokens.
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "tests/plan/systems/harness.h"

namespace tilewise::testing {
namespace {

std::vector<int32_t> shuffled(int64_t n, int64_t seed) {
  std::vector<int32_t> tokens(static_cast<size_t>(n));
  std::iota(tokens.begin(), tokens.end(), 0);
  std::sort(tokens.begin(), tokens.end(),
            [&](int32_t a, int32_t c) { return std::pair{draw(9000, {a, seed}), a} < std::pair{draw(9000, {c, seed}), c}; });
  return tokens;
}

std::vector<int64_t> inverted(const std::vector<int32_t>& tokens, int64_t n) {
  std::vector<int64_t> slot_of(static_cast<size_t>(n));
  for (size_t slot = 0; slot < tokens.size(); ++slot) {
    if (tokens[slot] >= 0) slot_of[static_cast<size_t>(tokens[slot])] = static_cast<int64_t>(slot);
  }
  return slot_of;
}

// Tokens of each pooled key: groups of neighbouring slots, pool after pool.
std::vector<std::vector<int64_t>> groups_of(const std::vector<int32_t>& tokens, const std::vector<int>& pools) {
  std::vector<std::vector<int64_t>> groups;
  for (const int group : pools) {
    for (size_t first = 0; first < tokens.size(); first += static_cast<size_t>(group)) {
      groups.emplace_back();
      for (size_t slot = first; slot < std::min(tokens.size(), first + static_cast<size_t>(group)); ++slot) {
        if (tokens[slot] >= 0) groups.back().push_back(tokens[slot]);
      }
    }
  }
  return groups;
}

// Which pool a pooled key lies in, and its number there.
std::pair<size_t, int64_t> place_of(int64_t pooled, int64_t slots, const std::vector<int>& pools) {
  size_t pool = 0;
  for (; pooled >= (slots + pools[pool] - 1) / pools[pool]; ++pool) pooled -= (slots + pools[pool] - 1) / pools[pool];
  return {pool, pooled};
}

TEST(SystemsPooled, Psa) {
  // Each key block of 32 is read at level 1 (its tokens), 2, 4 or 8 (pooled), or not at all.
  const int64_t n = 333, block = 32, tile = 64;
  const std::vector<int> pools{2, 4, 8};
  const std::vector<int64_t> offset{n, n + 167, n + 167 + 84};
  for (const bool is_causal : {false, true}) {
    const std::vector<int32_t> tokens = is_causal ? [] {
      std::vector<int32_t> plain(333);
      std::iota(plain.begin(), plain.end(), 0);
      return plain;
    }()
                                                  : shuffled(n, 131);
    const auto level_of = [=](int h, int64_t row, int64_t j) -> int64_t {
      if (is_causal && (j + 1) * block > row * tile) return 1;  // at the diagonal
      const int64_t choice = draw(5, {h, row, j, 137});
      return choice == 4 ? 0 : int64_t{1} << choice;
    };
    PlanData data = plan_data(n, n, is_causal ? Mask::causal() : Mask::full());
    data.pools = pools;
    if (!is_causal) {
      data.order_q = make_order(data, tokens);
      data.order_k = data.order_q;
    }
    make_by_query(data, 64, kHeadsQ, [&](int64_t, int g, int64_t row, int64_t first, int64_t last) {
      RowRuns runs;
      for (int64_t j = 0; j * block < (is_causal ? last : n); ++j) {
        const int64_t level = level_of(g, row, j), stop = std::min(j * block + block, n);
        if (level == 0) continue;
        // A pooled key's token is the last it holds; keys that the row's first query does not see are tested.
        std::vector<tilewise::Run>& list = is_causal && stop > first + 1 ? runs.masked : runs.whole;
        if (level == 1) {
          add_run(list, j * block, stop);
          continue;
        }
        const int64_t base = offset[static_cast<size_t>(level == 2 ? 0 : level == 4 ? 1 : 2)];
        add_run(list, base + j * block / level, base + (stop + level - 1) / level);
      }
      return runs;
    });
    const std::vector<int64_t> slot_of = inverted(tokens, n);
    const auto groups = groups_of(tokens, pools);
    check_system({is_causal ? "psa causal" : "psa", make_plan(std::move(data)),
                  [=](int64_t, int h, int64_t q, int64_t key) {
                    const int64_t row = slot_of[static_cast<size_t>(q)] / tile;
                    if (key < n) return (!is_causal || key <= q) && level_of(h, row, slot_of[static_cast<size_t>(key)] / block) == 1;
                    const auto [pool, index] = place_of(key - n, n, pools);
                    if (is_causal && std::min((index + 1) * pools[pool], n) - 1 > q) return false;
                    return level_of(h, row, index * pools[pool] / block) == pools[pool];
                  },
                  [=](int64_t, int) { return groups; }});
  }
}

TEST(SystemsPooled, Llsa) {
  // B = 4, pools of 4 and 16, rows of 16 slots = the 4 query blocks of one level-2 parent. Ragged: the last block is padded.
  const int64_t n = 202, slots = 204, base = 4;
  const std::vector<int> pools{4, 16};
  const int64_t level1 = slots, keys1 = 51, level2 = slots + keys1, keys2 = 13;
  std::vector<int32_t> tokens = shuffled(n, 139);
  tokens.resize(static_cast<size_t>(slots), -1);
  // Level 2 is read whole; a parent chooses level-2 keys whose children it reads at level 1; each query block chooses fine blocks.
  const auto chooses1 = [=](int h, int64_t parent, int64_t key2) { return key2 == parent || draw_one_in(3, {h, parent, key2, 149}); };
  const auto chooses0 = [=](int h, int64_t query_block, int64_t key_block) {
    return key_block == query_block || draw_one_in(6, {h, query_block, key_block, 151});
  };
  PlanData data = plan_data(n, n, Mask::full());
  data.pools = pools;
  data.order_q = make_order(data, tokens);
  data.order_k = data.order_q;
  make_by_query(data, 16, kHeadsQ, [&](int64_t, int g, int64_t row, int64_t first, int64_t last) {
    RowRuns runs;
    for (int64_t b = 0; b < slots / base; ++b) {
      std::vector<uint64_t> bits = bits_where(16, last - first, [&](int64_t slot) { return chooses0(g, (first + slot) / base, b); });
      if (!is_zero(bits)) add_run(runs.masked, b * base, b * base + base, std::move(bits));
    }
    for (int64_t key2 = 0; key2 < keys2; ++key2) {
      if (chooses1(g, row, key2)) add_run(runs.whole, level1 + key2 * base, std::min(level1 + key2 * base + base, level1 + keys1));
    }
    add_run(runs.whole, level2, level2 + keys2);
    return runs;
  });
  const std::vector<int64_t> slot_of = inverted(tokens, n);
  const auto groups = groups_of(tokens, pools);
  check_system({"llsa", make_plan(std::move(data)),
                [=](int64_t, int h, int64_t q, int64_t key) {
                  const int64_t slot = slot_of[static_cast<size_t>(q)];
                  if (key < n) return chooses0(h, slot / base, slot_of[static_cast<size_t>(key)] / base);
                  const auto [pool, index] = place_of(key - n, slots, pools);
                  return pool == 1 || chooses1(h, slot / 16, index / base);
                },
                [=](int64_t, int) { return groups; }});
}

TEST(SystemsPooled, LlsaCausal) {
  // No order; a pooled key is visible where its last token lies before the query's block, the own block is causal.
  const int64_t n = 203, base = 4, keys1 = 51, keys2 = 13;
  const std::vector<int> pools{4, 16};
  const auto is_past = [=](int64_t query_block, int64_t size, int64_t index) { return std::min((index + 1) * size, n) - 1 < query_block * base; };
  const auto chooses1 = [=](int h, int64_t parent, int64_t key2) { return key2 == parent || draw_one_in(3, {h, parent, key2, 157}); };
  const auto chooses0 = [=](int h, int64_t query_block, int64_t key_block) {
    return key_block == query_block || (key_block < query_block && draw_one_in(5, {h, query_block, key_block, 163}));
  };
  PlanData data = plan_data(n, n, Mask::causal());
  data.pools = pools;
  make_by_query(data, 16, kHeadsQ, [&](int64_t, int g, int64_t row, int64_t first, int64_t last) {
    RowRuns runs;
    const auto add = [&](int64_t start, int64_t stop, const std::function<bool(int64_t)>& reads) {
      std::vector<uint64_t> bits = bits_where(16, last - first, [&](int64_t slot) { return reads((first + slot) / base); });
      if (!is_zero(bits)) add_run(runs.masked, start, stop, std::move(bits));
    };
    for (int64_t b = 0; b * base < last; ++b)
      add(b * base, std::min(b * base + base, n), [&](int64_t query_block) { return chooses0(g, query_block, b); });
    for (int64_t key1 = 0; key1 < keys1; ++key1) {
      if (!chooses1(g, row, key1 / base)) continue;
      add(n + key1, n + key1 + 1, [&](int64_t query_block) { return is_past(query_block, 4, key1); });
    }
    for (int64_t key2 = 0; key2 < keys2; ++key2) {
      add(n + keys1 + key2, n + keys1 + key2 + 1, [&](int64_t query_block) { return is_past(query_block, 16, key2); });
    }
    return runs;
  });
  std::vector<int32_t> plain(static_cast<size_t>(n));
  std::iota(plain.begin(), plain.end(), 0);
  const auto groups = groups_of(plain, pools);
  check_system({"llsa causal", make_plan(std::move(data)),
                [=](int64_t, int h, int64_t q, int64_t key) {
                  if (key < n) return key <= q && chooses0(h, q / base, key / base);
                  const auto [pool, index] = place_of(key - n, n, pools);
                  return is_past(q / base, pools[pool], index) && (pool == 1 || chooses1(h, q / 16, index / base));
                },
                [=](int64_t, int) { return groups; }});
}

TEST(SystemsPooled, VideoBladeAsa) {
  // Chosen blocks of slots, and every pooled key in each row: a chosen token counts twice, by design. Groups of any size; text last.
  const int64_t image = 300, text = 17, n = image + text, block = 128;
  const std::vector<int> pools{11};
  std::vector<int32_t> tokens = shuffled(image, 167);
  for (int64_t t = image; t < n; ++t) tokens.push_back(static_cast<int32_t>(t));
  const auto keeps = [](int h, int64_t row, int64_t j) { return row == 2 || j == 2 || draw_one_in(2, {h, row, j, 173}); };  // text lies in tile 2
  for (const bool has_pool : {true, false}) {
    PlanData data = plan_data(n, n, Mask::full());
    if (has_pool) data.pools = pools;
    data.order_q = make_order(data, tokens);
    data.order_k = data.order_q;
    make_by_query(data, 128, kHeadsQ, [&](int64_t, int g, int64_t row, int64_t, int64_t) {
      RowRuns runs;
      for (int64_t j = 0; j * block < n; ++j) {
        if (keeps(g, row, j)) add_run(runs.whole, j * block, std::min(j * block + block, n));
      }
      if (has_pool) add_run(runs.whole, n, n + (n + 10) / 11);
      return runs;
    });
    const std::vector<int64_t> slot_of = inverted(tokens, n);
    const auto groups = has_pool ? groups_of(tokens, pools) : std::vector<std::vector<int64_t>>{};
    check_system({has_pool ? "asa with pool" : "asa", make_plan(std::move(data)),
                  [=](int64_t, int h, int64_t q, int64_t key) {
                    return key >= n || keeps(h, slot_of[static_cast<size_t>(q)] / block, slot_of[static_cast<size_t>(key)] / block);
                  },
                  [=](int64_t, int) { return groups; }});
  }
}

}  // namespace
}  // namespace tilewise::testing
