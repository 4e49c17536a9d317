// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cuda_runtime_api.h>

#include <optional>
#include <string>

#include "tilewise/attend/cuda/plan_view.h"
#include "tilewise/base/tensor.h"
#include "tilewise/machine/cuda/check.h"

namespace tilewise::attend::cuda {

/// Why these kernels cannot run where `q` lies.
inline std::optional<std::string> refusal_of_place(const TensorView& q) {
  if (q.device().type != Device::Type::cuda) return text("q is on ", q.device(), ", takes a GPU");
  int major = 0;
  if (cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, q.device().index) != cudaSuccess) {
    cudaGetLastError();
    return text(q.device(), " does not answer");
  }
  if (major < 8) return text(q.device(), " is of compute capability ", major, ".x, takes 8.0 and above");
  return std::nullopt;
}

/// "sm_80", "sm_90", ...: what a device runs.
inline std::string target_of(int device) {
  int major = 0, minor = 0;
  machine::cuda::check_cuda(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "attend: cuda");
  machine::cuda::check_cuda(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device), "attend: cuda");
  return text("sm_", major, minor);
}

/// Blocks of a launch.
inline void check_blocks(const char* function, int64_t blocks) {
  check(blocks < (int64_t{1} << 31), Error::Kind::unsupported, function, ": cuda: ", blocks,
        " thread blocks, takes fewer than 2^31; split the batch");
}

}  // namespace tilewise::attend::cuda
