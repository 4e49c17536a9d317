// SPDX-License-Identifier: Apache-2.0
#include "tilewise/machine/device.h"

#include <array>

namespace tilewise::machine {

Context on_cpu(const Context& context) {
  if (context.device.type == Device::Type::cpu) return context;
  Context result = context;
  result.device = {};
  result.stream = nullptr;
  result.memory = host_memory();
  return result;
}

Tensor make_tensor(const Context& context, Dtype dtype, const Shape& shape) {
  Tensor tensor(context.memory, dtype, shape);
  tensor.view = TensorView(tensor.view.raw(), dtype, shape, context.device);
  return tensor;
}

OnHost::OnHost(const TensorView& tensor, const Context& context) : view(tensor) {
  if (!tensor.has_value() || tensor.device().type == Device::Type::cpu) return;
  int64_t extent = tensor.numel() == 0 ? 0 : 1;
  std::array<int64_t, Shape::kMaxRank> strides{};
  for (int axis = 0; axis < tensor.rank(); ++axis) {
    strides[static_cast<size_t>(axis)] = tensor.stride(axis);
    if (extent > 0) extent += (tensor.dim(axis) - 1) * tensor.stride(axis);
  }
  const size_t bytes = static_cast<size_t>(extent) * size_of(tensor.dtype());
  copy_ = Buffer(host_memory(), bytes);
  copy_to_host(copy_.data(), tensor.raw(), bytes, context);
  view = TensorView(copy_.data(), tensor.dtype(), tensor.shape(), strides);
}

Tensor to_device(const TensorView& tensor, const Context& context) {
  check(tensor.is_contiguous(), Error::Kind::shape, "to_device: the tensor ", tensor.shape(), " is not contiguous; copy it first");
  Tensor result = make_tensor(context, tensor.dtype(), tensor.shape());
  copy_to_device(result.view.raw(), tensor.raw(), static_cast<size_t>(tensor.numel()) * size_of(tensor.dtype()), context);
  return result;
}

}  // namespace tilewise::machine
