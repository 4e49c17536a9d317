// SPDX-License-Identifier: Apache-2.0
#include "tests/study/stand_in/gpu.h"

#include <sys/mman.h>

#include <array>
#include <cstring>
#include <map>
#include <vector>

#include "tests/infer/cuda/host_queue.h"
#include "tilewise/attend/backend.h"
#include "tilewise/attend/cpu/decode.h"
#include "tilewise/attend/cpu/forward.h"
#include "tilewise/infer/layer.h"
#include "tilewise/machine/device.h"
#include "tilewise/methods/dense.h"
#include "tilewise/methods/mean_pool.h"
#include "tilewise/methods/problem.h"
#include "tilewise/plan/pack.h"
#include "tilewise/select/mean_pool.h"
#include "tilewise/select/plan.h"

namespace tilewise {
namespace testing {
namespace {

int& open_count() {
  static int count = 0;
  return count;
}
std::map<void*, size_t>& regions() {
  static std::map<void*, size_t> all;
  return all;
}
void protect_all(int protection) {
  for (const auto& [data, bytes] : regions()) {
    if (::mprotect(data, bytes, protection) != 0) std::abort();
  }
}

class ProtectedMemory final : public Memory {
 public:
  void* allocate(size_t bytes) override {
    if (bytes == 0) return nullptr;
    void* const data = ::mmap(nullptr, bytes, open_count() > 0 ? PROT_READ | PROT_WRITE : PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    check(data != MAP_FAILED, Error::Kind::memory, "stand-in: ", bytes, " bytes");
    regions().emplace(data, bytes);
    return data;
  }
  void release(void* data, size_t) noexcept override {
    const auto region = regions().find(data);
    if (region == regions().end()) return;
    ::munmap(data, region->second);
    regions().erase(region);
  }
};

constexpr Device kGpu{Device::Type::cuda, 0};

TensorView on(const TensorView& view, Device device) {
  std::array<int64_t, Shape::kMaxRank> strides{};
  for (int axis = 0; axis < view.rank(); ++axis) strides[static_cast<size_t>(axis)] = view.stride(axis);
  return view.has_value() ? TensorView(view.raw(), view.dtype(), view.shape(), strides, device) : view;
}

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

/// The plan with its arrays where they are, or copied to `memory`, and labelled with a device.
Plan plan_on(const Plan& plan, Device device, const std::shared_ptr<Memory>& memory) {
  auto copy = std::make_shared<PlanData>(plan::share(plan));
  for (TensorView* view : arrays_of(*copy)) {
    if (!view->has_value()) continue;
    if (memory != nullptr) {
      Tensor tensor(memory, view->dtype(), view->shape());
      if (view->numel() > 0) std::memcpy(tensor.view.raw(), view->raw(), static_cast<size_t>(view->numel()) * size_of(view->dtype()));
      *view = plan::keep(*copy, std::move(tensor));
    }
    *view = on(*view, device);
  }
  return copy;
}

/// A problem of the GPU as the CPU takes it, and its plan moved to the GPU.
template <class Search>
Plan planned_on_host(const Problem& problem, Context& context, const Search& search) {
  const OpenMemory open;
  Problem here = problem;
  for (TensorView* view : {&here.q, &here.k, &here.v, &here.mask.spans}) *view = on(*view, {});
  Context host = machine::on_cpu(context);
  return plan_on(search(here, host), kGpu, context.memory);
}

std::optional<std::string> refusal(const AttendParams& params) {
  if (params.q.device() == kGpu) return std::nullopt;
  return "the tensors are not on the stand-in";
}

Ran forward(const AttendParams& params, Context& context) {
  const OpenMemory open;
  AttendParams here = params;
  here.q = on(params.q, {});
  here.k = on(params.k, {});
  here.v = on(params.v, {});
  here.out = on(params.out, {});
  here.lse = on(params.lse, {});
  here.sink_logit = on(params.sink_logit, {});
  here.plan = plan_on(params.plan, {}, nullptr);
  Context host = machine::on_cpu(context);
  Ran ran = attend::cpu::forward(here, host);
  ran.backend = "stand-in";
  ran.target = "";
  return ran;
}

const std::array kBackends{
    attend::Backend{.name = "stand-in", .forward_refusal = &refusal, .forward = &forward},
    attend::Backend{.name = "cpu",
                    .forward_refusal = &attend::cpu::refusal,
                    .forward = &attend::cpu::forward,
                    .decode_refusal = &attend::cpu::refusal,
                    .decode = &attend::cpu::decode},
};

/// Opens the memory around each piece of work.
class GatedQueue final : public infer::cuda::Queue {
 public:
  void upload(void* to, const void* from, size_t bytes) override {
    const OpenMemory open;
    queue_.upload(to, from, bytes);
  }
  void download(void* to, const void* from, size_t bytes) override {
    const OpenMemory open;
    queue_.download(to, from, bytes);
  }
  void wait() override { ++traffic().waits; }
  void run(const infer::cuda::EmbedArgs& args) override { start(args); }
  void run(const infer::cuda::NormArgs& args) override { start(args); }
  void run(const infer::cuda::TurnArgs& args) override { start(args); }
  void run(const infer::cuda::SiluArgs& args) override { start(args); }
  void run(const infer::cuda::BiasArgs& args) override { start(args); }
  void run(const infer::cuda::BitsArgs& args) override { start(args); }
  void run(const infer::cuda::DrawArgs& args) override { start(args); }
  void multiply(const infer::cuda::ProductArgs& args) override {
    const OpenMemory open;
    queue_.multiply(args);
  }

 private:
  template <class Args>
  void start(const Args& args) {
    const OpenMemory open;
    queue_.run(args);
  }
  HostQueue queue_;
};

}  // namespace

std::shared_ptr<Memory> protected_memory() { return std::make_shared<ProtectedMemory>(); }

OpenMemory::OpenMemory() {
  if (open_count()++ == 0) protect_all(PROT_READ | PROT_WRITE);
}
OpenMemory::~OpenMemory() {
  if (--open_count() == 0) protect_all(PROT_NONE);
}

Traffic& traffic() {
  static Traffic all;
  return all;
}

}  // namespace testing

namespace machine {

std::optional<std::string> refusal_of(Device device) {
  if (device.type == Device::Type::cpu || device.index == 0) return std::nullopt;
  return "there is one stand-in";
}
std::string name_of_gpu(int) { return "stand-in"; }
Context on_gpu(const Context& context, int index) {
  Context result = context;
  result.device = {Device::Type::cuda, index};
  result.memory = testing::protected_memory();
  return result;
}
void wait(const Context& context) { testing::traffic().waits += context.device.type == Device::Type::cuda ? 1 : 0; }
void copy_to_device(void* to, const void* from, size_t bytes, const Context&) {
  const testing::OpenMemory open;
  if (bytes > 0) std::memcpy(to, from, bytes);
}
void copy_to_host(void* to, const void* from, size_t bytes, const Context&) {
  const testing::OpenMemory open;
  ++testing::traffic().copies_to_host;
  if (bytes > 0) std::memcpy(to, from, bytes);
}

}  // namespace machine

namespace attend {

std::span<const Backend> backends() { return testing::kBackends; }
const Backend* forced_backend() { return nullptr; }

}  // namespace attend

namespace method {

Planned dense(const Problem& problem, const DenseOptions& options, Context& context) {
  const auto search = [&](const Problem& here, Context& host) {
    const select::Inputs inputs = inputs_of("dense", here);
    return select::plan_of_mask(inputs.mask, inputs.mask, select::plain_rows(inputs, options.tile), inputs.batch(), inputs.heads_q(), host);
  };
  Planned planned;
  const bool is_on_device = problem.q.device() == testing::kGpu;
  planned.plan = is_on_device ? testing::planned_on_host(problem, context, search) : search(problem, context);
  return planned;
}

Planned mean_pool(const Problem& problem, const MeanPoolOptions& options, Context& context) {
  const auto search = [&](const Problem& here, Context& host) {
    select::Budget budget;
    budget.sink = budget.diagonal = 1;
    budget.share = {options.density > 0 ? options.density : .5f};
    return select::plan(select::mean_pool_scores(inputs_of("mean_pool", here), options.tile, host), budget, host);
  };
  Planned planned;
  const bool is_on_device = problem.q.device() == testing::kGpu;
  planned.plan = is_on_device ? testing::planned_on_host(problem, context, search) : search(problem, context);
  return planned;
}

}  // namespace method

namespace infer {

Plan plan_on_host(const Plan& plan, const Context& context) {
  if (context.device.type == Device::Type::cpu) return plan;
  const testing::OpenMemory open;
  ++testing::traffic().copies_to_host;
  return testing::plan_on(plan, {}, host_memory());
}

namespace cuda {

QueueMaker gpu_queues(const Context&) {
  return [](const Context&) -> std::unique_ptr<Queue> { return std::make_unique<testing::GatedQueue>(); };
}
std::string why_no_queues(Device) { return ""; }
std::string product_library() { return "stand-in"; }

}  // namespace cuda
}  // namespace infer
}  // namespace tilewise
