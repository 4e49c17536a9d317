// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <array>
#include <cstdint>
#include <initializer_list>
#include <iosfwd>

#include "tilewise/base/dtype.h"
#include "tilewise/base/error.h"

TILEWISE_BEGIN_PUBLIC

struct Device {
  enum class Type : uint8_t { cpu, cuda };
  Type type = Type::cpu;
  int index = 0;
  bool operator==(const Device&) const = default;
};

/// Sizes of a tensor; prints as [2, 8, 512, 64].
struct Shape {
  static constexpr int kMaxRank = 5;
  int rank = 0;
  std::array<int64_t, kMaxRank> sizes{};

  Shape() = default;
  TILEWISE_API Shape(std::initializer_list<int64_t> sizes);
  int64_t operator[](int axis) const { return sizes[static_cast<size_t>(axis)]; }
  /// Product of the sizes; 0 for a shape of rank 0, since a default view is "no tensor".
  TILEWISE_API int64_t numel() const;
  bool operator==(const Shape&) const = default;
};
TILEWISE_API std::ostream& operator<<(std::ostream& out, const Shape& shape);
TILEWISE_API std::ostream& operator<<(std::ostream& out, Dtype dtype);
TILEWISE_API std::ostream& operator<<(std::ostream& out, Device device);

/// A place in memory with a dtype, sizes and strides (in elements). It never owns. A default-made view is absent: `!has_value()`.
class TILEWISE_API TensorView {
 public:
  TensorView() = default;
  /// Contiguous, last axis fastest.
  TensorView(void* data, Dtype dtype, const Shape& shape, Device device = {});
  TensorView(void* data, Dtype dtype, const Shape& shape, const std::array<int64_t, Shape::kMaxRank>& strides, Device device = {});
  /// A contiguous view of typed memory. A view of const memory is for reading alone; functions say which arguments they write.
  template <class T>
  static TensorView of(T* data, const Shape& shape) {
    using Element = std::remove_const_t<T>;
    return TensorView(const_cast<Element*>(data), kDtypeOf<Element>, shape);
  }

  bool has_value() const { return shape_.rank > 0; }
  int rank() const { return shape_.rank; }
  int64_t dim(int axis) const { return shape_.sizes[static_cast<size_t>(axis)]; }
  int64_t stride(int axis) const { return strides_[static_cast<size_t>(axis)]; }
  int64_t numel() const { return shape_.numel(); }
  const Shape& shape() const { return shape_; }
  Dtype dtype() const { return dtype_; }
  Device device() const { return device_; }
  bool is_contiguous() const;
  void* raw() const { return data_; }
  /// Typed pointer to element 0. Errors: dtype, when T is not the tensor's.
  template <class T>
  T* data() const {
    check(kDtypeOf<std::remove_const_t<T>> == dtype_, Error::Kind::dtype, "TensorView::data: the tensor is ", dtype_, ", asked for ",
          kDtypeOf<std::remove_const_t<T>>);
    return static_cast<T*>(data_);
  }
  /// Elements from element 0 to (i, j, ...).
  template <class... Index>
  int64_t offset(Index... index) const {
    int axis = 0;
    int64_t total = 0;
    ((total += static_cast<int64_t>(index) * strides_[static_cast<size_t>(axis++)]), ...);
    return total;
  }
  template <class T, class... Index>
  T& at(Index... index) const {
    return static_cast<T*>(data_)[offset(index...)];
  }
  /// The part [first, first + length) of one axis.
  TensorView slice(int axis, int64_t first, int64_t length) const;
  /// Axes in another order.
  TensorView permute(std::initializer_list<int> axes) const;

 private:
  void* data_ = nullptr;
  Dtype dtype_ = Dtype::f32;
  Device device_{};
  Shape shape_{};
  std::array<int64_t, Shape::kMaxRank> strides_{};
};

TILEWISE_END_PUBLIC
