// SPDX-License-Identifier: Apache-2.0
#include "tilewise/base/memory.h"

#include <atomic>
#include <cstring>
#include <limits>
#include <new>
#include <utility>

TILEWISE_BEGIN_PUBLIC

namespace {

class HostMemory final : public Memory {
 public:
  void* allocate(size_t bytes) override {
    if (bytes == 0) return nullptr;
    void* data = ::operator new(bytes, std::align_val_t{kAlignment}, std::nothrow);
    check(data != nullptr, Error::Kind::memory, "host memory: ", bytes, " bytes could not be allocated; shorten the input or free memory");
    return data;
  }
  void release(void* data, size_t) noexcept override { ::operator delete(data, std::align_val_t{kAlignment}); }
};

}  // namespace

std::shared_ptr<Memory> host_memory() {
  static const std::shared_ptr<Memory> memory = std::make_shared<HostMemory>();
  return memory;
}

struct CountingMemory::State {
  std::shared_ptr<Memory> parent;
  std::atomic<size_t> bytes{0};
  std::atomic<size_t> peak{0};
};

CountingMemory::CountingMemory(std::shared_ptr<Memory> parent) : state_(std::make_unique<State>()) { state_->parent = std::move(parent); }
CountingMemory::~CountingMemory() = default;

void* CountingMemory::allocate(size_t bytes) {
  void* data = state_->parent->allocate(bytes);
  const size_t now = state_->bytes.fetch_add(bytes) + bytes;
  size_t peak = state_->peak.load();
  while (now > peak && !state_->peak.compare_exchange_weak(peak, now)) {
  }
  return data;
}

void CountingMemory::release(void* data, size_t bytes) noexcept {
  state_->parent->release(data, bytes);
  state_->bytes.fetch_sub(bytes);
}

size_t CountingMemory::bytes() const { return state_->bytes.load(); }
size_t CountingMemory::peak_bytes() const { return state_->peak.load(); }
void CountingMemory::reset_peak() { state_->peak.store(state_->bytes.load()); }

Buffer::Buffer(std::shared_ptr<Memory> memory, size_t bytes) : memory_(std::move(memory)), data_(memory_->allocate(bytes)), bytes_(bytes) {}

Buffer::Buffer(Buffer&& other) noexcept
    : memory_(std::move(other.memory_)), data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  Buffer moved(std::move(other));
  std::swap(memory_, moved.memory_);
  std::swap(data_, moved.data_);
  std::swap(bytes_, moved.bytes_);
  return *this;
}

Buffer::~Buffer() {
  if (memory_ != nullptr) memory_->release(data_, bytes_);
}

namespace {

size_t bytes_of(Dtype dtype, const Shape& shape) {
  size_t bytes = size_of(dtype);
  for (int axis = 0; axis < shape.rank; ++axis) {
    const auto size = static_cast<size_t>(shape[axis]);
    check(size == 0 || bytes <= std::numeric_limits<size_t>::max() / 2 / size, Error::Kind::shape, "Tensor: ", shape, " of ", dtype,
          " has too many bytes to count");
    bytes *= size;
  }
  return bytes;
}

}  // namespace

Tensor::Tensor(const std::shared_ptr<Memory>& memory, Dtype dtype, const Shape& shape)
    : buffer(memory, bytes_of(dtype, shape)), view(buffer.data(), dtype, shape) {}

void Tensor::fill_zero() const {
  if (buffer.bytes() > 0) std::memset(buffer.data(), 0, buffer.bytes());
}

TILEWISE_END_PUBLIC
