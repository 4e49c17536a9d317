// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <functional>
#include <set>
#include <string>
#include <vector>

#include "tests/select/testing.h"
#include "tilewise/methods/registry.h"

// What the tests of single methods share: problems to go through, and a comparison of a method's plan with a choice of tiles made by hand.
namespace tilewise::testing {

/// Ragged, grouped heads, several batch entries, fewer and more queries than keys, one token.
inline const std::vector<Sizes>& problem_sizes() {
  static const std::vector<Sizes> sizes = {{1, 4, 2, 200, 200, 16}, {2, 2, 1, 131, 131, 16}, {1, 2, 1, 65, 200, 16}, {1, 2, 2, 90, 64, 16},
                                           {1, 2, 1, 128, 128, 16}, {1, 1, 1, 1, 1, 16},     {1, 2, 1, 1, 77, 16}};
  return sizes;
}

/// The tensors of a problem; q and k share structure, so that attention is neither flat nor all on one key.
struct TestProblem {
  TestTensor q, k;
  Problem problem;

  TestProblem(const Sizes& sizes, Dtype dtype, const Mask& mask, unsigned seed)
      : q(random_tensor(dtype, sizes.batch, sizes.heads_q, sizes.seqlen_q, sizes.dim, seed, 1.6f)),
        k(random_tensor(dtype, sizes.batch, sizes.heads_kv, sizes.seqlen_k, sizes.dim, seed + 1000, 1.6f)) {
    problem.q = q.view;
    problem.k = k.view;
    problem.mask = mask;
  }
  TestProblem(const TestProblem&) = delete;
  int64_t head_kv(int64_t head) const { return head * k.view.dim(1) / q.view.dim(1); }
  bool is_causal() const { return problem.mask.bands[0].right == 0; }
};

/// Row number, its first and last query -> tiles that it must read, and how near the choice came to its cut (HUGE_VAL: not near).
struct Choice {
  std::set<int64_t> tiles;
  double distance = HUGE_VAL;
};
using Chooser = std::function<Choice(int64_t b, int h, size_t row, int64_t q_first, int64_t q_last)>;

/// Every row of the plan reads the allowed pairs of the chosen tiles and no other. Rows whose choice hangs on a difference below `closest` may differ.
inline void expect_tiles(const Plan& plan, const TestProblem& test, int tile, const Chooser& choose, double closest = 1e-5) {
  const int64_t sq = test.q.view.dim(2), sk = test.k.view.dim(2);
  Bits found = bits_of(*plan, true);
  const std::vector<int64_t> edges = row_edges(sq, sk, tile, test.is_causal());
  int64_t compared = 0, rows = 0;
  for (int64_t b = 0; b < plan->batch; ++b) {
    for (int h = 0; h < plan->heads_q; ++h) {
      for (size_t row = 0; row + 1 < edges.size(); ++row) {
        const Choice choice = choose(b, h, row, edges[row], edges[row + 1]);
        ++rows;
        if (choice.distance < closest) continue;
        ++compared;
        Bits expected(plan->batch, plan->heads_q, sq, sk);
        set_tiles(expected, test.problem.mask, b, h, edges[row], edges[row + 1], tile, choice.tiles);
        for (int64_t q = edges[row]; q < edges[row + 1]; ++q) {
          for (int64_t k = 0; k < sk; ++k) {
            ASSERT_EQ(static_cast<int>(found.at(b, h, q, k)), static_cast<int>(expected.at(b, h, q, k)))
                << "batch " << b << " head " << h << " row " << row << " query " << q << " key " << k;
          }
        }
      }
    }
  }
  EXPECT_GE(compared * 10, rows * 9) << "too many rows lie on their cut to tell";
}

/// Sums over the last queries, from the definition.
struct LastSums {
  std::vector<double> key, offset;
};
inline LastSums sums_of(const TestProblem& test, int64_t b, int h, int64_t last) {
  const int64_t sq = test.q.view.dim(2), sk = test.k.view.dim(2), dim = test.k.view.dim(3);
  LastSums sums{std::vector<double>(static_cast<size_t>(sk), 0.0), std::vector<double>(static_cast<size_t>(sk), 0.0)};
  for (int64_t i = std::max<int64_t>(0, sq - last); i < sq; ++i) {
    const int64_t token = i + sk - sq;
    std::vector<double> p;
    double total = 0;
    for (int64_t j = 0; j <= token; ++j) {
      double dot = 0;
      for (int64_t d = 0; d < dim; ++d) dot += test.q.get(b, h, i, d) * test.k.get(b, test.head_kv(h), j, d);
      p.push_back(std::exp(dot / std::sqrt(static_cast<double>(dim))));
      total += p.back();
    }
    for (size_t j = 0; j < p.size(); ++j) {
      sums.key[j] += p[j] / total;
      sums.offset[static_cast<size_t>(token) - j] += p[j] / total;
    }
  }
  return sums;
}

/// The `count` best, the first `forced` before all; how near the cut lies to the next value.
inline std::set<int64_t> best(const std::vector<double>& values, int64_t count, int64_t forced, double& distance) {
  std::vector<int64_t> order(values.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int64_t>(i);
  const auto value = [&](int64_t i) { return i < forced ? HUGE_VAL : values[static_cast<size_t>(i)]; };
  std::stable_sort(order.begin(), order.end(), [&](int64_t x, int64_t y) { return value(x) > value(y); });
  count = std::min<int64_t>(count, static_cast<int64_t>(order.size()));
  if (count > 0 && count < static_cast<int64_t>(order.size())) {
    const double gap = value(order[static_cast<size_t>(count - 1)]) - value(order[static_cast<size_t>(count)]);
    if (std::isfinite(gap)) distance = std::min(distance, gap);
  }
  return {order.begin(), order.begin() + count};
}

/// The lines that the last queries of a head choose, and how near the choice came to its cut.
struct LastLines {
  std::set<int64_t> vertical, slash;
  double distance = HUGE_VAL;
};
inline LastLines last_query_lines(const TestProblem& test, int h, int64_t last, int64_t vertical, int64_t slash, int64_t first, int64_t nearest,
                                  int64_t b = 0) {
  const LastSums sums = sums_of(test, b, h, last);
  LastLines lines;
  lines.vertical = best(sums.key, vertical, first, lines.distance);
  lines.slash = best(sums.offset, slash, nearest, lines.distance);
  return lines;
}

/// Key tiles that a row's own tokens lie in, and the first one: as far as they are seen.
inline std::set<int64_t> forced_tiles(const TestProblem& test, int tile, int64_t q_first, int64_t q_last) {
  const int64_t sk = test.k.view.dim(2), offset = sk - test.q.view.dim(2);
  std::set<int64_t> forced;
  if (sk > 0 && (!test.is_causal() || q_last - 1 + offset >= 0)) forced.insert(0);
  for (int64_t q = q_first; q < q_last; ++q) {
    if (q + offset >= 0 && q + offset < sk) forced.insert((q + offset) / tile);
  }
  return forced;
}

/// Runs what follows on attend/reference, which takes every problem.
struct OnReference {
  OnReference() { setenv("TILEWISE_BACKEND", "reference", 1); }
  ~OnReference() { unsetenv("TILEWISE_BACKEND"); }
};

}  // namespace tilewise::testing
