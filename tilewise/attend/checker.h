// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <initializer_list>

#include "tilewise/base/context.h"

// What the checks of all entry points are made of.
namespace tilewise::attend {

struct Named {
  const char* name;
  const TensorView& view;
};

/// One call's checks: the name of the function and the device that every tensor must share.
class Checker {
 public:
  using Kind = Error::Kind;

  Checker(const char* function, const Context& context) : function_(function), device_(context.device) {}

  template <class... Parts>
  void require(bool holds, Kind kind, const Parts&... parts) const {
    check(holds, kind, function_, ": ", parts...);
  }

  void is_there(const char* name, const TensorView& view, const char* layout) const {
    require(view.has_value(), Kind::value, name, " is absent, and is needed: a tensor ", layout);
  }

  // What holds for every tensor, read or written.
  void is_usable(const char* name, const TensorView& view) const {
    require(view.device() == device_, Kind::device, name, " is on ", view.device(), ", the context runs on ", device_,
            "; move the tensor or set Context::device");
    if (view.numel() == 0) return;  // whatever its strides are, nothing is read by them
    const int last = view.rank() - 1;
    require(view.dim(last) <= 1 || view.stride(last) == 1, Kind::shape, name, " has stride ", view.stride(last),
            " in its last axis, takes 1; copy it so that the last axis is contiguous");
    require(view.raw() != nullptr, Kind::value, name, " ", view.shape(), " has a null pointer; give it memory, or leave it absent");
    const size_t bytes = size_of(view.dtype());
    require(reinterpret_cast<uintptr_t>(view.raw()) % bytes == 0, Kind::value, name, " lies at an address that is not a multiple of ", bytes,
            " bytes, the size of ", view.dtype(), "; align it");
  }

  // An axis of stride 0 would have several elements written to one place.
  void is_writable(const char* name, const TensorView& view) const {
    if (view.numel() == 0) return;
    for (int axis = 0; axis < view.rank(); ++axis) {
      require(view.dim(axis) <= 1 || view.stride(axis) != 0, Kind::shape, name, " is written, and its axis ", axis, " of size ", view.dim(axis),
              " has stride 0; give every element its own place");
    }
  }

  void has_rank(const char* name, const TensorView& view, int rank, const char* layout) const {
    require(view.rank() == rank, Kind::shape, name, " has shape ", view.shape(), ", takes ", rank, " axes: ", layout);
  }

  void has_shape(const char* name, const TensorView& view, const Shape& shape, const char* layout) const {
    require(view.shape() == shape, Kind::shape, name, " has shape ", view.shape(), ", takes ", shape, ": ", layout);
  }

  void has_dtype(const char* name, const TensorView& view, Dtype dtype, const char* why) const {
    require(view.dtype() == dtype, Kind::dtype, name, " is ", view.dtype(), ", takes ", dtype, " (", why, "); convert it first");
  }

  void is_float(const char* name, const TensorView& view) const {
    const Dtype d = view.dtype();
    require(d == Dtype::f32 || d == Dtype::bf16 || d == Dtype::f16 || d == Dtype::f64, Kind::dtype, name, " is ", d,
            ", takes f32, bf16, f16 or f64; convert it first");
  }

  void are_apart(const Named& written, std::initializer_list<Named> others) const {
    if (written.view.numel() == 0) return;
    for (const Named& other : others) {
      require(other.view.numel() == 0 || other.view.raw() != written.view.raw(), Kind::value, written.name, " is written and starts where ",
              other.name, " starts; give it memory of its own");
    }
  }

  const char* function() const { return function_; }
  Device device() const { return device_; }

 private:
  const char* function_;
  Device device_;
};

}  // namespace tilewise::attend
