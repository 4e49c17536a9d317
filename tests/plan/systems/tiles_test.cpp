// SPDX-License-Identifier: Apache-2.0
// Systems that choose tiles or runs of keys for each tile of queries.
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "tests/plan/systems/harness.h"

namespace tilewise::testing {
namespace {

// Chosen blocks of `block` keys for rows of `tile` queries, whole below the diagonal and masked from it on (Sq = Sk, causal), or all whole.
using Keeps = std::function<bool(int64_t b, int h, int64_t row, int64_t key_block)>;
RowRuns tile_row(const Keeps& keeps, int64_t b, int g, int64_t row, int64_t first, int64_t last, int64_t block, int64_t n, bool is_causal) {
  RowRuns runs;
  for (int64_t j = 0; j * block < (is_causal ? last : n); ++j) {
    if (keeps(b, g, row, j)) add_run(is_causal && (j + 1) * block > first ? runs.masked : runs.whole, j * block, std::min(j * block + block, n));
  }
  return runs;
}

void check_tiles(const std::string& name, int64_t n, int tile, int64_t block, bool is_causal, const Keeps& keeps, int64_t batch = 1) {
  PlanData data = plan_data(n, n, is_causal ? Mask::causal() : Mask::full(), batch);
  make_by_query(
      data, tile, kHeadsQ,
      [&](int64_t b, int g, int64_t row, int64_t first, int64_t last) { return tile_row(keeps, b, g, row, first, last, block, n, is_causal); }, {},
      batch);
  check_system({name, make_plan(std::move(data)),
                [=](int64_t b, int h, int64_t q, int64_t k) { return (!is_causal || k <= q) && keeps(b, h, q / tile, k / block); }});
}

TEST(SystemsTiles, AdaSpa) {
  // 64 x 64 blocks, the text blocks at the end kept by all; batch entries apart. A causal variant has the diagonal masked.
  const Keeps keeps = [](int64_t b, int h, int64_t row, int64_t j) { return j == 5 || row == 5 || draw_one_in(3, {b, h, row, j, 11}); };
  check_tiles("adaspa", 333, 64, 64, false, keeps, 2);
  check_tiles("adaspa causal", 333, 64, 64, true, [&](int64_t b, int h, int64_t row, int64_t j) { return j == row || keeps(b, h, row, j); });
}

TEST(SystemsTiles, XAttention) {
  const Keeps keeps = [](int64_t, int h, int64_t row, int64_t j) {
    if (h == 3) return j == 0 || j == row;  // a threshold of 0 keeps sink and diagonal alone
    return j == 0 || j == row || draw_one_in(2, {h, row, j, 23});
  };
  check_tiles("xattention", 500, 128, 128, true, keeps);
  check_tiles("xattention bidirectional", 500, 128, 128, false, keeps);
}

TEST(SystemsTiles, XAttentionChunk) {
  // Sq < Sk and an offset that is no multiple of the tile: tiles sit at absolute key positions, so the first row is short.
  const int64_t seqlen_q = 200, seqlen_k = 370, shift = 170, tile = 128;
  const std::vector<int32_t> edge{0, 86, 200};  // 170 + 86 = 256
  const auto keeps = [](int h, int64_t query_tile, int64_t j) { return j == 0 || j == query_tile || draw_one_in(2, {h, query_tile, j, 29}); };
  PlanData data = plan_data(seqlen_q, seqlen_k, Mask::causal());
  make_by_query(
      data, 128, kHeadsQ,
      [&](int64_t, int g, int64_t, int64_t first, int64_t last) {
        RowRuns runs;
        for (int64_t j = 0; j * tile < last + shift; ++j) {
          if (!keeps(g, (first + shift) / tile, j)) continue;
          add_run((j + 1) * tile > first + shift + 1 ? runs.masked : runs.whole, j * tile, std::min(j * tile + tile, seqlen_k));
        }
        return runs;
      },
      edge);
  check_system({"xattention chunk", make_plan(std::move(data)),
                [=](int64_t, int h, int64_t q, int64_t k) { return k <= q + shift && keeps(h, (q + shift) / tile, k / tile); }});
}

TEST(SystemsTiles, XAttentionVideoWithText) {
  // Visual tiles end at the segment's border; spans part the visual segment from the text.
  const int64_t visual = 300, n = 340, tile = 128;
  const std::vector<int32_t> edge{0, 128, 256, 300, 340};
  const auto keeps = [](int h, int64_t row, int64_t j) { return j == row || draw_one_in(2, {h, row, j, 31}); };
  PlanData data = plan_data(n, n, {});
  std::vector<int32_t> spans;
  for (int64_t q = 0; q < n; ++q) {
    if (q < visual)
      spans.insert(spans.end(), {0, visual, 0, 0});
    else
      spans.insert(spans.end(), {visual, n, 0, 0});
  }
  make_spans(data, spans);
  make_by_query(
      data, 128, kHeadsQ,
      [&](int64_t, int g, int64_t row, int64_t first, int64_t) {
        RowRuns runs;
        if (first >= visual) {
          add_run(runs.whole, visual, n);
          return runs;
        }
        for (int64_t j = 0; j * tile < visual; ++j) {
          if (keeps(g, row, j)) add_run((j + 1) * tile > visual ? runs.masked : runs.whole, j * tile, std::min(j * tile + tile, visual));
        }
        return runs;
      },
      edge);
  check_system({"xattention video", make_plan(std::move(data)), [=](int64_t, int h, int64_t q, int64_t k) {
                  if (q >= visual) return k >= visual;
                  return k < visual && keeps(h, q / tile, k / tile);
                }});
}

TEST(SystemsTiles, XAttentionBesideStreamingHeads) {
  const int64_t n = 500, tile = 128, local = 128, sink = 128;
  const auto keeps = [](int h, int64_t row, int64_t j) { return j == 0 || j == row || draw_one_in(2, {h, row, j, 37}); };
  PlanData data = plan_data(n, n, {.bands = {{n, 0, 0}, {local - 1, 0, sink}}, .head_class = {0, 1, 0, 1}});
  make_by_query(data, 128, kHeadsQ, [&](int64_t b, int g, int64_t row, int64_t first, int64_t last) {
    if (g % 2 == 0) return tile_row([&](int64_t, int h, int64_t r, int64_t j) { return keeps(h, r, j); }, b, g, row, first, last, tile, n, true);
    RowRuns runs;
    add_run(runs.whole, 0, std::min(sink, first));
    add_run(runs.masked, std::max(sink, first - local), first);
    add_run(runs.masked, first, last);
    return runs;
  });
  check_system({"xattention and streaming heads", make_plan(std::move(data)), [=](int64_t, int h, int64_t q, int64_t k) {
                  if (k > q) return false;
                  return h % 2 == 0 ? keeps(h, q / tile, k / tile) : k < sink || q - k < local;
                }});
}

TEST(SystemsTiles, ProxyAttn) {
  // One order of key tiles for a group of heads, cut where each head's budget ends: nested lists.
  const auto rank = [](int64_t row, int64_t j) {
    int64_t before = 0;
    for (int64_t other = 0; other <= row; ++other)
      before +=
          draw(1000, {row, other, 41}) < draw(1000, {row, j, 41}) || (draw(1000, {row, other, 41}) == draw(1000, {row, j, 41}) && other < j) ? 1 : 0;
    return before;
  };
  const Keeps keeps = [rank](int64_t, int h, int64_t row, int64_t j) { return j == row || (j < row && rank(row, j) < 1 + h); };
  check_tiles("proxyattn", 450, 64, 64, true, keeps);
}

TEST(SystemsTiles, SeerAttentionPrefillAndDecode) {
  check_tiles("seerattention", 333, 64, 64, true, [](int64_t, int h, int64_t row, int64_t j) { return j == row || draw_one_in(3, {h, row, j, 43}); });

  // Decode: one list for the heads of a K/V head, blocks of 64 tokens, the last cut at Sk.
  const int64_t seqlen_k = 399, block = 64;
  const auto keeps = [](int64_t b, int kv, int64_t j) { return j == 6 || draw_one_in(2, {b, kv, j, 47}); };
  PlanData data = plan_data(1, seqlen_k, Mask::full(), 2);
  make_by_query(
      data, 16, kHeadsKv,
      [&](int64_t b, int g, int64_t, int64_t, int64_t) {
        RowRuns runs;
        for (int64_t j = 0; j * block < seqlen_k; ++j) {
          if (keeps(b, g, j)) add_run(runs.whole, j * block, std::min(j * block + block, seqlen_k));
        }
        return runs;
      },
      {}, 2);
  check_system({"seerattention decode", make_plan(std::move(data)),
                [=](int64_t b, int h, int64_t, int64_t k) { return keeps(b, h * kHeadsKv / kHeadsQ, k / block); }});
}

TEST(SystemsTiles, Sale) {
  // 64 queries by 32 keys: a sink tile, chosen candidates, local tiles; the two tiles at the diagonal are masked.
  check_tiles("sale", 333, 64, 32, true,
              [](int64_t, int h, int64_t row, int64_t j) { return j == 0 || j >= row * 2 - 2 || draw_one_in(4, {h, row, j, 53}); });
}

TEST(SystemsTiles, Dhsa) {
  // Chunks of any length, one list for all heads; a sliding layer cuts them at `left`.
  const int64_t n = 421, instruction = 30;
  std::vector<int64_t> chunk_of(static_cast<size_t>(n));
  for (int64_t k = 0, chunk = 0, left_over = 0; k < n; ++k, --left_over) {
    if (left_over == 0) {
      left_over = 5 + draw(23, {k, 59});
      ++chunk;
    }
    chunk_of[static_cast<size_t>(k)] = chunk;
  }
  for (const int64_t left : {Mask::kAll, int64_t{150}}) {
    std::vector<int32_t> edge;  // instruction queries are dense rows behind an edge
    for (int32_t at = 0; at < n - instruction; at += 128) edge.push_back(at);
    edge.push_back(static_cast<int32_t>(n - instruction));
    edge.push_back(static_cast<int32_t>(n));
    const auto keeps = [&](int64_t row, int64_t k) {
      return row + 2 == static_cast<int64_t>(edge.size()) || k < 8 || k >= edge[static_cast<size_t>(row)] - 20 ||
             draw_one_in(3, {row, chunk_of[static_cast<size_t>(k)], 61});
    };
    PlanData data = plan_data(n, n, {.bands = {{left, 0, 0}}});
    make_by_query(
        data, 128, 1,
        [&](int64_t, int, int64_t row, int64_t first, int64_t last) {
          RowRuns runs;
          for (int64_t k = 0; k < last; ++k) {
            if (!keeps(row, k)) continue;
            const bool is_cut = left != Mask::kAll && k < last - 1 - left;
            if (is_cut && k < first - left) continue;  // no query of the row sees it
            add_run(k >= first || is_cut ? runs.masked : runs.whole, k, k + 1);
          }
          return runs;
        },
        edge);
    check_system({left == Mask::kAll ? "dhsa" : "dhsa sliding", make_plan(std::move(data)), [&](int64_t, int, int64_t q, int64_t k) {
                    const int64_t row = std::upper_bound(edge.begin(), edge.end(), q) - edge.begin() - 1;
                    return k <= q && (left == Mask::kAll || k >= q - left) && keeps(row, k);
                  }});
  }
}

TEST(SystemsTiles, ParoAttention) {
  // A grid of 5 x 6 x 7 in another axis order for each K/V head, padded to a multiple of 64, then text.
  const int64_t image = 5 * 6 * 7, text = 19, n = image + text, padded = 256, slots = padded + text, block = 64;
  std::vector<int32_t> tokens;
  for (int kv = 0; kv < kHeadsKv; ++kv) {
    std::vector<int32_t> order;
    const int sizes[3] = {5, 6, 7};
    const int axes[2][3] = {{2, 0, 1}, {1, 2, 0}};
    const int* axis = axes[kv];
    for (int a = 0; a < sizes[axis[0]]; ++a) {
      for (int b = 0; b < sizes[axis[1]]; ++b) {
        for (int c = 0; c < sizes[axis[2]]; ++c) {
          int at[3];
          at[axis[0]] = a;
          at[axis[1]] = b;
          at[axis[2]] = c;
          order.push_back((at[0] * 6 + at[1]) * 7 + at[2]);
        }
      }
    }
    order.resize(static_cast<size_t>(padded), -1);
    for (int64_t t = 0; t < text; ++t) order.push_back(static_cast<int32_t>(image + t));
    tokens.insert(tokens.end(), order.begin(), order.end());
  }
  const auto keeps = [](int h, int64_t row, int64_t j) { return row == 4 || j == 4 || draw_one_in(2, {h, row, j, 67}); };
  PlanData data = plan_data(n, n, Mask::full());
  data.order_q = make_order(data, tokens, kHeadsKv);
  data.order_k = data.order_q;
  make_by_query(data, 64, kHeadsQ, [&](int64_t, int g, int64_t row, int64_t, int64_t) {
    RowRuns runs;
    for (int64_t j = 0; j * block < slots; ++j) {
      if (keeps(g, row, j)) add_run(j == 3 ? runs.masked : runs.whole, j * block, std::min(j * block + block, slots));
    }
    return runs;
  });
  // Slot of each token, by inverting the loops above.
  std::vector<std::vector<int64_t>> slot_of(kHeadsKv, std::vector<int64_t>(static_cast<size_t>(n)));
  for (int kv = 0; kv < kHeadsKv; ++kv) {
    for (int64_t slot = 0; slot < slots; ++slot) {
      const int32_t token = tokens[static_cast<size_t>(kv * slots + slot)];
      if (token >= 0) slot_of[static_cast<size_t>(kv)][static_cast<size_t>(token)] = slot;
    }
  }
  check_system({"paroattention", make_plan(std::move(data)), [=](int64_t, int h, int64_t q, int64_t k) {
                  const auto& slot = slot_of[static_cast<size_t>(h * kHeadsKv / kHeadsQ)];
                  return keeps(h, slot[static_cast<size_t>(q)] / block, slot[static_cast<size_t>(k)] / block);
                }});
}

TEST(SystemsTiles, PbsAttn) {
  // Keys sorted within segments of 128, by each query head; own segment masked by token number, earlier tiles of 32 chosen.
  const int64_t n = 470, segment = 128, tile = 32;
  std::vector<int32_t> tokens;
  for (int h = 0; h < kHeadsQ; ++h) {
    std::vector<int32_t> order(static_cast<size_t>(n));
    std::iota(order.begin(), order.end(), 0);
    for (int64_t first = 0; first + segment <= n; first += segment) {
      std::sort(order.begin() + first, order.begin() + first + segment,
                [&](int32_t a, int32_t c) { return std::pair{draw(1000, {h, a, 71}), a} < std::pair{draw(1000, {h, c, 71}), c}; });
    }
    tokens.insert(tokens.end(), order.begin(), order.end());
  }
  const auto keeps = [](int h, int64_t row, int64_t j) { return j == 0 || draw_one_in(3, {h, row, j, 73}); };
  PlanData data = plan_data(n, n, Mask::causal());
  data.order_k = make_order(data, tokens, kHeadsQ);
  make_by_query(data, 32, kHeadsQ, [&](int64_t, int g, int64_t row, int64_t first, int64_t) {
    const int64_t own = first / segment * segment;
    RowRuns runs;
    for (int64_t j = 0; j * tile < own; ++j) {
      if (keeps(g, row, j)) add_run(runs.whole, j * tile, j * tile + tile);
    }
    add_run(runs.masked, own, std::min(own + segment, n));
    return runs;
  });
  std::vector<std::vector<int64_t>> slot_of(kHeadsQ, std::vector<int64_t>(static_cast<size_t>(n)));
  for (int h = 0; h < kHeadsQ; ++h) {
    for (int64_t slot = 0; slot < n; ++slot) slot_of[static_cast<size_t>(h)][static_cast<size_t>(tokens[static_cast<size_t>(h * n + slot)])] = slot;
  }
  check_system({"pbs_attn", make_plan(std::move(data)), [=](int64_t, int h, int64_t q, int64_t k) {
                  if (k / segment == q / segment) return k <= q;
                  return k / segment < q / segment && keeps(h, q / tile, slot_of[static_cast<size_t>(h)][static_cast<size_t>(k)] / tile);
                }});
}

}  // namespace
}  // namespace tilewise::testing
