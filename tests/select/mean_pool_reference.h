// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "tests/select/testing.h"

namespace tilewise::testing {

/// quality.md's P: softmax over visible tiles of scale * mean(q tile) . mean(k tile), in plain loops and double. Zero for tiles that the row does not see.
inline std::vector<std::vector<double>> mean_pool_definition(const TestTensor& q, const TestTensor& k, int64_t b, int h, int64_t h_kv,
                                                             const Mask& mask, int tile, double scale, double softcap) {
  const int64_t sq = q.view.dim(2), sk = k.view.dim(2), dim = q.view.dim(3);
  const bool is_causal = mask.bands.size() == 1 && mask.bands[0].right == 0 && mask.bands[0].left == Mask::kAll;
  const std::vector<int64_t> edges = row_edges(sq, sk, tile, is_causal);
  const int64_t tiles = (sk + tile - 1) / tile;
  const auto mean = [&](const TestTensor& x, int64_t head, int64_t first, int64_t last, int64_t d) {
    double sum = 0;
    for (int64_t s = first; s < last; ++s) sum += x.get(b, head, s, d);
    return sum / static_cast<double>(last - first);
  };
  std::vector<std::vector<double>> result;
  for (size_t row = 0; row + 1 < edges.size(); ++row) {
    std::vector<double> p(static_cast<size_t>(tiles), 0.0);
    std::vector<bool> is_seen(static_cast<size_t>(tiles), false);
    double total = 0;
    for (int64_t j = 0; j < tiles; ++j) {
      for (int64_t i = edges[row]; i < edges[row + 1]; ++i) {
        for (int64_t key = j * tile; key < std::min(sk, (j + 1) * tile); ++key) {
          if (mask_allows(mask, h, b, i, sk - sq, key)) is_seen[static_cast<size_t>(j)] = true;
        }
      }
      if (!is_seen[static_cast<size_t>(j)]) continue;
      double dot = 0;
      for (int64_t d = 0; d < dim; ++d) dot += mean(q, h, edges[row], edges[row + 1], d) * mean(k, h_kv, j * tile, std::min(sk, (j + 1) * tile), d);
      dot *= scale;
      if (softcap > 0) dot = softcap * std::tanh(dot / softcap);
      total += p[static_cast<size_t>(j)] = std::exp(dot);
    }
    for (double& value : p) value = total > 0 ? value / total : 0;
    result.push_back(p);
  }
  return result;
}

}  // namespace tilewise::testing
