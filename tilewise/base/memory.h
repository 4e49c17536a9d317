// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstddef>
#include <memory>

#include "tilewise/base/api.h"
#include "tilewise/base/tensor.h"

TILEWISE_BEGIN_PUBLIC

/// Where a Context takes its memory. Implementations are safe to call from several threads.
class TILEWISE_API Memory {
 public:
  static constexpr size_t kAlignment = 64;  // a cache line and an AVX-512 vector

  virtual ~Memory() = default;
  /// At least `bytes` bytes aligned to kAlignment; for 0 bytes any pointer, null included. Errors: memory.
  virtual void* allocate(size_t bytes) = 0;
  virtual void release(void* data, size_t bytes) noexcept = 0;
};

/// The process heap.
TILEWISE_API std::shared_ptr<Memory> host_memory();

/// Passes calls on and keeps count: what compare prints as peak_bytes.
class TILEWISE_API CountingMemory final : public Memory {
 public:
  explicit CountingMemory(std::shared_ptr<Memory> parent);
  ~CountingMemory() override;
  void* allocate(size_t bytes) override;
  void release(void* data, size_t bytes) noexcept override;
  size_t bytes() const;
  size_t peak_bytes() const;
  void reset_peak();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// A block of memory that it owns; moves, does not copy. Contents are undefined until written.
class TILEWISE_API Buffer {
 public:
  Buffer() = default;
  Buffer(std::shared_ptr<Memory> memory, size_t bytes);
  Buffer(Buffer&& other) noexcept;
  Buffer& operator=(Buffer&& other) noexcept;
  ~Buffer();

  void* data() const { return data_; }
  size_t bytes() const { return bytes_; }

 private:
  std::shared_ptr<Memory> memory_;
  void* data_ = nullptr;
  size_t bytes_ = 0;
};

/// A contiguous tensor that owns its memory.
struct TILEWISE_API Tensor {
  Buffer buffer;
  TensorView view;

  Tensor() = default;
  /// Errors: memory; shape, when the byte count overflows.
  Tensor(const std::shared_ptr<Memory>& memory, Dtype dtype, const Shape& shape);
  void fill_zero() const;
};

TILEWISE_END_PUBLIC
