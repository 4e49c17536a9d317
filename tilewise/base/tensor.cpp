// SPDX-License-Identifier: Apache-2.0
#include "tilewise/base/tensor.h"

#include <ostream>

TILEWISE_BEGIN_PUBLIC

Shape::Shape(std::initializer_list<int64_t> list) {
  check(list.size() <= kMaxRank, Error::Kind::shape, "Shape: rank ", list.size(), " is above ", kMaxRank);
  for (const int64_t size : list) {
    check(size >= 0, Error::Kind::shape, "Shape: size ", size, " of axis ", rank, " is negative");
    sizes[static_cast<size_t>(rank++)] = size;
  }
}

int64_t Shape::numel() const {
  if (rank == 0) return 0;
  int64_t product = 1;
  for (int axis = 0; axis < rank; ++axis) product *= sizes[static_cast<size_t>(axis)];
  return product;
}

std::ostream& operator<<(std::ostream& out, const Shape& shape) {
  out << '[';
  for (int axis = 0; axis < shape.rank; ++axis) out << (axis > 0 ? ", " : "") << shape[axis];
  return out << ']';
}

std::ostream& operator<<(std::ostream& out, Dtype dtype) { return out << name(dtype); }

std::ostream& operator<<(std::ostream& out, Device device) {
  if (device.type == Device::Type::cpu) return out << "cpu";
  return out << "cuda:" << device.index;
}

TensorView::TensorView(void* data, Dtype dtype, const Shape& shape, Device device) : data_(data), dtype_(dtype), device_(device), shape_(shape) {
  int64_t stride = 1;
  for (int axis = shape.rank - 1; axis >= 0; --axis) {
    strides_[static_cast<size_t>(axis)] = stride;
    stride *= shape[axis];
  }
}

TensorView::TensorView(void* data, Dtype dtype, const Shape& shape, const std::array<int64_t, Shape::kMaxRank>& strides, Device device)
    : data_(data), dtype_(dtype), device_(device), shape_(shape), strides_(strides) {}

bool TensorView::is_contiguous() const {
  int64_t expected = 1;
  for (int axis = shape_.rank - 1; axis >= 0; --axis) {
    if (dim(axis) != 1 && stride(axis) != expected) return false;
    expected *= dim(axis);
  }
  return true;
}

TensorView TensorView::slice(int axis, int64_t first, int64_t length) const {
  check(axis >= 0 && axis < rank(), Error::Kind::value, "TensorView::slice: axis ", axis, " of a tensor of rank ", rank());
  check(first >= 0 && length >= 0 && first <= dim(axis) - length, Error::Kind::value, "TensorView::slice: [", first, ", ", first + length,
        ") is outside axis ", axis, " of ", shape_);
  TensorView part = *this;
  if (data_ != nullptr) {
    part.data_ = static_cast<char*>(data_) + first * stride(axis) * static_cast<int64_t>(size_of(dtype_));
  }
  part.shape_.sizes[static_cast<size_t>(axis)] = length;
  return part;
}

TensorView TensorView::permute(std::initializer_list<int> axes) const {
  check(static_cast<int>(axes.size()) == rank(), Error::Kind::shape, "TensorView::permute: ", axes.size(), " axes for rank ", rank());
  TensorView result = *this;
  unsigned seen = 0;
  size_t to = 0;
  for (const int from : axes) {
    check(from >= 0 && from < rank() && (seen & (1u << from)) == 0, Error::Kind::value, "TensorView::permute: axis ", from,
          " is repeated or outside rank ", rank());
    seen |= 1u << from;
    result.shape_.sizes[to] = dim(from);
    result.strides_[to] = stride(from);
    ++to;
  }
  return result;
}

TILEWISE_END_PUBLIC
