// SPDX-License-Identifier: Apache-2.0
// Systems whose plans follow from lengths and heads alone.
#include <gtest/gtest.h>

#include <algorithm>

#include "tests/plan/systems/harness.h"

namespace tilewise::testing {
namespace {

constexpr int64_t kAll = Mask::kAll;

// What queries of tokens [first, last) see under a band: `whole` for all of them, `masked` for some.
RowRuns band_row(int64_t first, int64_t last, int64_t left, int64_t sink, int64_t seqlen_k) {
  RowRuns row;
  const auto low = [&](int64_t token) { return left == kAll ? 0 : std::max<int64_t>(0, token - left); };
  const int64_t low_first = low(first), low_last = low(last - 1);
  const int64_t stop_whole = std::clamp<int64_t>(first + 1, 0, seqlen_k), stop = std::clamp<int64_t>(last, 0, seqlen_k);
  const int64_t sink_stop = std::min(sink, std::min(low_first, stop_whole));
  add_run(row.whole, 0, sink_stop);
  add_run(row.masked, std::max(low_first, sink_stop), std::min(low_last, stop_whole));
  add_run(row.whole, low_last, stop_whole);
  add_run(row.masked, std::max(stop_whole, low_first), stop);
  return row;
}

TEST(SystemsStatic, FlashAttentionCausalWindowAndFull) {
  const int64_t seqlen_q = 150, seqlen_k = 333, shift = seqlen_k - seqlen_q;
  PlanData causal = plan_data(seqlen_q, seqlen_k, Mask::causal());
  make_by_query(causal, 64, 1,
                [&](int64_t, int, int64_t, int64_t first, int64_t last) { return band_row(first + shift, last + shift, kAll, 0, seqlen_k); });
  check_system({"flashattention causal", make_plan(std::move(causal)), [&](int64_t, int, int64_t q, int64_t k) { return k <= q + shift; }});

  PlanData window = plan_data(seqlen_q, seqlen_k, {.bands = {{100, 0, 0}}});
  make_by_query(window, 64, 1,
                [&](int64_t, int, int64_t, int64_t first, int64_t last) { return band_row(first + shift, last + shift, 100, 0, seqlen_k); });
  check_system({"flashattention window", make_plan(std::move(window)),
                [&](int64_t, int, int64_t q, int64_t k) { return k <= q + shift && k >= q + shift - 100; }});

  PlanData full = plan_data(seqlen_q, seqlen_k, Mask::full(), 2);
  make_by_query(full, 128, 1, [&](int64_t, int, int64_t, int64_t, int64_t) { return RowRuns{{{0, 333, {}}}, {}, {}}; });
  check_system({"flashattention full", make_plan(std::move(full)), [](int64_t, int, int64_t, int64_t) { return true; }});

  // More queries than keys: the first ones see nothing.
  check_system({"flashattention Sq > Sk",
                dense_plan({.seqlen_q = 200, .seqlen_k = 90, .tile = 64, .mask = Mask::causal(), .batch = 1, .heads_q = kHeadsQ}),
                [](int64_t, int, int64_t q, int64_t k) { return k <= q - 110; }});
}

TEST(SystemsStatic, FlashAttentionButterfly) {
  // LRA's butterfly (3.7) at one level: whole runs of n / 2^L tokens, the query's own piece and its partner.
  const int64_t n = 256, piece = 32;
  PlanData data = plan_data(n, n, Mask::full());
  make_by_query(data, 32, 1, [&](int64_t, int, int64_t row, int64_t, int64_t) {
    RowRuns runs;
    for (const int64_t block : {row, row ^ 2}) add_run(runs.whole, block * piece, block * piece + piece);
    return runs;
  });
  check_system({"flashattention butterfly", make_plan(std::move(data)),
                [=](int64_t, int, int64_t q, int64_t k) { return k / piece == q / piece || k / piece == ((q / piece) ^ 2); }});
}

TEST(SystemsStatic, Crate) {
  PlanData encoder = plan_data(197, 197, Mask::full());
  make_by_query(encoder, 64, 1, [](int64_t, int, int64_t, int64_t, int64_t) { return RowRuns{{{0, 197, {}}}, {}, {}}; });
  check_system({"crate encoder", make_plan(std::move(encoder)), [](int64_t, int, int64_t, int64_t) { return true; }});
  PlanData causal = plan_data(197, 197, Mask::causal());
  make_by_query(causal, 64, 1, [](int64_t, int, int64_t, int64_t first, int64_t last) {
    RowRuns runs;
    add_run(runs.whole, 0, first);
    add_run(runs.masked, first, last);
    return runs;
  });
  check_system({"crate causal", make_plan(std::move(causal)), [](int64_t, int, int64_t q, int64_t k) { return k <= q; }});
}

TEST(SystemsStatic, Hmar) {
  const std::vector<int64_t> sides{1, 2, 3, 4, 5, 6, 8, 10, 13};
  std::vector<int32_t> first_of{0};
  for (const int64_t side : sides) first_of.push_back(first_of.back() + static_cast<int32_t>(side * side));
  const int64_t n = first_of.back();
  const auto scale_of = [&](int64_t token) { return std::upper_bound(first_of.begin(), first_of.end(), token) - first_of.begin() - 1; };
  // One row for the scales of fewer than 64 tokens, then rows of 128 that begin anew at each scale.
  std::vector<int32_t> edge{0, 91};
  for (size_t s = 6; s < sides.size(); ++s) {
    for (int32_t at = first_of[s]; at < first_of[s + 1]; at += 128) edge.push_back(std::min(at + 128, first_of[s + 1]));
  }
  for (const bool is_causal : {false, true}) {
    PlanData data = plan_data(n, n, {});
    std::vector<int32_t> spans;
    for (int64_t q = 0; q < n; ++q) {
      const auto s = static_cast<size_t>(scale_of(q));
      spans.insert(spans.end(), {is_causal ? 0 : first_of[s], first_of[s + 1], 0, 0});
    }
    make_spans(data, spans);
    make_by_query(
        data, 128, 1,
        [&](int64_t, int, int64_t row, int64_t first, int64_t last) {
          RowRuns runs;
          if (row == 0) {
            add_run(runs.masked, 0, last);
            return runs;
          }
          const auto s = static_cast<size_t>(scale_of(first));
          add_run(runs.whole, is_causal ? 0 : first_of[s], first_of[s + 1]);
          return runs;
        },
        edge);
    check_system({is_causal ? "hmar block-causal" : "hmar block-diagonal", make_plan(std::move(data)),
                  [&](int64_t, int, int64_t q, int64_t k) { return is_causal ? scale_of(k) <= scale_of(q) : scale_of(k) == scale_of(q); }});
  }
}

TEST(SystemsStatic, BlockRank) {
  // Instruction, documents, query block; two samples behind each other in the second plan.
  const std::vector<std::vector<int32_t>> samples{{21, 40, 13, 77, 5, 64, 30}, {9, 33, 80, 17}};
  struct Token {
    int32_t sample, block, sample_first, block_first, is_last;
    int32_t sample_instruction;
  };
  for (const size_t count : {size_t{1}, size_t{2}}) {
    std::vector<Token> tokens;
    std::vector<int32_t> edge{0};
    int32_t at = 0;
    for (size_t s = 0; s < count; ++s) {
      const int32_t sample_first = at;
      const auto cut_until = [&](int32_t stop) {
        while (edge.back() < stop) edge.push_back(std::min(edge.back() + 128, stop));
      };
      for (size_t block = 0; block < samples[s].size(); ++block) {
        const bool is_last = block + 1 == samples[s].size();
        if (is_last) cut_until(at);
        const int32_t block_first = at;
        for (int32_t i = 0; i < samples[s][block]; ++i, ++at) {
          tokens.push_back({static_cast<int32_t>(s), static_cast<int32_t>(block), sample_first, block_first, is_last ? 1 : 0, samples[s][0]});
        }
        if (block == 0 || is_last) cut_until(at);
      }
    }
    const int64_t n = at;
    PlanData data = plan_data(n, n, {});
    std::vector<int32_t> spans;
    for (int32_t q = 0; q < n; ++q) {
      const Token& token = tokens[static_cast<size_t>(q)];
      const bool is_document = token.block != 0 && token.is_last == 0;
      if (is_document)
        spans.insert(spans.end(), {token.sample_first, token.sample_first + token.sample_instruction, token.block_first, q + 1});
      else
        spans.insert(spans.end(), {token.sample_first, q + 1, 0, 0});
    }
    make_spans(data, spans);
    make_by_query(
        data, 128, 1,
        [&](int64_t, int, int64_t, int64_t first, int64_t last) {
          const Token& token = tokens[static_cast<size_t>(first)];
          RowRuns runs;
          if (token.block == 0 || token.is_last != 0) {
            add_run(runs.whole, token.sample_first, first);
            add_run(runs.masked, first, last);
          } else {
            add_run(runs.whole, token.sample_first, token.sample_first + token.sample_instruction);
            add_run(runs.masked, token.block_first, last);
          }
          return runs;
        },
        edge);
    check_system({"blockrank", make_plan(std::move(data)), [tokens](int64_t, int, int64_t q, int64_t k) {
                    const Token &a = tokens[static_cast<size_t>(q)], &c = tokens[static_cast<size_t>(k)];
                    if (a.sample != c.sample || k > q) return false;
                    return a.block == 0 || a.is_last != 0 || c.block == 0 || c.block == a.block;
                  }});
  }
}

TEST(SystemsStatic, LongGenPatternA) {
  const int64_t n = 333, window = 150, sink = 20;
  PlanData data = plan_data(n, n, {.bands = {{window - 1, 0, sink}}});
  make_by_query(data, 128, 1, [&](int64_t, int, int64_t, int64_t first, int64_t last) {
    RowRuns runs;
    if (first < sink) {
      add_run(runs.masked, 0, last);
      return runs;
    }
    add_run(runs.whole, 0, sink);
    const int64_t all = std::max(sink, last - window);  // from here on every query of the row sees the keys
    add_run(runs.masked, std::max(sink, first + 1 - window), std::min(all, first));
    add_run(runs.whole, all, first);
    add_run(runs.masked, std::max(first, sink), last);
    return runs;
  });
  check_system({"longgen A", make_plan(std::move(data)), [=](int64_t, int, int64_t q, int64_t k) { return k <= q && (k < sink || k > q - window); }});
}

TEST(SystemsStatic, LongGenPatternB) {
  // Blocks of 64 in rows of 128: the last `local` blocks and every stride-th one, another offset per K/V head.
  const int64_t n = 470, block = 64, local = 2, stride = 3;
  const auto keeps = [=](int kv, int64_t query_block, int64_t key_block) {
    return key_block <= query_block && (query_block - key_block < local || key_block % stride == kv % stride);
  };
  PlanData data = plan_data(n, n, Mask::causal());
  make_by_query(data, 128, kHeadsKv, [&](int64_t, int g, int64_t, int64_t first, int64_t last) {
    RowRuns runs;
    const int64_t upper = first / block, lower = (last - 1) / block;
    for (int64_t key_block = 0; key_block <= lower; ++key_block) {
      const bool is_upper = keeps(g, upper, key_block), is_lower = keeps(g, lower, key_block);
      const int64_t start = key_block * block, stop = std::min(start + block, n);
      if (key_block >= upper) {
        if (is_upper || is_lower) add_run(runs.masked, start, stop);
      } else if (is_upper && is_lower) {
        add_run(runs.whole, start, stop);
      } else if (is_upper || is_lower) {
        add_run(runs.masked, start, stop, {is_upper ? ~uint64_t{0} : 0, is_lower ? ~uint64_t{0} : 0});
      }
    }
    return runs;
  });
  check_system({"longgen B", make_plan(std::move(data)),
                [=](int64_t, int h, int64_t q, int64_t k) { return k <= q && keeps(h * kHeadsKv / kHeadsQ, q / block, k / block); }});
}

TEST(SystemsStatic, LServePrefillAndDecode) {
  // K/V head 0 is read densely, K/V head 1 streams.
  const int64_t n = 400, local = 128, sink = 64;
  PlanData data = plan_data(n, n, {.bands = {{n, 0, 0}, {local - 1, 0, sink}}, .head_class = {0, 0, 1, 1}});
  make_by_query(data, 128, kHeadsKv, [&](int64_t, int g, int64_t, int64_t a, int64_t last) {
    RowRuns runs;
    if (g == 0) {
      add_run(runs.whole, 0, a);
    } else {
      const int64_t sink_stop = std::min(sink, a);
      add_run(runs.whole, 0, sink_stop);
      add_run(runs.masked, std::max(sink_stop, a - local), std::min(a - local + 128, a));
      add_run(runs.whole, std::max(sink_stop, a - local + 128), a);
    }
    add_run(runs.masked, a, last);
    return runs;
  });
  check_system({"lserve prefill", make_plan(std::move(data)),
                [=](int64_t, int h, int64_t q, int64_t k) { return k <= q && (h < 2 || k < sink || q - k < local); }});

  const int64_t seqlen_k = 391, page = 64;
  const auto keeps = [](int g, int64_t p) { return p == 0 || p == 6 || draw_one_in(2, {g, p}); };
  PlanData decode = plan_data(1, seqlen_k, Mask::full(), 2);
  make_by_query(
      decode, 16, kHeadsKv,
      [&](int64_t b, int g, int64_t, int64_t, int64_t) {
        RowRuns runs;
        if (g == 1) {
          add_run(runs.whole, 0, sink);
          add_run(runs.whole, std::max(sink, seqlen_k - local), seqlen_k);
          return runs;
        }
        for (int64_t p = 0; p * page < seqlen_k; ++p) {
          if (keeps(static_cast<int>(b), p)) add_run(runs.whole, p * page, std::min(p * page + page, seqlen_k));
        }
        return runs;
      },
      {}, 2);
  check_system({"lserve decode", make_plan(std::move(decode)), [=](int64_t b, int h, int64_t, int64_t k) {
                  return h < 2 ? keeps(static_cast<int>(b), k / page) : k < sink || k >= seqlen_k - local;
                }});
}

}  // namespace
}  // namespace tilewise::testing
