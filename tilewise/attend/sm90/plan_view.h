// SPDX-License-Identifier: Apache-2.0
// A plan on the device as kernels read it.
#pragma once
#include <optional>
#include <string>

#include "tilewise/attend/sm90/forward_args.h"
#include "tilewise/plan/cuda/run_list.h"
#include "tilewise/plan/plan.h"

namespace tilewise::attend::sm90 {

using plan::cuda::run_list;

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
