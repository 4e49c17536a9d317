// SPDX-License-Identifier: Apache-2.0
#pragma once
// The one place that includes torch: its stable ABI, so that one binary serves torch 2.11 (TORCH_TARGET_VERSION) and every later version.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/shim_utils.h>

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#include "tilewise/base/context.h"
#include "tilewise/base/tensor.h"
#include "tilewise/plan/plan.h"

namespace tilewise::ops {

using TorchTensor = torch::stable::Tensor;
using MaybeTensor = std::optional<TorchTensor>;

/// A string argument. (torch's own conversion to std::string leaks one for every call, 2.13.)
struct Text {
  std::string value;
};

/// The tensor as tilewise sees it, without a copy. Errors: dtype (one that tilewise does not have), shape (more than 5 axes), device.
TensorView view_of(const TorchTensor& tensor);
TensorView view_of(const MaybeTensor& tensor);
/// The same to be written to.
TensorView writable(const TorchTensor& tensor);
/// The tensor itself where its last axis is contiguous, as kernels need it; else a contiguous copy.
TorchTensor with_contiguous_rows(const TorchTensor& tensor);
MaybeTensor with_contiguous_rows(const MaybeTensor& tensor);

/// An uninitialised tensor on the device of `like`.
TorchTensor empty(const Shape& shape, Dtype dtype, const TorchTensor& like);
/// [B, H, S, D] of the dtype of `like`; in memory [B, S, H, D] where `like` lies so, else contiguous. python/tilewise/_operators.py says the same.
TorchTensor empty_in_layout_of(const TorchTensor& like, const Shape& shape);
/// On the CPU.
TorchTensor empty_on_host(const Shape& shape, Dtype dtype);

/// What a call on this tensor runs with: its device and torch's current stream on it; torch's threads; memory of torch's on a GPU.
Context context_of(const TorchTensor& tensor);
Context host_context();

/// Errors: value, with the argument's name, where an int does not hold it.
int as_int(std::string_view name, int64_t value);
/// A mask as Python writes it (python/tilewise/_mask.py): form (0 bands, 1 spans, 2 neighbourhoods), first token of a grid, classes, axes, length of
/// head_class; then the numbers of each band (3) or axis (5), then head_class. Errors: value.
Mask mask_of(const std::vector<int64_t>& numbers, const MaybeTensor& spans);
/// The plan in these two tensors, without a copy. Errors: value, dtype, device.
Plan plan_of(const TorchTensor& memory, const TorchTensor& layout);
/// A plan as two tensors, memory and layout: of one on the CPU a copy; one on a GPU, made with a context of context_of(), keeps its memory.
/// Errors: unsupported (on a GPU in several pieces of memory).
std::tuple<TorchTensor, TorchTensor> tensors_of(const Plan& plan);

/// Runs body(), and turns every exception into the one that torch's boundary carries: its text begins with "[tilewise:KIND] ", which the Python door
/// (python/tilewise/_errors.py) turns into the natural class with the message behind it.
auto guarded(auto&& body) {
  try {
    return body();
  } catch (const Error& error) {
    throw std::runtime_error("[tilewise:" + std::string(name(error.kind())) + "] " + error.what());
  } catch (const std::bad_alloc&) {
    throw std::runtime_error("[tilewise:memory] out of memory");
  }
}

}  // namespace tilewise::ops

namespace torch::stable::detail {

template <>
struct ToImpl<tilewise::ops::Text> {
  static tilewise::ops::Text call(StableIValue value, uint64_t, bool) {
    const StringHandle handle = torch::stable::detail::to<StringHandle>(value);
    const char* data = nullptr;
    size_t length = 0;
    TORCH_ERROR_CODE_CHECK(torch_string_length(handle, &length));
    TORCH_ERROR_CODE_CHECK(torch_string_c_str(handle, &data));
    tilewise::ops::Text text{std::string(data, length)};
    TORCH_ERROR_CODE_CHECK(torch_delete_string(handle));
    return text;
  }
};

}  // namespace torch::stable::detail
