// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cmath>
#include <vector>

#include "tests/select/testing.h"

// XAttention's scores as its paper and released code define them, in plain loops and double. It shares no code with select/.
namespace tilewise::testing {

struct AntidiagonalDefinition {
  int tile = 4, stride = 2, kdb = 1;
  int terms = 1;                    // 2: "double", 3: "triple"
  std::vector<int> query_order;     // place of the query that meets key t; empty: reversed
  double norm = 1, scale = 1, softcap = 0;
  bool is_causal = true;
};

/// A[row][tile] of one head.
inline std::vector<std::vector<double>> antidiagonal_definition(const TestTensor& q, const TestTensor& k, int64_t b, int64_t h, int64_t h_kv,
                                                                const AntidiagonalDefinition& def) {
  const int64_t sq = q.view.dim(2), sk = k.view.dim(2), dim = q.view.dim(3), s = def.stride;
  const int64_t offset = def.is_causal ? sk - sq : 0, groups = (sk + s - 1) / s;
  const std::vector<int64_t> edges = row_edges(sq, sk, def.tile, def.is_causal);
  const int64_t rows = static_cast<int64_t>(edges.size()) - 1, tiles = (sk + def.tile - 1) / def.tile;
  const auto query = [&](int64_t token, int64_t d) { return token - offset >= 0 && token - offset < sq ? q.get(b, h, token - offset, d) : 0.0; };
  const auto key = [&](int64_t c, int64_t t, int64_t d) {
    double sum = 0;
    for (int term = 0; term < def.terms; ++term) {
      const int64_t token = c * s + (t + term) % s;
      if (token < sk) sum += k.get(b, h_kv, token, d);
    }
    return sum;
  };
  std::vector<std::vector<double>> result(static_cast<size_t>(std::max<int64_t>(rows, 0)), std::vector<double>(static_cast<size_t>(tiles), 0.0));
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t first_token = edges[static_cast<size_t>(row)] + offset, last_token = edges[static_cast<size_t>(row) + 1] - 1 + offset;
    for (int64_t g = -sq; g <= last_token; ++g) {  // every group that has a token in the row
      if (g * s > last_token || g * s + s - 1 < first_token) continue;
      if (((g % def.kdb) + def.kdb) % def.kdb != 0) continue;
      const int64_t visible = def.is_causal ? std::min(groups, g + 1) : groups;
      if (visible <= 0) continue;
      std::vector<double> x(static_cast<size_t>(visible), 0.0);
      double most = -HUGE_VAL, total = 0;
      for (int64_t c = 0; c < visible; ++c) {
        double dot = 0;
        for (int64_t t = 0; t < s; ++t) {
          const int64_t place = def.query_order.empty() ? s - 1 - t : def.query_order[static_cast<size_t>(t)];
          for (int64_t d = 0; d < dim; ++d) dot += query(g * s + place, d) * key(c, t, d);
        }
        double& value = x[static_cast<size_t>(c)];
        value = dot * def.scale / (static_cast<double>(s) * def.norm);
        if (def.softcap > 0) value = def.softcap * std::tanh(value / def.softcap);
        most = std::max(most, value);
      }
      for (double& value : x) total += value = std::exp(value - most);
      for (int64_t c = 0; c < visible; ++c)
        result[static_cast<size_t>(row)][static_cast<size_t>(c * s / def.tile)] += x[static_cast<size_t>(c)] / total;
    }
  }
  return result;
}

}  // namespace tilewise::testing
