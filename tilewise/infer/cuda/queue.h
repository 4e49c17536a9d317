// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstddef>
#include <functional>
#include <memory>

#include "tilewise/base/context.h"
#include "tilewise/base/tensor.h"
#include "tilewise/infer/cuda/kernels.h"

namespace tilewise::infer::cuda {

/// y = x W^T, or y += x W^T.
struct ProductArgs {
  const void* x = nullptr;        // [rows, in] in `dtype`
  const void* weights = nullptr;  // [out, in] in `dtype`
  float* y = nullptr;             // [rows, out]
  int64_t rows = 0, out = 0, in = 0;
  Dtype dtype = Dtype::bf16;      // f32, multiplied as f32; or bf16. Sums are f32
  bool adds = false;
};

/// Work for one device, done in the order in which it is given. Tests have one that works on the CPU, line by line what the GPU does but for the products.
class Queue {
 public:
  virtual ~Queue() = default;
  /// `from` may be written over when it returns.
  virtual void upload(void* to, const void* from, size_t bytes) = 0;
  /// Waits for all that was given before.
  virtual void download(void* to, const void* from, size_t bytes) = 0;
  virtual void wait() = 0;
  virtual void run(const EmbedArgs& args) = 0;
  virtual void run(const NormArgs& args) = 0;
  virtual void run(const TurnArgs& args) = 0;
  virtual void run(const SiluArgs& args) = 0;
  virtual void run(const BiasArgs& args) = 0;
  virtual void run(const BitsArgs& args) = 0;
  virtual void run(const DrawArgs& args) = 0;
  /// Equal calls give equal bits.
  virtual void multiply(const ProductArgs& args) = 0;
};

/// Makes a queue on the context's stream. It lives no longer than the context's stream and memory.
using QueueMaker = std::function<std::unique_ptr<Queue>(const Context& context)>;

/// Queues on a GPU, with cuBLASLt for the products. Built with TILEWISE_WITH_CUDA. Errors: unsupported (this build has no CUDA or no cuBLASLt, the library
/// is not found), device (no such GPU), memory, cuda; the message says what to do.
QueueMaker gpu_queues(const Context& context);

/// Version and place of the library that multiplies, where why_no_queues() has no reason.
std::string product_library();

/// Why gpu_queues() would fail; nothing where it would not.
std::string why_no_queues(Device device);

}  // namespace tilewise::infer::cuda
