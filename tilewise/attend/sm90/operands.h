// SPDX-License-Identifier: Apache-2.0
// The caller's tensors as the Hopper kernels take them.
#pragma once
#include <cstdint>
#include <optional>
#include <string>

#include "tilewise/attend/cuda/plan_view.h"
#include "tilewise/base/tensor.h"
#include "tilewise/machine/sm90/tensor_map.h"

namespace tilewise::attend::sm90 {

using cuda::text;

/// What the copy engine can read and write.
inline std::optional<std::string> refusal_of_operand(const char* name, const TensorView& view, int most_channels) {
  if (view.device().type != Device::Type::cuda) return text(name, " is on ", view.device(), ", takes a GPU");
  if (view.dtype() != Dtype::bf16 && view.dtype() != Dtype::f16) return text(name, " is ", view.dtype(), ", which is not built (has bf16, f16)");
  if (view.dim(3) > most_channels) return text(name, " has ", view.dim(3), " channels, above ", most_channels);
  if (view.numel() == 0) return std::nullopt;
  if (reinterpret_cast<uintptr_t>(view.raw()) % 16 != 0) return text(name, " lies at an address that is not a multiple of 16 bytes; copy it");
  for (int axis = 0; axis < 3; ++axis) {
    if (view.dim(axis) <= 1) continue;
    if (view.stride(axis) % 8 != 0 || view.stride(axis) <= 0) {
      return text(name, " has stride ", view.stride(axis), " in axis ", axis, ", takes a multiple of 8 above 0; copy it with D padded");
    }
  }
  return std::nullopt;
}

inline machine::sm90::Tensor16 tensor16(const TensorView& view) {
  machine::sm90::Tensor16 tensor;
  if (!view.has_value()) return tensor;
  tensor.data = view.raw();
  tensor.is_bf16 = view.dtype() == Dtype::bf16;
  tensor.batch = static_cast<int>(view.dim(0));
  tensor.heads = static_cast<int>(view.dim(1));
  tensor.seqlen = static_cast<int>(view.dim(2));
  tensor.head_dim = static_cast<int>(view.dim(3));
  tensor.stride_batch = view.stride(0);
  tensor.stride_head = view.stride(1);
  tensor.stride_token = view.stride(2);
  return tensor;
}

}  // namespace tilewise::attend::sm90
