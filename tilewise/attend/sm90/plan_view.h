// SPDX-License-Identifier: Apache-2.0
// A plan on the device as kernels read it.
#pragma once
#include "tilewise/attend/cuda/plan_view.h"
#include "tilewise/attend/sm90/forward_args.h"
#include "tilewise/plan/cuda/run_list.h"
#include "tilewise/plan/plan.h"

namespace tilewise::attend::sm90 {

using cuda::band_view;
using cuda::refusal_of_list;
using plan::cuda::run_list;

/// Whether a device is of compute capability 9.0.
inline bool is_hopper(int device) {
  int major = 0, minor = 0;
  const bool is_known = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess &&
                        cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) == cudaSuccess;
  if (!is_known) cudaGetLastError();
  return is_known && major == 9 && minor == 0;
}

}  // namespace tilewise::attend::sm90
