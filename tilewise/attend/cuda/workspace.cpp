// SPDX-License-Identifier: Apache-2.0
#include "tilewise/attend/cuda/workspace.h"

#include <cuda_runtime_api.h>

#include "tilewise/machine/cuda/check.h"

namespace tilewise::attend::cuda {

Buffer device_buffer(const char* function, size_t bytes, const Context& context) {
  Buffer buffer(context.memory, bytes);
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;  // memory of a graph under capture has no attributes yet
  if (cudaStreamIsCapturing(static_cast<cudaStream_t>(context.stream), &status) != cudaSuccess) cudaGetLastError();
  if (bytes == 0 || status != cudaStreamCaptureStatusNone) return buffer;
  cudaPointerAttributes attributes{};
  machine::cuda::check_cuda(cudaPointerGetAttributes(&attributes, buffer.data()), function, ": the memory of the context");
  check(attributes.type == cudaMemoryTypeDevice || attributes.type == cudaMemoryTypeManaged, Error::Kind::device, function,
        ": Context::memory gives host memory; take cuda_memory(device, stream)");
  return buffer;
}

}  // namespace tilewise::attend::cuda
