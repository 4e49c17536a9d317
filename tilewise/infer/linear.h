// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "tilewise/base/memory.h"

namespace tilewise::infer {

/// Rows that go through a layer together: enough for the products to run at full rate, few enough that they stay in a core's cache. It is a
/// constant, so what is computed with what, and with it every bit of the result, does not depend on the number of threads.
constexpr int64_t kSliceRows = 256;

/// What a Linear does with its products before they are stored.
enum class Epilogue {
  store,     // y = x W^T
  add,       // y += x W^T
  silu,      // y = silu(x W^T)
  multiply,  // y = x W^T * other
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

/// A matrix W [out, in] in the layout that the library beneath likes, and its product with rows of f32. Only linear.cpp knows oneDNN.
/// `run` may be called by several threads at once; it runs in the calling thread alone.
class Linear {
 public:
  Linear();
  /// `weights` is [out, in] row-major and not kept. Errors: memory, unsupported (oneDNN refuses the shape).
  Linear(const float* weights, int64_t out, int64_t in, Epilogue epilogue, const std::shared_ptr<Memory>& memory);
  Linear(Linear&&) noexcept;
  Linear& operator=(Linear&&) noexcept;
  ~Linear();

  int64_t out() const;
  int64_t in() const;
  /// x [rows, in], y [rows, out], other [rows, out] (for Epilogue::multiply), all row-major without gaps; 1 to kSliceRows rows.
  /// y is neither x nor other.
  void run(const float* x, int64_t rows, float* y, LinearScratch& scratch, const float* other = nullptr) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// Version of oneDNN that runs, "2.6.3".
std::string linear_library_version();

}  // namespace tilewise::infer
