// SPDX-License-Identifier: Apache-2.0
#include "tilewise/attend/sm90/device_plan.h"

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstring>
#include <memory>
#include <vector>

#include "tilewise/attend/sm90/workspace.h"
#include "tilewise/machine/cuda/check.h"
#include "tilewise/plan/pack.h"

namespace tilewise {
namespace attend::sm90 {

namespace {

std::vector<TensorView*> arrays_of(PlanData& plan) {
  std::vector<TensorView*> arrays = {&plan.order_q.token, &plan.order_k.token, &plan.mask.spans};
  for (Lists* lists : {&plan.by_query, &plan.by_key}) {
    for (TensorView* view : {&lists->edge, &lists->status}) arrays.push_back(view);
    for (RunList* list : {&lists->whole, &lists->masked, &lists->picked}) {
      for (TensorView* view : {&list->begin, &list->count, &list->start, &list->stop, &list->rows}) arrays.push_back(view);
    }
  }
  return arrays;
}

constexpr size_t padded(size_t bytes) { return (bytes + Memory::kAlignment - 1) / Memory::kAlignment * Memory::kAlignment; }
size_t bytes_of(const TensorView& view) { return static_cast<size_t>(view.numel()) * size_of(view.dtype()); }

}  // namespace
}  // namespace attend::sm90

inline namespace v0 {

Plan copy_to_device(const Plan& plan, Context& context) {
  using namespace attend::sm90;
  check(plan != nullptr, Error::Kind::value, "copy_to_device: the plan is null");
  check(context.device.type == Device::Type::cuda, Error::Kind::device, "copy_to_device: the context runs on ", context.device,
        "; set Context::device to a GPU");
  const machine::cuda::DeviceScope scope(context.device.index);
  auto copy = std::make_shared<PlanData>(plan::share(plan));
  copy->memory.clear();
  copy->shared.clear();  // its arrays are its own
  const std::vector<TensorView*> arrays = arrays_of(*copy);
  size_t total = 0;
  for (const TensorView* view : arrays) {
    if (!view->has_value()) continue;
    check(view->device().type == Device::Type::cpu, Error::Kind::device, "copy_to_device: an array of the plan is on ", view->device(),
          ", takes a plan on the host");
    check(view->is_contiguous(), Error::Kind::shape, "copy_to_device: an array ", view->shape(), " of the plan is not contiguous; pack the plan");
    total += padded(bytes_of(*view));
  }
  Buffer buffer = device_buffer("copy_to_device", total, context);
  std::vector<std::byte> staged(total);
  size_t at = 0;
  for (TensorView* view : arrays) {
    if (!view->has_value()) continue;
    if (view->numel() > 0) std::memcpy(staged.data() + at, view->raw(), bytes_of(*view));
    // An empty array needs an address, too: a list without a run still has rows.
    *view = TensorView(static_cast<std::byte*>(buffer.data()) + at, view->dtype(), view->shape(), context.device);
    at += padded(bytes_of(*view));
  }
  if (total > 0) {
    const auto stream = static_cast<cudaStream_t>(context.stream);
    machine::cuda::check_cuda(cudaMemcpyAsync(buffer.data(), staged.data(), total, cudaMemcpyHostToDevice, stream), "copy_to_device");
    machine::cuda::check_cuda(cudaStreamSynchronize(stream), "copy_to_device");
  }
  copy->memory.push_back(std::move(buffer));
  return copy;
}

Plan copy_to_host(const Plan& plan, const Context& context) {
  using namespace attend::sm90;
  check(plan != nullptr, Error::Kind::value, "copy_to_host: the plan is null");
  check(context.device.type == Device::Type::cuda, Error::Kind::device, "copy_to_host: the context runs on ", context.device,
        "; set Context::device to the plan's GPU");
  const machine::cuda::DeviceScope scope(context.device.index);
  auto copy = std::make_shared<PlanData>(plan::share(plan));
  copy->memory.clear();
  copy->shared.clear();  // its arrays are its own
  const auto stream = static_cast<cudaStream_t>(context.stream);
  for (TensorView* view : arrays_of(*copy)) {
    if (!view->has_value()) continue;
    check(view->device() == context.device, Error::Kind::device, "copy_to_host: an array of the plan is on ", view->device(),
          ", the context runs on ", context.device);
    check(view->is_contiguous(), Error::Kind::shape, "copy_to_host: an array ", view->shape(), " of the plan is not contiguous; pack the plan");
    Tensor tensor(host_memory(), view->dtype(), view->shape());
    if (view->numel() > 0) {
      machine::cuda::check_cuda(cudaMemcpyAsync(tensor.view.raw(), view->raw(), bytes_of(*view), cudaMemcpyDeviceToHost, stream), "copy_to_host");
    }
    *view = plan::keep(*copy, std::move(tensor));
  }
  machine::cuda::check_cuda(cudaStreamSynchronize(stream), "copy_to_host");
  return copy;
}

}  // namespace v0
}  // namespace tilewise
