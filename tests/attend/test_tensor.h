// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <new>
#include <random>
#include <span>
#include <vector>

#include "tilewise/base/tensor.h"

// Tensors for tests: any strides, seeded contents, and a watch over the memory between their elements.
namespace tilewise::attend::testing {

using Rng = std::mt19937_64;

inline int64_t uniform(Rng& rng, int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(rng); }
inline bool chance(Rng& rng, double probability) { return std::uniform_real_distribution<double>(0, 1)(rng) < probability; }

/// How elements lie in memory. The last axis is contiguous in all of them.
enum class Layout { contiguous, heads_last, padded };  // heads_last: [B, S, H, D] in memory; padded: a gap after every row, head and batch entry

inline double to_double(const TensorView& view, int64_t offset) {
  switch (view.dtype()) {
    case Dtype::f32: return static_cast<double>(static_cast<const float*>(view.raw())[offset]);
    case Dtype::f64: return static_cast<const double*>(view.raw())[offset];
    case Dtype::bf16: return static_cast<double>(static_cast<float>(static_cast<const bf16*>(view.raw())[offset]));
    case Dtype::f16: return static_cast<double>(static_cast<float>(static_cast<const f16*>(view.raw())[offset]));
    default: return std::numeric_limits<double>::quiet_NaN();
  }
}

inline void from_double(const TensorView& view, int64_t offset, double value) {
  switch (view.dtype()) {
    case Dtype::f32: static_cast<float*>(view.raw())[offset] = static_cast<float>(value); return;
    case Dtype::f64: static_cast<double*>(view.raw())[offset] = value; return;
    case Dtype::bf16: static_cast<bf16*>(view.raw())[offset] = bf16(static_cast<float>(value)); return;
    case Dtype::f16: static_cast<f16*>(view.raw())[offset] = f16(static_cast<float>(value)); return;
    default: fail(Error::Kind::dtype, "test_tensor: cannot write ", view.dtype());
  }
}

/// Calls body(offset in elements) for every element, last axis fastest.
template <class Body>
void for_each_offset(const TensorView& view, const Body& body) {
  const int64_t total = view.numel();
  for (int64_t flat = 0; flat < total; ++flat) {
    int64_t rest = flat, offset = 0;
    for (int axis = view.rank() - 1; axis >= 0; --axis) {
      offset += rest % view.dim(axis) * view.stride(axis);
      rest /= view.dim(axis);
    }
    body(offset);
  }
}

/// Bytes with pages on either side that nobody may touch; the bytes end at the one behind them, so that one byte too many stops the program.
class GuardedBytes {
 public:
  explicit GuardedBytes(size_t bytes) : bytes_(bytes) {
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    mapped_ = (bytes + page - 1) / page * page + 2 * page;
    void* const base = mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED) throw std::bad_alloc();
    base_ = static_cast<unsigned char*>(base);
    if (mprotect(base_, page, PROT_NONE) != 0 || mprotect(base_ + mapped_ - page, page, PROT_NONE) != 0) throw std::bad_alloc();
    data_ = base_ + mapped_ - page - bytes;
  }
  GuardedBytes(const GuardedBytes&) = delete;
  GuardedBytes& operator=(const GuardedBytes&) = delete;
  ~GuardedBytes() { munmap(base_, mapped_); }

  std::span<unsigned char> span() const { return {data_, bytes_}; }

 private:
  unsigned char *base_ = nullptr, *data_ = nullptr;
  size_t bytes_, mapped_ = 0;
};

/// Whether a tensor's elements may be followed by more of its own memory.
enum class Edge { padded, guarded };  // guarded: the last element ends where a page begins that nobody may touch

/// A tensor with memory of its own. Memory outside of its elements holds a pattern that gaps_are_untouched() looks for.
class HostTensor {
 public:
  HostTensor() = default;
  HostTensor(Dtype dtype, const Shape& shape, Layout layout = Layout::contiguous, Edge edge = Edge::padded) {
    std::array<int64_t, Shape::kMaxRank> strides{};
    std::vector<int> order(static_cast<size_t>(shape.rank));  // axes from the slowest to the fastest
    for (int axis = 0; axis < shape.rank; ++axis) order[static_cast<size_t>(axis)] = axis;
    if (layout == Layout::heads_last && shape.rank == 4) std::swap(order[1], order[2]);
    int64_t step = 1;
    for (size_t i = order.size(); i-- > 0;) {
      const int axis = order[i];
      strides[static_cast<size_t>(axis)] = step;
      step *= shape[axis];
      if (layout == Layout::padded) step += 3 + static_cast<int64_t>(i);
    }
    if (edge == Edge::guarded) {
      int64_t last = 0;  // elements up to the end of the last one
      for (int axis = 0; axis < shape.rank; ++axis) last += (shape[axis] - 1) * strides[static_cast<size_t>(axis)];
      const auto guarded = std::make_shared<GuardedBytes>(shape.numel() == 0 ? 0 : static_cast<size_t>(last + 1) * size_of(dtype));
      owner_ = guarded;
      memory_ = guarded->span();
      wipe();
      view = TensorView(memory_.data(), dtype, shape, strides);
      return;
    }
    const size_t bytes = static_cast<size_t>(step + kGuard * 2) * size_of(dtype);
    const auto padded = std::make_shared<std::vector<unsigned char>>(bytes + 64, kPattern);
    owner_ = padded;
    memory_ = *padded;
    const size_t past_line = reinterpret_cast<uintptr_t>(memory_.data()) % 64;
    unsigned char* const first = memory_.data() + (past_line == 0 ? 0 : 64 - past_line) + static_cast<size_t>(kGuard) * size_of(dtype);
    view = TensorView(first, dtype, shape, strides);
  }

  /// Whether every byte that is not an element still holds the pattern.
  bool gaps_are_untouched() const {
    std::vector<bool> is_element(memory_.size(), false);
    const size_t bytes = size_of(view.dtype());
    const auto base = static_cast<size_t>(static_cast<const unsigned char*>(view.raw()) - memory_.data());
    for_each_offset(view, [&](int64_t offset) {
      for (size_t i = 0; i < bytes; ++i) is_element[base + static_cast<size_t>(offset) * bytes + i] = true;
    });
    for (size_t i = 0; i < memory_.size(); ++i) {
      if (!is_element[i] && memory_[i] != kPattern) return false;
    }
    return true;
  }
  /// All bytes, to compare before and after.
  std::vector<unsigned char> bytes() const { return {memory_.begin(), memory_.end()}; }
  /// Every byte back to the pattern (as f32 and bf16 it is a NaN-free odd number).
  void wipe() const { std::fill(memory_.begin(), memory_.end(), kPattern); }

  template <class... Index>
  double get(Index... index) const {
    return to_double(view, view.offset(index...));
  }
  template <class... Index>
  void set(double value, Index... index) const {
    from_double(view, view.offset(index...), value);
  }

  TensorView view;

 private:
  static constexpr unsigned char kPattern = 0xa5;
  static constexpr int64_t kGuard = 64;  // elements before and after: a whole vector of overrun shows
  std::shared_ptr<const void> owner_;
  std::span<unsigned char> memory_;
};

inline HostTensor zeros(Dtype dtype, const Shape& shape, Layout layout = Layout::contiguous) {
  HostTensor tensor(dtype, shape, layout);
  const size_t bytes = size_of(dtype);
  for_each_offset(tensor.view,
                  [&](int64_t offset) { std::memset(static_cast<char*>(tensor.view.raw()) + offset * static_cast<int64_t>(bytes), 0, bytes); });
  return tensor;
}

inline HostTensor random_normal(Rng& rng, Dtype dtype, const Shape& shape, Layout layout = Layout::contiguous, double sigma = 1,
                                Edge edge = Edge::padded) {
  HostTensor tensor(dtype, shape, layout, edge);
  std::normal_distribution<double> normal(0, sigma);
  for_each_offset(tensor.view, [&](int64_t offset) { from_double(tensor.view, offset, normal(rng)); });
  return tensor;
}

/// A tensor of the values in another dtype (and layout).
inline HostTensor converted(const TensorView& source, Dtype dtype, Layout layout = Layout::contiguous) {
  HostTensor tensor(dtype, source.shape(), layout);
  std::vector<double> values;
  for_each_offset(source, [&](int64_t offset) { values.push_back(to_double(source, offset)); });
  size_t next = 0;
  for_each_offset(tensor.view, [&](int64_t offset) { from_double(tensor.view, offset, values[next++]); });
  return tensor;
}

/// All elements in the order of the axes.
inline std::vector<double> values_of(const TensorView& view) {
  std::vector<double> values;
  values.reserve(static_cast<size_t>(view.numel()));
  for_each_offset(view, [&](int64_t offset) { values.push_back(to_double(view, offset)); });
  return values;
}

inline double largest_magnitude(const std::vector<double>& values) {
  double largest = 0;
  for (const double value : values) {
    if (std::isfinite(value)) largest = std::max(largest, std::fabs(value));
  }
  return largest;
}

/// Largest |a - b|; equal infinities and pairs of NaN count as equal, any other difference in kind as infinite.
inline double largest_difference(const std::vector<double>& a, const std::vector<double>& b) {
  if (a.size() != b.size()) return std::numeric_limits<double>::infinity();
  double largest = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    if (a[i] == b[i] || (std::isnan(a[i]) && std::isnan(b[i]))) continue;
    const double difference = std::fabs(a[i] - b[i]);
    largest = std::isnan(difference) ? std::numeric_limits<double>::infinity() : std::max(largest, difference);
  }
  return largest;
}

}  // namespace tilewise::attend::testing
