// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "tilewise/base/dtype.h"
#include "tilewise/base/memory.h"

namespace tilewise::infer {

/// Rows that go through a layer together: enough for the products to run at full rate, few enough that they stay in a core's cache. It is a
/// constant, so what is computed with what, and with it every bit of the result, does not depend on the number of threads.
constexpr int64_t kSliceRows = 256;

/// What a Linear does with its products before they are stored.
enum class Epilogue {
  store,     // y = x W^T + bias
  add,       // y += x W^T + bias
  silu,      // y = silu(x W^T + bias)
  multiply,  // y = (x W^T + bias) * other
};

struct LinearParams {
  const float* weights = nullptr;  // [out, in] row-major, not kept
  const float* bias = nullptr;     // [out], or null; not kept
  int64_t out = 0, in = 0;
  Epilogue epilogue = Epilogue::store;
  Dtype compute = Dtype::f32;  // f32, or bf16: operands are rounded to bf16, sums stay f32
};

/// Scratch of one thread; grows to what the layers ask for.
class LinearScratch {
 public:
  explicit LinearScratch(std::shared_ptr<Memory> memory) : memory_(std::move(memory)) {}
  void* get(size_t bytes) {
    if (bytes > buffer_.bytes()) buffer_ = Buffer(memory_, bytes);
    return buffer_.data();
  }

 private:
  std::shared_ptr<Memory> memory_;
  Buffer buffer_;
};

/// A matrix W [out, in] in the layout that the library beneath likes, and its product with rows. Only linear.cpp knows oneDNN.
/// `run` may be called by several threads at once; it runs in the calling thread alone.
class Linear {
 public:
  Linear();
  /// Errors: memory, unsupported (oneDNN refuses the shape, or bf16 on a processor without AVX-512).
  Linear(const LinearParams& params, const std::shared_ptr<Memory>& memory);
  Linear(Linear&&) noexcept;
  Linear& operator=(Linear&&) noexcept;
  ~Linear();

  int64_t out() const;
  int64_t in() const;
  Dtype compute() const;
  /// x [rows, in] in the dtype that is computed in; y [rows, out] f32, for Epilogue::multiply in the dtype of x, since it goes on to the next layer;
  /// other [rows, out] f32, for Epilogue::multiply. All row-major without gaps; 1 to kSliceRows rows. y is neither x nor other.
  void run(const void* x, int64_t rows, void* y, LinearScratch& scratch, const float* other = nullptr) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// Version of oneDNN that runs, "2.6.3".
std::string linear_library_version();

}  // namespace tilewise::infer
