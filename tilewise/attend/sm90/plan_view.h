// SPDX-License-Identifier: Apache-2.0
// A plan on the device as kernels read it.
#pragma once
#include <optional>
#include <string>

#include "tilewise/attend/sm90/forward_args.h"
#include "tilewise/plan/plan.h"

namespace tilewise::attend::sm90 {

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

inline Band band_view(const Mask::Band& from) { return {from.left, from.right, from.sink}; }

/// Kernels walk the arrays of a list as they lie.
inline std::optional<std::string> refusal_of_list(const char* name, const RunList& list) {
  for (const TensorView* view : {&list.begin, &list.count, &list.start, &list.stop, &list.rows}) {
    if (view->has_value() && !view->is_contiguous()) {
      return "the plan's " + std::string(name) + " list has an array that is not contiguous; pack the plan";
    }
  }
  return std::nullopt;
}

/// Whether a device is of compute capability 9.0.
inline bool is_hopper(int device) {
  int major = 0, minor = 0;
  const bool is_known = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess &&
                        cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) == cudaSuccess;
  if (!is_known) cudaGetLastError();
  return is_known && major == 9 && minor == 0;
}

}  // namespace tilewise::attend::sm90
