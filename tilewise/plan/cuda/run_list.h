// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "tilewise/plan/cuda/run_list_view.h"
#include "tilewise/plan/plan.h"

namespace tilewise::plan::cuda {

/// An empty array may have no address; kernels take a null `begin` for a list without rows.
inline RunListView run_list(const RunList& list) {
  RunListView view;
  if (!list.has_runs() || list.begin.numel() == 0 || list.start.numel() == 0) return view;
  view.begin = static_cast<const int64_t*>(list.begin.raw());
  view.count = static_cast<const int32_t*>(list.count.raw());
  view.start = static_cast<const int32_t*>(list.start.raw());
  if (list.stop.has_value()) view.stop = static_cast<const int32_t*>(list.stop.raw());
  if (list.rows.has_value()) {
    view.rows = static_cast<const uint64_t*>(list.rows.raw());
    view.words = static_cast<int>(list.rows.dim(1));
  }
  view.begin_batch = static_cast<int>(list.begin.dim(0));
  view.begin_heads = static_cast<int>(list.begin.dim(1));
  view.count_batch = static_cast<int>(list.count.dim(0));
  view.count_heads = static_cast<int>(list.count.dim(1));
  view.grain = list.grain;
  return view;
}

}  // namespace tilewise::plan::cuda
