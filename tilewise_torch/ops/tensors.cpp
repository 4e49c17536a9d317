// SPDX-License-Identifier: Apache-2.0
#include "tilewise_torch/ops/tensors.h"

#include <algorithm>
#include <array>
#include <limits>
#include <map>
#include <mutex>

#include "tilewise_torch/ops/executor.h"
#include "tilewise_torch/ops/plan_tensors.h"

// Of libtorch_cuda, which a CPU build of torch does not have: null there.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index, void** ret_stream);

namespace tilewise::ops {
namespace {

struct DtypePair {
  int32_t torch;
  Dtype ours;
};

const std::array<DtypePair, 10>& dtypes() {
  static const std::array<DtypePair, 10> table{{{aoti_torch_dtype_float32(), Dtype::f32},
                                                {aoti_torch_dtype_bfloat16(), Dtype::bf16},
                                                {aoti_torch_dtype_float16(), Dtype::f16},
                                                {aoti_torch_dtype_int64(), Dtype::i64},
                                                {aoti_torch_dtype_uint8(), Dtype::u8},
                                                {aoti_torch_dtype_int32(), Dtype::i32},
                                                {aoti_torch_dtype_bool(), Dtype::boolean},
                                                {aoti_torch_dtype_float64(), Dtype::f64},
                                                {aoti_torch_dtype_int8(), Dtype::i8},
                                                {aoti_torch_dtype_uint64(), Dtype::u64}}};
  return table;
}

Dtype dtype_of(const TorchTensor& tensor) {
  int32_t dtype = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(tensor.get(), &dtype));
  for (const DtypePair& pair : dtypes()) {
    if (pair.torch == dtype) return pair.ours;
  }
  fail(Error::Kind::dtype, "tilewise: a tensor has a dtype that no function takes; convert it to float32, bfloat16 or float16");
}

int32_t torch_dtype(Dtype dtype) {
  for (const DtypePair& pair : dtypes()) {
    if (pair.ours == dtype) return pair.torch;
  }
  return 0;
}

Device torch_device_of(const TorchTensor& tensor) {
  int32_t type = 0, index = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(tensor.get(), &type));
  if (type == aoti_torch_device_type_cpu()) return {};
  check(type == aoti_torch_device_type_cuda(), Error::Kind::device, "tilewise: a tensor is neither on the CPU nor on a CUDA device; move it there");
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(tensor.get(), &index));
  return {Device::Type::cuda, index};
}

TensorView view(const TorchTensor& tensor, void* data) {
  const auto sizes = tensor.sizes(), strides = tensor.strides();
  check(sizes.size() >= 1 && sizes.size() <= Shape::kMaxRank, Error::Kind::shape, "tilewise: a tensor has ", sizes.size(), " axes, takes 1 to ",
        Shape::kMaxRank);
  Shape shape;
  shape.rank = static_cast<int>(sizes.size());
  std::array<int64_t, Shape::kMaxRank> steps{};
  for (size_t axis = 0; axis < sizes.size(); ++axis) {
    shape.sizes[axis] = sizes[axis];
    steps[axis] = strides[axis];
  }
  return {data, dtype_of(tensor), shape, steps, torch_device_of(tensor)};
}

TorchTensor empty_strided(const Shape& shape, const std::array<int64_t, Shape::kMaxRank>& strides, Dtype dtype, Device device) {
  AtenTensorHandle handle = nullptr;
  const bool is_cuda = device.type == Device::Type::cuda;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(shape.rank, shape.sizes.data(), strides.data(), torch_dtype(dtype),
                                                  is_cuda ? aoti_torch_device_type_cuda() : aoti_torch_device_type_cpu(), is_cuda ? device.index : 0,
                                                  &handle));
  return TorchTensor(handle);
}

TorchTensor empty_on(const Shape& shape, Dtype dtype, Device device) {
  std::array<int64_t, Shape::kMaxRank> strides{};
  int64_t step = 1;
  for (int axis = shape.rank - 1; axis >= 0; --axis) {
    strides[static_cast<size_t>(axis)] = step;
    step *= std::max<int64_t>(shape[axis], 1);
  }
  return empty_strided(shape, strides, dtype, device);
}

/// Memory on a GPU from torch's caching allocator, so that the two do not compete for the device.
class TorchMemory final : public Memory {
 public:
  explicit TorchMemory(Device device) : device_(device) {}
  void* allocate(size_t bytes) override {
    TorchTensor block = empty_on({static_cast<int64_t>(bytes)}, Dtype::u8, device_);
    void* const data = block.data_ptr();
    const std::lock_guard lock(blocks().mutex);
    blocks().at.insert_or_assign(data, std::move(block));
    return data;
  }
  void release(void* data, size_t) noexcept override {
    const std::lock_guard lock(blocks().mutex);
    blocks().at.erase(data);
  }
  /// The tensor [bytes] u8 that a block is: it lives on when the block is released.
  static TorchTensor tensor_of(void* data) {
    const std::lock_guard lock(blocks().mutex);
    const auto found = blocks().at.find(data);
    check(found != blocks().at.end(), Error::Kind::unsupported, "tilewise: a plan on a GPU lies in memory that is not torch's");
    return found->second;
  }

 private:
  struct Blocks {
    std::mutex mutex;
    std::map<void*, TorchTensor> at;
  };
  // Of all devices, whose addresses differ. Never destroyed: buffers may outlive static objects.
  static Blocks& blocks() {
    static Blocks* const one = new Blocks;
    return *one;
  }

  Device device_;
};

}  // namespace

TensorView view_of(const TorchTensor& tensor) { return view(tensor, const_cast<void*>(tensor.const_data_ptr())); }
TensorView view_of(const MaybeTensor& tensor) { return tensor.has_value() ? view_of(*tensor) : TensorView{}; }
TensorView writable(const TorchTensor& tensor) { return view(tensor, tensor.mutable_data_ptr()); }

TorchTensor with_contiguous_rows(const TorchTensor& tensor) {
  const int64_t last = tensor.dim() - 1;
  if (last < 0 || tensor.size(last) <= 1 || tensor.stride(last) == 1) return tensor;
  return torch::stable::contiguous(tensor);
}
MaybeTensor with_contiguous_rows(const MaybeTensor& tensor) { return tensor.has_value() ? MaybeTensor(with_contiguous_rows(*tensor)) : tensor; }

TorchTensor empty(const Shape& shape, Dtype dtype, const TorchTensor& like) { return empty_on(shape, dtype, torch_device_of(like)); }
TorchTensor empty_on_host(const Shape& shape, Dtype dtype) { return empty_on(shape, dtype, {}); }

TorchTensor empty_in_layout_of(const TorchTensor& like, const Shape& shape) {
  if (shape.rank != 4 || like.dim() != 4 || like.stride(1) >= like.stride(2)) return empty(shape, dtype_of(like), like);
  const int64_t row = shape[1] * shape[3];
  return empty_strided(shape, {shape[2] * row, shape[3], row, 1}, dtype_of(like), torch_device_of(like));
}

Context host_context() {
  Context context;
  context.executor = torch_executor();
  return context;
}

Context context_of(const TorchTensor& tensor) {
  Context context = host_context();
  context.device = torch_device_of(tensor);
  if (context.device.type == Device::Type::cuda) {
    if (aoti_torch_get_current_cuda_stream != nullptr) {
      TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(context.device.index, &context.stream));
    }
    context.memory = std::make_shared<TorchMemory>(context.device);
  }
  return context;
}

int as_int(std::string_view name, int64_t value) {
  check(value >= std::numeric_limits<int>::min() && value <= std::numeric_limits<int>::max(), Error::Kind::value, name, " is ", value,
        ", takes an int");
  return static_cast<int>(value);
}

Mask mask_of(const std::vector<int64_t>& numbers, const MaybeTensor& spans) {
  constexpr size_t kHeader = 5;
  const auto require = [](bool holds) { check(holds, Error::Kind::value, "tilewise: a mask cannot be read; make it with tilewise.Mask"); };
  require(numbers.size() >= kHeader);
  const int64_t form = numbers[0], classes = numbers[2], axes = numbers[3], heads = numbers[4];
  const int64_t each = form == 0 ? 3 : form == 2 ? axes * 5 : 0;
  require(form >= 0 && form <= 2 && classes >= 0 && classes <= 16 && axes >= 0 && axes <= 16 && heads >= 0);
  require(static_cast<int64_t>(numbers.size()) == static_cast<int64_t>(kHeader) + classes * each + heads && spans.has_value() == (form == 1));
  Mask mask;
  mask.first = numbers[1];
  size_t at = kHeader;
  for (int64_t c = 0; c < (each == 0 ? 0 : classes); ++c) {
    if (form == 0) {
      mask.bands.push_back({numbers[at], numbers[at + 1], numbers[at + 2]});
      at += 3;
      continue;
    }
    mask.grids.emplace_back();
    for (int64_t axis = 0; axis < axes; ++axis, at += 5) {
      const auto value = [&](size_t i) { return as_int("Mask: an axis", numbers[at + i]); };
      mask.grids.back().push_back({value(0), value(1), value(2), value(3), value(4) != 0});
    }
  }
  mask.spans = view_of(spans);
  for (; at < numbers.size(); ++at) mask.head_class.push_back(static_cast<uint8_t>(numbers[at]));
  return mask;
}

Plan plan_of(const TorchTensor& memory, const TorchTensor& layout) {
  const TensorView bytes = view_of(memory), numbers = view_of(layout);
  check(bytes.dtype() == Dtype::u8 && bytes.rank() == 1 && bytes.is_contiguous() && numbers.dtype() == Dtype::i64 && numbers.rank() == 1 &&
            numbers.is_contiguous(),
        Error::Kind::value,
        "tilewise: a plan is two contiguous tensors, uint8 and int64, of one axis each; pass plan.memory and plan.layout of one Plan");
  check(numbers.device().type == Device::Type::cpu, Error::Kind::device, "tilewise: the layout of a plan is on ", numbers.device(),
        ", takes the CPU; move plans with Plan.to(), which leaves it there");
  return plan_at(static_cast<std::byte*>(bytes.raw()), bytes.numel(), bytes.device(),
                 {static_cast<const int64_t*>(numbers.raw()), static_cast<size_t>(numbers.numel())});
}

std::tuple<TorchTensor, TorchTensor> tensors_of(const Plan& plan) {
  const bool is_on_gpu = plan != nullptr && plan->memory.size() == 1 && device_of(plan).type == Device::Type::cuda;
  const std::vector<int64_t> numbers = is_on_gpu ? layout_within(plan, plan->memory.front()) : layout_of(plan);
  TorchTensor layout = empty_on_host({static_cast<int64_t>(numbers.size())}, Dtype::i64);
  std::copy(numbers.begin(), numbers.end(), static_cast<int64_t*>(layout.mutable_data_ptr()));
  if (is_on_gpu) return {TorchMemory::tensor_of(plan->memory.front().data()), std::move(layout)};
  TorchTensor memory = empty_on_host({numbers[kBytes]}, Dtype::u8);
  write_arrays(plan, numbers, static_cast<std::byte*>(memory.mutable_data_ptr()));
  return {std::move(memory), std::move(layout)};
}

}  // namespace tilewise::ops
