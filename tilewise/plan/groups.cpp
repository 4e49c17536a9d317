// SPDX-License-Identifier: Apache-2.0
#include "tilewise/plan/groups.h"

#include <algorithm>

namespace tilewise::plan {

Groups common_groups(std::span<const TensorView> views, int heads) {
  Groups common;
  for (const TensorView& view : views) {
    if (!view.has_value()) continue;
    common.batch = std::max(common.batch, view.dim(0));
    const int groups = static_cast<int>(view.dim(1));
    if (common.groups % groups == 0) continue;
    common.groups = groups % common.groups == 0 ? groups : heads;
  }
  return common;
}

}  // namespace tilewise::plan
