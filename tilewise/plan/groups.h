// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <span>

#include "tilewise/base/tensor.h"

namespace tilewise::plan {

/// B|1 and G|1 that fit every given tensor [B|1, G|1, ...]: the largest, or one group a head where group counts do not divide one another.
struct Groups {
  int64_t batch = 1;
  int groups = 1;
  int64_t total() const { return batch * groups; }
};
Groups common_groups(std::span<const TensorView> views, int heads);
/// The first head of group g.
inline int first_head(int g, int groups, int heads) { return static_cast<int>((static_cast<int64_t>(g) * heads + groups - 1) / groups); }

}  // namespace tilewise::plan
