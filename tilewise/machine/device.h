// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstddef>
#include <optional>
#include <string>

#include "tilewise/base/context.h"
#include "tilewise/base/tensor.h"

// A GPU as code without CUDA in it sees one. Every function takes the CPU, too; a GPU is refused by name in a build without TILEWISE_WITH_CUDA.
namespace tilewise::machine {

/// Why no work can be sent to a device, and the way on; nothing where it can.
TILEWISE_API std::optional<std::string> refusal_of(Device device);

/// "NVIDIA H100 80GB HBM3, compute capability 9.0, 79 GiB" of a GPU that can be used. Errors: device.
TILEWISE_API std::string name_of_gpu(int index);

/// `context` with its work on GPU `index`: memory of the GPU, its default stream, the executor as it was. Errors: device (with the refusal), cuda.
TILEWISE_API Context on_gpu(const Context& context, int index);

/// The same executor and stop token on the CPU, with memory of the heap: for what is computed on the host beside a GPU's work.
TILEWISE_API Context on_cpu(const Context& context);

/// Returns when all work on the context's stream is done; on the CPU at once. Errors: cuda.
TILEWISE_API void wait(const Context& context);

/// A contiguous tensor in the context's memory, labelled with its device. Contents are undefined. Errors: memory.
TILEWISE_API Tensor make_tensor(const Context& context, Dtype dtype, const Shape& shape);

/// Bytes from a host to the context's device and back, in the order of its stream, waited for. Errors: cuda.
TILEWISE_API void copy_to_device(void* to, const void* from, size_t bytes, const Context& context);
TILEWISE_API void copy_to_host(void* to, const void* from, size_t bytes, const Context& context);

/// A tensor where the host can read it: itself on the CPU, else a copy with the same strides.
class TILEWISE_API OnHost {
 public:
  OnHost(const TensorView& tensor, const Context& context);
  TensorView view;

 private:
  Buffer copy_;
};

/// A contiguous copy of a host tensor in the context's memory, on its device. Errors: memory, shape (not contiguous), cuda.
TILEWISE_API Tensor to_device(const TensorView& tensor, const Context& context);

}  // namespace tilewise::machine
