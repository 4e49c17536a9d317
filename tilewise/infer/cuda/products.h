// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cuda_runtime_api.h>

#include <memory>
#include <string>

#include "tilewise/infer/cuda/queue.h"

namespace tilewise::infer::cuda {

/// Products with the weights of a model on one GPU, by the library that runs them. Only products.cpp knows cuBLASLt. The library is looked up when it is
/// first needed, not linked: a program that runs on the CPU needs none. May be called by several threads at once.
class Products {
 public:
  /// Bytes of work space that run() is given.
  static constexpr size_t kWorkspaceBytes = size_t{32} << 20;

  /// Errors: unsupported (no library; the message names where it was looked for), cuda.
  explicit Products(int device);
  ~Products();

  /// Of equal shapes always the same algorithm, one whose sums have a fixed order. Errors: unsupported (no algorithm for the shape), cuda.
  void run(const ProductArgs& args, void* workspace, cudaStream_t stream);

  /// Where the library was found and its version; or, with a reason, why it was not.
  struct Library {
    std::string text;
    bool is_found = false;
  };
  static Library library();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace tilewise::infer::cuda
