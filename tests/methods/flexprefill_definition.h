// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>
#include <tuple>
#include <vector>

#include "tests/methods/definition_testing.h"
#include "tilewise/methods/flexprefill.h"

namespace tilewise::testing {

/// The definition, head by head, in plain loops and f64.
struct FlexPrefillDefinition {
  const TestProblem& test;
  method::FlexPrefillOptions options;
  double distance = HUGE_VAL;  // how near some choice came to its cut
  bool is_by_map = false;

  int64_t sq() const { return test.q.view.dim(2); }
  int64_t sk() const { return test.k.view.dim(2); }
  int64_t tiles() const { return (sk() + options.tile - 1) / options.tile; }
  double scale() const { return 1 / std::sqrt(static_cast<double>(test.q.view.dim(3))); }

  double product(int64_t b, int h, int64_t q0, int64_t q1, int64_t k0, int64_t k1) const {
    double dot = 0;
    for (int64_t d = 0; d < test.q.view.dim(3); ++d) {
      double mean_q = 0, mean_k = 0;
      for (int64_t i = q0; i < q1; ++i) mean_q += test.q.get(b, h, i, d);
      for (int64_t k = k0; k < k1; ++k) mean_k += test.k.get(b, test.head_kv(h), k, d);
      dot += mean_q / static_cast<double>(q1 - q0) * mean_k / static_cast<double>(k1 - k0);
    }
    return dot * scale();
  }
  std::vector<double> softmax(std::vector<double> x) const {
    const double most = *std::max_element(x.begin(), x.end());
    double total = 0;
    for (double& value : x) total += value = std::exp(value - most);
    for (double& value : x) value /= total;
    return x;
  }
  void cut_near(double gap) { distance = std::min(distance, std::abs(gap)); }

  int64_t cover(std::vector<double> values) {
    std::sort(values.rbegin(), values.rend());
    double held = 0;
    int64_t count = 1;
    for (const double value : values) {
      held += value;
      const double gap = held - static_cast<double>(options.gamma);
      if (gap <= 0) ++count;
      // Only a change of the tile count matters, which a change by one token rarely is.
      if (count % options.tile <= 1 || count % options.tile == options.tile - 1) cut_near(gap);
    }
    return std::min(count, static_cast<int64_t>(values.size()));
  }
  /// Number 0 comes first and counts.
  std::set<int64_t> best(const std::vector<double>& values, int64_t count) {
    std::vector<int64_t> order(values.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin() + 1, order.end(),
                     [&](int64_t x, int64_t y) { return values[static_cast<size_t>(x)] > values[static_cast<size_t>(y)]; });
    count = std::min<int64_t>(count, static_cast<int64_t>(order.size()));
    if (count > 1 && count < static_cast<int64_t>(order.size()))
      cut_near(values[static_cast<size_t>(order[static_cast<size_t>(count - 1)])] - values[static_cast<size_t>(order[static_cast<size_t>(count)])]);
    return {order.begin(), order.begin() + count};
  }

  /// has[m][j]: the row whose queries lie in token tile m reads key tile j.
  std::vector<std::vector<bool>> head(int64_t b, int h) {
    const int64_t tile = options.tile, last = std::min(tile, sq()), offset = sk() - sq();
    const auto stop = [&](int64_t j) { return std::min(sk(), (j + 1) * tile); };
    std::vector<std::vector<bool>> has(static_cast<size_t>(tiles()), std::vector<bool>(static_cast<size_t>(tiles()), false));
    std::vector<double> vertical(static_cast<size_t>(sk()), 0.0), slash(vertical);
    for (int64_t i = sq() - last; i < sq(); ++i) {
      std::vector<double> s;
      for (int64_t k = 0; k <= i + offset; ++k) {
        double dot = 0;
        for (int64_t d = 0; d < test.q.view.dim(3); ++d) dot += test.q.get(b, h, i, d) * test.k.get(b, test.head_kv(h), k, d);
        s.push_back(dot * scale());
      }
      const std::vector<double> p = softmax(s);
      for (size_t k = 0; k < p.size(); ++k) {
        vertical[k] += p[k] / static_cast<double>(last);
        slash[static_cast<size_t>(i + offset) - k] += p[k] / static_cast<double>(last);
      }
    }
    const auto pool = [&](const std::vector<double>& values) {
      std::vector<double> sums(static_cast<size_t>(tiles()), 0.0);
      for (size_t i = 0; i < values.size(); ++i) sums[i / static_cast<size_t>(tile)] += values[i];
      return sums;
    };
    const std::vector<double> by_column = pool(vertical), by_diagonal = pool(slash);
    std::vector<double> means;
    for (int64_t j = 0; j < tiles(); ++j) means.push_back(product(b, h, sq() - last, sq(), j * tile, stop(j)));
    const double js = method::jensen_shannon_distance(softmax(means), by_column);
    cut_near(js - static_cast<double>(options.tau));
    is_by_map = js < static_cast<double>(options.tau);
    int64_t columns = options.min_budget, diagonals = options.min_budget;
    if (!is_by_map) {
      columns = std::max<int64_t>(columns, cover(vertical) / tile + 1);
      diagonals = std::max<int64_t>(diagonals, cover(slash) / tile + 1);
      if (options.max_budget > 0) {
        columns = std::min<int64_t>(columns, options.max_budget);
        diagonals = std::min<int64_t>(diagonals, options.max_budget);
      }
    }
    const std::set<int64_t> chosen_columns = best(by_column, columns), chosen_diagonals = best(by_diagonal, diagonals);
    std::vector<std::tuple<double, int64_t, int64_t>> map;  // minus the value, row, tile
    for (int64_t m = std::max<int64_t>(0, offset / tile); m < tiles(); ++m) {
      const int64_t first = std::max<int64_t>(m * tile - offset, 0), past = std::min(sq(), (m + 1) * tile - offset);
      std::vector<double> row;
      for (int64_t j = 0; j <= m; ++j) {
        has[static_cast<size_t>(m)][static_cast<size_t>(j)] = chosen_columns.count(j) != 0 || chosen_diagonals.count(m - j) != 0;
        if (is_by_map) row.push_back(product(b, h, first, past, j * tile, stop(j)));
      }
      if (!is_by_map) continue;
      row = softmax(row);
      for (size_t j = 0; j < row.size(); ++j) map.emplace_back(-row[j], m, static_cast<int64_t>(j));
    }
    std::sort(map.begin(), map.end());
    double total = 0, held = 0;
    for (const auto& [value, m, j] : map) total -= value;
    for (const auto& [value, m, j] : map) {
      held -= value;
      cut_near(held - static_cast<double>(options.gamma) * total);
      if (held > static_cast<double>(options.gamma) * total) break;
      has[static_cast<size_t>(m)][static_cast<size_t>(j)] = true;
    }
    return has;
  }
};

}  // namespace tilewise::testing
