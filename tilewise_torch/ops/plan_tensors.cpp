// SPDX-License-Identifier: Apache-2.0
#include "tilewise_torch/ops/plan_tensors.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "tilewise/plan/make.h"

namespace tilewise::ops {
namespace {

constexpr int64_t kAlignment = static_cast<int64_t>(Memory::kAlignment);

/// Calls f(array, dtype, rank) for every array of a plan, const or not, in the order of the table.
void each_array(auto& data, auto&& f) {
  for (auto* lists : {&data.by_query, &data.by_key}) {
    f(lists->edge, Dtype::i32, 1);
    f(lists->status, Dtype::i32, 1);
    for (auto* list : {&lists->whole, &lists->masked, &lists->picked}) {
      f(list->begin, Dtype::i64, 3);
      f(list->count, Dtype::i32, 3);
      f(list->start, Dtype::i32, 1);
      f(list->stop, Dtype::i32, 1);
      f(list->rows, Dtype::u64, 2);
    }
  }
  f(data.order_q.token, Dtype::i32, 3);
  f(data.order_k.token, Dtype::i32, 3);
  f(data.mask.spans, Dtype::i32, 4);
}

/// Reads the numbers behind the table, in order.
class Numbers {
 public:
  Numbers(std::span<const int64_t> layout, size_t at) : layout_(layout), at_(at) {}
  int64_t next() {
    check(at_ < layout_.size(), Error::Kind::value, "tilewise: the layout of a plan ends too early; pass both tensors of one Plan");
    return layout_[at_++];
  }

 private:
  std::span<const int64_t> layout_;
  size_t at_;
};

void write_boxes(std::vector<int64_t>& layout, const Order& order) {
  if (!order.boxes.has_value()) return;
  for (const auto* part : {&order.boxes->grid, &order.boxes->box, &order.boxes->dilation}) layout.insert(layout.end(), part->begin(), part->end());
}

void read_boxes(Numbers& numbers, int64_t axes, Order& order) {
  if (axes == 0) return;
  order.boxes.emplace();
  for (auto* part : {&order.boxes->grid, &order.boxes->box, &order.boxes->dilation}) {
    for (int64_t axis = 0; axis < axes; ++axis) part->push_back(static_cast<int>(numbers.next()));
  }
}

int64_t boxes_of(const Order& order) { return order.boxes.has_value() ? static_cast<int64_t>(order.boxes->grid.size()) : 0; }

// Element by element: for arrays that are views of others.
void copy_strided(const TensorView& from, std::byte*& to, int axis, int64_t at) {
  const size_t bytes = size_of(from.dtype());
  if (axis == from.rank()) {
    std::memcpy(to, static_cast<const std::byte*>(from.raw()) + static_cast<size_t>(at) * bytes, bytes);
    to += bytes;
    return;
  }
  for (int64_t i = 0; i < from.dim(axis); ++i) copy_strided(from, to, axis + 1, at + i * from.stride(axis));
}

}  // namespace

namespace {

/// `place(array, bytes)` says at which offset an array of so many bytes lies, and counts layout[kBytes] on.
template <class Place>
std::vector<int64_t> layout_with(const Plan& plan, Place&& place) {
  check(plan != nullptr, Error::Kind::value, "layout_of: the plan is null");
  const PlanData& data = *plan;
  std::vector<int64_t> layout(kArrays + kNumArrays * kNumbersPerArray, 0);
  layout[kMagic] = kLayoutMagic;
  layout[kSeqlenQ] = data.seqlen_q;
  layout[kSeqlenK] = data.seqlen_k;
  layout[kDenseReads] = data.dense_reads;
  layout[kBatch] = data.batch;
  layout[kHeadsQ] = data.heads_q;
  layout[kIsByKey] = data.is_by_key ? 1 : 0;
  layout[kMaskFirst] = data.mask.first;
  size_t at = kTileQ;
  for (const Lists* lists : {&data.by_query, &data.by_key}) {
    for (const int number : {lists->tile, lists->whole.grain, lists->masked.grain, lists->picked.grain}) layout[at++] = number;
  }
  layout[kPools] = static_cast<int64_t>(data.pools.size());
  layout[kDenseReadsOfHead] = static_cast<int64_t>(data.dense_reads_of_head.size());
  layout[kBands] = static_cast<int64_t>(data.mask.bands.size());
  layout[kGrids] = static_cast<int64_t>(data.mask.grids.size());
  layout[kGridAxes] = data.mask.grids.empty() ? 0 : static_cast<int64_t>(data.mask.grids[0].size());
  layout[kHeadClass] = static_cast<int64_t>(data.mask.head_class.size());
  layout[kBoxesQ] = boxes_of(data.order_q);
  layout[kBoxesK] = boxes_of(data.order_k);
  at = kArrays;
  each_array(data, [&](const TensorView& array, Dtype dtype, int) {
    if (array.has_value()) {
      layout[at] = place(array, array.numel() * static_cast<int64_t>(size_of(dtype)), layout[kBytes]);
      for (int axis = 0; axis < array.rank(); ++axis) layout[at + 1 + static_cast<size_t>(axis)] = array.dim(axis);
    } else {
      layout[at] = -1;
    }
    at += kNumbersPerArray;
  });
  layout.insert(layout.end(), data.pools.begin(), data.pools.end());
  layout.insert(layout.end(), data.dense_reads_of_head.begin(), data.dense_reads_of_head.end());
  for (const Mask::Band& band : data.mask.bands) layout.insert(layout.end(), {band.left, band.right, band.sink});
  for (const auto& grid : data.mask.grids) {
    for (const Mask::Axis& axis : grid) layout.insert(layout.end(), {axis.length, axis.window, axis.stride, axis.dilation, axis.is_causal ? 1 : 0});
  }
  layout.insert(layout.end(), data.mask.head_class.begin(), data.mask.head_class.end());
  write_boxes(layout, data.order_q);
  write_boxes(layout, data.order_k);
  layout[kNumbers] = static_cast<int64_t>(layout.size());
  return layout;
}

}  // namespace

Device device_of(const Plan& plan) {
  Device device;
  each_array(*plan, [&](const TensorView& array, Dtype, int) {
    if (array.has_value()) device = array.device();
  });
  return device;
}

std::vector<int64_t> layout_of(const Plan& plan) {
  return layout_with(plan, [](const TensorView& array, int64_t bytes, int64_t& all) {
    check(array.device().type == Device::Type::cpu, Error::Kind::unsupported, "tilewise: the plan lies on ", array.device(),
          "; takes one on the CPU");
    const int64_t offset = all;
    all = (all + bytes + kAlignment - 1) / kAlignment * kAlignment;
    return offset;
  });
}

std::vector<int64_t> layout_within(const Plan& plan, const Buffer& memory) {
  return layout_with(plan, [&](const TensorView& array, int64_t bytes, int64_t& all) {
    all = static_cast<int64_t>(memory.bytes());
    const int64_t offset = static_cast<const std::byte*>(array.raw()) - static_cast<const std::byte*>(memory.data());
    check(array.is_contiguous() && offset >= 0 && offset + bytes <= all, Error::Kind::unsupported,
          "tilewise: an array of the plan lies outside of the memory that was made for it; plan on the CPU and move the plan");
    return offset;
  });
}

void write_arrays(const Plan& plan, std::span<const int64_t> layout, std::byte* memory) {
  std::memset(memory, 0, static_cast<size_t>(layout[kBytes]));  // gaps between arrays: equal plans give equal bytes
  size_t at = kArrays;
  each_array(*plan, [&](const TensorView& array, Dtype, int) {
    if (array.has_value() && array.numel() > 0) {
      std::byte* to = memory + layout[at];
      if (array.is_contiguous()) {
        std::memcpy(to, array.raw(), static_cast<size_t>(array.numel()) * size_of(array.dtype()));
      } else {
        copy_strided(array, to, 0, 0);
      }
    }
    at += kNumbersPerArray;
  });
}

Plan plan_at(std::byte* memory, int64_t bytes, Device device, std::span<const int64_t> layout) {
  const auto require = [](bool holds, const char* what) {
    check(holds, Error::Kind::value, "tilewise: these two tensors are not a plan of this version (", what,
          "); pass plan.memory and plan.layout of one Plan");
  };
  require(layout.size() >= kArrays + kNumArrays * kNumbersPerArray && layout[kMagic] == kLayoutMagic, "layout");
  require(layout[kNumbers] == static_cast<int64_t>(layout.size()) && layout[kBytes] == bytes, "sizes");
  for (size_t i = kSeqlenQ; i <= kHeadsQ; ++i) require(layout[i] >= 0, "lengths");
  require(layout[kHeadsQ] <= INT32_MAX, "heads");
  for (size_t i = kPools; i < kArrays; ++i) require(layout[i] >= 0 && layout[i] <= layout[kNumbers], "counts");
  auto plan = std::make_shared<PlanData>();
  PlanData& data = *plan;
  data.seqlen_q = layout[kSeqlenQ];
  data.seqlen_k = layout[kSeqlenK];
  data.dense_reads = layout[kDenseReads];
  data.batch = layout[kBatch];
  data.heads_q = static_cast<int>(layout[kHeadsQ]);
  data.is_by_key = layout[kIsByKey] != 0;
  data.mask.first = layout[kMaskFirst];
  size_t at = kTileQ;
  for (Lists* lists : {&data.by_query, &data.by_key}) {
    for (int* number : {&lists->tile, &lists->whole.grain, &lists->masked.grain, &lists->picked.grain}) *number = static_cast<int>(layout[at++]);
  }
  at = kArrays;
  each_array(data, [&](TensorView& array, Dtype dtype, int rank) {
    const int64_t offset = layout[at];
    if (offset >= 0) {
      Shape shape;
      shape.rank = rank;
      const std::span<const int64_t> sizes = layout.subspan(at + 1, static_cast<size_t>(rank));
      const bool is_empty = std::find(sizes.begin(), sizes.end(), 0) != sizes.end();
      // What the sizes may come to; without elements they need no room, but their product is formed all the same.
      int64_t room = is_empty ? INT32_MAX : (bytes - offset) / static_cast<int64_t>(size_of(dtype));
      bool fits = offset % static_cast<int64_t>(size_of(dtype)) == 0 && offset <= bytes;
      for (int axis = 0; axis < rank && fits; ++axis) {
        const int64_t size = sizes[static_cast<size_t>(axis)];
        fits = size >= 0 && size <= room;
        if (size > 0) room /= size;
        shape.sizes[static_cast<size_t>(axis)] = size;
      }
      require(fits, "an array past the end");
      array = TensorView(memory + offset, dtype, shape, device);
    }
    at += kNumbersPerArray;
  });
  Numbers numbers(layout, at);
  for (int64_t i = 0; i < layout[kPools]; ++i) data.pools.push_back(static_cast<int>(numbers.next()));
  for (int64_t i = 0; i < layout[kDenseReadsOfHead]; ++i) data.dense_reads_of_head.push_back(numbers.next());
  for (int64_t i = 0; i < layout[kBands]; ++i) {
    Mask::Band band;
    for (int64_t* number : {&band.left, &band.right, &band.sink}) *number = numbers.next();
    data.mask.bands.push_back(band);
  }
  for (int64_t i = 0; i < layout[kGrids]; ++i) {
    data.mask.grids.emplace_back();
    for (int64_t axis = 0; axis < layout[kGridAxes]; ++axis) {
      Mask::Axis one;
      for (int* number : {&one.length, &one.window, &one.stride, &one.dilation}) *number = static_cast<int>(numbers.next());
      one.is_causal = numbers.next() != 0;
      data.mask.grids.back().push_back(one);
    }
  }
  for (int64_t i = 0; i < layout[kHeadClass]; ++i) data.mask.head_class.push_back(static_cast<uint8_t>(numbers.next()));
  read_boxes(numbers, layout[kBoxesQ], data.order_q);
  read_boxes(numbers, layout[kBoxesK], data.order_k);
  return plan;
}

}  // namespace tilewise::ops
