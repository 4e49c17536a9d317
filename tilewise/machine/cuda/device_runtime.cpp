// SPDX-License-Identifier: Apache-2.0
#include "tilewise/machine/device.h"

#include <cstring>

#ifdef TILEWISE_WITH_CUDA
#include <cuda_runtime_api.h>

#include "tilewise/machine/cuda/check.h"
#include "tilewise/machine/cuda/memory.h"
#endif

namespace tilewise::machine {
namespace {

bool is_cpu(const Context& context) { return context.device.type == Device::Type::cpu; }

#ifdef TILEWISE_WITH_CUDA
cudaStream_t stream_of(const Context& context) { return static_cast<cudaStream_t>(context.stream); }

void copy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, const Context& context, const char* what) {
  const cuda::DeviceScope scope(context.device.index);
  if (bytes > 0) cuda::check_cuda(cudaMemcpyAsync(to, from, bytes, kind, stream_of(context)), what);
  cuda::check_cuda(cudaStreamSynchronize(stream_of(context)), what);
}
#else
[[noreturn]] void fail_without_cuda(Device device) { fail(Error::Kind::device, device, ": ", *refusal_of(device)); }
#endif

}  // namespace

std::optional<std::string> refusal_of(Device device) {
  if (device.type == Device::Type::cpu) return std::nullopt;
#ifdef TILEWISE_WITH_CUDA
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess) {
    cudaGetLastError();
    return std::string("no GPU can be used: ") + cudaGetErrorString(error) + " (" + cudaGetErrorName(error) + ")";
  }
  if (count == 0) return "there is no GPU";
  if (device.index < 0 || device.index >= count) {
    return "there is no such GPU: this machine has " + std::to_string(count) + ", numbered from 0";
  }
  int major = 0;
  if (cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device.index) != cudaSuccess) cudaGetLastError();
  if (major < 8) return "the GPU has compute capability " + std::to_string(major) + ".x, the kernels here need 8.0 or more";
  return std::nullopt;
#else
  return "this build has no CUDA; configure with -DTILEWISE_WITH_CUDA=ON (needs nvcc 13), or run on the CPU";
#endif
}

std::string name_of_gpu([[maybe_unused]] int index) {
#ifdef TILEWISE_WITH_CUDA
  cudaDeviceProp properties{};
  cuda::check_cuda(cudaGetDeviceProperties(&properties, index), "device ", index);
  return std::string(properties.name) + ", compute capability " + std::to_string(properties.major) + "." + std::to_string(properties.minor) + ", " +
         std::to_string((properties.totalGlobalMem + (size_t{1} << 29)) >> 30) + " GiB";
#else
  fail_without_cuda({Device::Type::cuda, index});
#endif
}

Context on_gpu(const Context& context, int index) {
  const Device device{Device::Type::cuda, index};
  if (const auto reason = refusal_of(device)) fail(Error::Kind::device, device, ": ", *reason);
  Context result = context;
  result.device = device;
  result.stream = nullptr;
#ifdef TILEWISE_WITH_CUDA
  result.memory = cuda_memory(index);
#endif
  return result;
}

void wait(const Context& context) {
  if (is_cpu(context)) return;
#ifdef TILEWISE_WITH_CUDA
  const cuda::DeviceScope scope(context.device.index);
  cuda::check_cuda(cudaStreamSynchronize(stream_of(context)), "work on ", context.device, " failed");
#else
  fail_without_cuda(context.device);
#endif
}

void copy_to_device(void* to, const void* from, size_t bytes, const Context& context) {
  if (is_cpu(context)) {
    if (bytes > 0) std::memcpy(to, from, bytes);
    return;
  }
#ifdef TILEWISE_WITH_CUDA
  copy(to, from, bytes, cudaMemcpyHostToDevice, context, "copy_to_device");
#else
  fail_without_cuda(context.device);
#endif
}

void copy_to_host(void* to, const void* from, size_t bytes, const Context& context) {
  if (is_cpu(context)) {
    if (bytes > 0) std::memcpy(to, from, bytes);
    return;
  }
#ifdef TILEWISE_WITH_CUDA
  copy(to, from, bytes, cudaMemcpyDeviceToHost, context, "copy_to_host");
#else
  fail_without_cuda(context.device);
#endif
}

}  // namespace tilewise::machine
