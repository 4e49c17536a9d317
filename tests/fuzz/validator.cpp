// SPDX-License-Identifier: Apache-2.0
// find_fault over plans whose every field and array comes from the input: dtypes, shapes, strides, capacities, numbers.
#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

#include "tests/fuzz/use_plan.h"

namespace tilewise::fuzz {
namespace {

/// Numbers from the front of the input; zeros behind its end.
class Input {
 public:
  Input(const uint8_t* data, size_t size) : data_(data), size_(size) {}
  uint8_t byte() { return size_ == 0 ? uint8_t{0} : (--size_, *data_++); }
  /// 0 to most.
  int64_t below(int64_t most) { return byte() % (most + 1); }
  template <class T>
  T raw() {
    T value{};
    const size_t bytes = std::min(sizeof(T), size_);
    std::memcpy(&value, data_, bytes);
    data_ += bytes;
    size_ -= bytes;
    return value;
  }
  /// Mostly small, sometimes anything.
  int64_t number(int64_t most) { return byte() < 250 ? below(most) : raw<int64_t>(); }

 private:
  const uint8_t* data_;
  size_t size_;
};

class Maker {
 public:
  explicit Maker(Input& in) : in_(in), plan_(std::make_shared<PlanData>()) {}

  Plan plan() {
    PlanData& d = *plan_;
    d.seqlen_q = in_.number(200);
    d.seqlen_k = in_.number(200);
    d.batch = in_.number(3);
    d.heads_q = static_cast<int>(in_.number(4));
    d.dense_reads = in_.number(100);
    if (in_.below(7) == 0) d.dense_reads_of_head.assign(static_cast<size_t>(in_.below(5)), in_.number(50));
    d.is_by_key = in_.below(3) == 0;
    if (in_.below(3) == 0) d.order_q.token = order(d.seqlen_q);
    if (in_.below(3) == 0) d.order_k.token = order(d.seqlen_k);
    if (in_.below(15) == 0) d.order_q.boxes = BoxOrder{numbers(3), numbers(3), numbers(3)};
    for (int64_t i = in_.below(9); i >= 7; --i) d.pools.push_back(static_cast<int>(in_.number(20)));
    mask(d.mask);
    lists(d.by_query, d.seqlen_q, d.seqlen_k);
    if (in_.below(2) == 0) lists(d.by_key, d.seqlen_k, d.seqlen_q);
    return plan_;
  }

 private:
  std::vector<int> numbers(int64_t most) {
    std::vector<int> values(static_cast<size_t>(in_.below(most)));
    for (int& value : values) value = static_cast<int>(in_.number(9));
    return values;
  }

  /// Exactly as long as the view says, so that a byte past it is found.
  template <class T>
  TensorView array(Dtype dtype, const Shape& shape, int64_t most) {
    Tensor tensor(host_memory(), dtype, shape);
    tensor.fill_zero();
    const auto count = static_cast<int64_t>(tensor.buffer.bytes() / sizeof(T));
    for (int64_t i = 0; i < count; ++i) static_cast<T*>(tensor.view.raw())[i] = static_cast<T>(in_.number(most));
    plan_->memory.push_back(std::move(tensor.buffer));
    return tensor.view;
  }
  Dtype dtype(Dtype usual) {
    if (in_.byte() < 250) return usual;
    const Dtype others[] = {Dtype::f32, Dtype::i64, Dtype::i32, Dtype::u64, Dtype::u8};
    return others[in_.below(4)];
  }
  int64_t size(int64_t usual) {
    const int64_t value = in_.byte() < 245 ? usual : in_.below(9);
    return std::clamp<int64_t>(value, 0, 400);
  }
  Shape shape(std::initializer_list<int64_t> usual) {
    Shape shape;
    for (const int64_t value : usual) shape.sizes[static_cast<size_t>(shape.rank++)] = size(value);
    if (in_.byte() > 250) shape.rank = static_cast<int>(in_.below(4));
    for (int axis = static_cast<int>(usual.size()); axis < shape.rank; ++axis) shape.sizes[static_cast<size_t>(axis)] = 1;
    return shape;
  }

  TensorView order(int64_t seqlen) {
    const int64_t slots = std::clamp<int64_t>(seqlen, 0, 200) + in_.below(3);
    const Shape as = shape({1, in_.below(1) + 1, slots});
    const Dtype type = dtype(Dtype::i32);
    Tensor tensor(host_memory(), type, as);
    tensor.fill_zero();
    auto* values = static_cast<int32_t*>(tensor.view.raw());
    const auto count = static_cast<int64_t>(tensor.buffer.bytes() / sizeof(int32_t));
    const int64_t line = std::max<int64_t>(slots, 1);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t token = (i % line * 7 + in_.below(1)) % line;
      values[i] = static_cast<int32_t>(in_.byte() > 250 ? in_.number(9) : token < seqlen ? token : -1);
    }
    plan_->memory.push_back(std::move(tensor.buffer));
    return tensor.view;
  }

  void mask(Mask& mask) {
    const int64_t form = in_.below(9), classes = in_.below(8) == 0 ? in_.below(17) : 1 + in_.below(1);
    for (int64_t c = 0; c < classes && (form < 6 || form == 9); ++c) mask.bands.push_back({in_.number(60), in_.number(30), in_.number(20)});
    if (form == 6 || form == 9) mask.spans = array<int32_t>(dtype(Dtype::i32), shape({classes, 1, std::min<int64_t>(plan_->seqlen_q, 200), 4}), 60);
    for (int64_t c = 0; c < classes && form >= 7 && form < 9; ++c) {
      mask.first = in_.number(9);
      mask.grids.emplace_back();
      for (int64_t axis = in_.below(2); axis >= 0; --axis) {
        mask.grids.back().push_back({static_cast<int>(in_.number(12)), static_cast<int>(in_.number(5)), static_cast<int>(in_.number(4)),
                                     static_cast<int>(in_.number(3)), in_.below(1) != 0});
      }
    }
    if (classes > 1) {
      for (int head = 0; head < std::clamp(plan_->heads_q, 0, 8); ++head) mask.head_class.push_back(static_cast<uint8_t>(in_.number(classes - 1)));
    }
  }

  void lists(Lists& lists, int64_t slots, int64_t across) {
    slots = std::clamp<int64_t>(slots, 0, 200);
    across = std::clamp<int64_t>(across, 0, 200);
    lists.tile = static_cast<int>(in_.byte() < 250 ? 16 + in_.below(48) : in_.raw<int32_t>());
    int64_t rows = lists.tile > 0 ? (slots + lists.tile - 1) / lists.tile : 1;
    if (in_.below(4) == 0) {
      std::vector<int32_t> edge{0};
      while (edge.back() < slots && edge.size() < 64) edge.push_back(std::min(static_cast<int32_t>(slots), edge.back() + 1 + in_.byte() % 40));
      rows = static_cast<int64_t>(edge.size()) - 1;
      lists.edge = array<int32_t>(dtype(Dtype::i32), shape({rows + 1}), 9);
      if (lists.edge.has_value() && lists.edge.dtype() == Dtype::i32 && lists.edge.rank() == 1 && lists.edge.dim(0) == rows + 1 && in_.byte() < 250)
        std::copy(edge.begin(), edge.end(), static_cast<int32_t*>(lists.edge.raw()));
    }
    if (in_.below(15) == 0) lists.status = array<int32_t>(dtype(Dtype::i32), shape({2}), 1);
    for (RunList* list : {&lists.whole, &lists.masked, &lists.picked}) {
      if (in_.below(2) == 0) continue;
      const int64_t groups = 1 + in_.below(1), each = in_.below(4), capacity = rows * each;
      list->begin = array<int64_t>(dtype(Dtype::i64), shape({1, groups, rows}), 1);
      list->count = array<int32_t>(dtype(Dtype::i32), shape({1, groups, rows}), 4);
      if (list->begin.has_value() && list->begin.dtype() == Dtype::i64) {
        for (int64_t i = 0; i < list->begin.numel(); ++i) {
          if (in_.byte() < 250) static_cast<int64_t*>(list->begin.raw())[i] = i % std::max<int64_t>(rows, 1) * each;
        }
      }
      list->start = array<int32_t>(dtype(Dtype::i32), shape({capacity}), across);
      if (list != &lists.picked && in_.below(3) != 0) list->stop = array<int32_t>(dtype(Dtype::i32), shape({capacity}), across);
      if (list != &lists.whole && in_.below(2) == 0)
        list->rows = array<uint64_t>(dtype(Dtype::u64), shape({capacity, (std::clamp(lists.tile, 0, 1024) + 63) / 64}), 255);
      list->grain = static_cast<int>(in_.byte() < 200 ? 1 : in_.number(9));
      // Ascending starts are what random numbers hardly ever are.
      if (list->start.has_value() && list->start.dtype() == Dtype::i32 && each > 0 && in_.byte() < 240) {
        auto* start = static_cast<int32_t*>(list->start.raw());
        for (int64_t i = 0; i + each <= list->start.numel(); i += each) {
          std::sort(start + i, start + i + each);
          if (!list->stop.has_value() || list->stop.dtype() != Dtype::i32 || list->stop.numel() < i + each) continue;
          auto* stop = static_cast<int32_t*>(list->stop.raw());
          std::sort(stop + i, stop + i + each);
        }
      }
    }
  }

  Input& in_;
  std::shared_ptr<PlanData> plan_;
};

}  // namespace
}  // namespace tilewise::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace tilewise;
  fuzz::Input input(data, size);
  const Plan plan = fuzz::Maker(input).plan();
  if (!find_fault(plan).has_value()) fuzz::use_plan(plan);
  return 0;
}
