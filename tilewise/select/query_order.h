// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <algorithm>
#include <numeric>
#include <utility>
#include <vector>

#include "tilewise/base/hash.h"
#include "tilewise/select/antidiagonal.h"

namespace tilewise::select {

/// Place in its group of the query that meets key t.
inline std::vector<int> query_order(const AntidiagonalParams& params) {
  std::vector<int> order(static_cast<size_t>(params.stride));
  std::iota(order.begin(), order.end(), 0);
  if (params.selector == Selector::random) {
    for (int i = params.stride - 1; i > 0; --i) {
      const uint64_t draw = splitmix64(splitmix64(params.seed) + static_cast<uint64_t>(i));
      std::swap(order[static_cast<size_t>(i)], order[static_cast<size_t>(draw % static_cast<uint64_t>(i + 1))]);
    }
  } else if (params.selector != Selector::slash) {
    std::reverse(order.begin(), order.end());
  }
  return order;
}

}  // namespace tilewise::select
