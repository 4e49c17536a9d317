// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cuda_runtime_api.h>

#include "tilewise/base/error.h"

namespace tilewise::machine::cuda {

/// Throws unless a call of the runtime succeeded, and clears the runtime's own note of it, so that the next call starts clean.
template <class... Parts>
void check_cuda(cudaError_t error, const Parts&... what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();
  fail(error == cudaErrorMemoryAllocation ? Error::Kind::memory : Error::Kind::cuda, what..., ": ", cudaGetErrorString(error), " (",
       cudaGetErrorName(error), ")");
}

/// Makes a device current, and the one before current again at the end.
class DeviceScope {
 public:
  explicit DeviceScope(int device) {
    check_cuda(cudaGetDevice(&before_), "CUDA: no device");
    if (before_ != device) check_cuda(cudaSetDevice(device), "CUDA: device ", device, " cannot be used");
  }
  ~DeviceScope() { cudaSetDevice(before_); }
  DeviceScope(const DeviceScope&) = delete;
  DeviceScope& operator=(const DeviceScope&) = delete;

 private:
  int before_ = 0;
};

}  // namespace tilewise::machine::cuda
