// SPDX-License-Identifier: Apache-2.0
#include "tilewise/machine/cuda/memory.h"

#include <cuda_runtime_api.h>

#include <cstdint>

#include "tilewise/machine/cuda/check.h"

TILEWISE_BEGIN_PUBLIC

namespace {

using machine::cuda::check_cuda;
using machine::cuda::DeviceScope;

class CudaMemory final : public Memory {
 public:
  CudaMemory(int device, cudaStream_t stream) : device_(device), stream_(stream) {
    const DeviceScope scope(device_);
    // Freed blocks stay in the pool: a call's workspace then costs no system call.
    cudaMemPool_t pool = nullptr;
    uint64_t keep = UINT64_MAX;
    check_cuda(cudaDeviceGetDefaultMemPool(&pool, device_), "cuda_memory: the pool of device ", device_);
    check_cuda(cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &keep), "cuda_memory: the pool of device ", device_);
  }
  void* allocate(size_t bytes) override {
    if (bytes == 0) return nullptr;
    const DeviceScope scope(device_);
    void* data = nullptr;
    check_cuda(cudaMallocAsync(&data, bytes, stream_), "device memory: ", bytes, " bytes could not be allocated on device ", device_);
    return data;
  }
  void release(void* data, size_t) noexcept override {
    if (data != nullptr) cudaFreeAsync(data, stream_);
  }

 private:
  int device_;
  cudaStream_t stream_;
};

}  // namespace

std::shared_ptr<Memory> cuda_memory(int device, void* stream) { return std::make_shared<CudaMemory>(device, static_cast<cudaStream_t>(stream)); }

TILEWISE_END_PUBLIC
