// SPDX-License-Identifier: Apache-2.0
#include "tilewise/plan/file.h"

#include <algorithm>
#include <charconv>
#include <deque>
#include <set>
#include <string_view>
#include <vector>

#include "tilewise/base/safetensors.h"
#include "tilewise/plan/content_hash.h"
#include "tilewise/plan/validate.h"

TILEWISE_BEGIN_PUBLIC
namespace {

constexpr std::string_view kFormat = "tilewise.plan", kVersion = "1", kByKey = "by_key";
constexpr std::array<const char*, 3> kLists{"whole", "masked", "picked"};

/// The tensors of a plan by name, and the vectors that the plan keeps as such.
class Writer {
 public:
  void add(const std::string& name, const TensorView& view) {
    if (!view.has_value()) return;
    if (view.is_contiguous()) {
      tensors_.push_back({name, view});
      return;
    }
    copies_.emplace_back(host_memory(), view.dtype(), view.shape());
    copy(view, copies_.back().view, 0, 0, 0);
    tensors_.push_back({name, copies_.back().view});
  }
  void add(const std::string& name, std::vector<int64_t> values, const Shape& shape) {
    numbers_.push_back(std::move(values));
    tensors_.push_back({name, TensorView::of(numbers_.back().data(), shape)});
  }
  void add(const std::string& prefix, const Lists& lists) {
    // Rows without a run are rows all the same: their tile is part of what the plan says.
    add(prefix + ".edge", lists.edge);
    add(prefix + ".status", lists.status);
    add(prefix + ".tile_and_grains", {lists.tile, lists.whole.grain, lists.masked.grain, lists.picked.grain}, {4});
    const std::array<const RunList*, 3> all{&lists.whole, &lists.masked, &lists.picked};
    for (size_t i = 0; i < 3; ++i) {
      const std::string name = prefix + "." + kLists[i];
      add(name + ".begin", all[i]->begin);
      add(name + ".count", all[i]->count);
      add(name + ".start", all[i]->start);
      add(name + ".stop", all[i]->stop);
      add(name + ".rows", all[i]->rows);
    }
  }
  void add(const std::string& prefix, const Order& order) {
    add(prefix + ".token", order.token);
    if (!order.boxes.has_value()) return;
    std::vector<int64_t> values;
    for (const auto* part : {&order.boxes->grid, &order.boxes->box, &order.boxes->dilation}) values.insert(values.end(), part->begin(), part->end());
    add(prefix + ".boxes", std::move(values), {3, static_cast<int64_t>(order.boxes->grid.size())});
  }
  void write(const std::string& path, const SafetensorsMetadata& metadata) const { write_safetensors(path, tensors_, metadata); }

 private:
  static void copy(const TensorView& from, const TensorView& to, int axis, int64_t at_from, int64_t at_to) {
    if (axis == from.rank()) {
      const size_t bytes = size_of(from.dtype());
      const auto* source = static_cast<const std::byte*>(from.raw()) + static_cast<size_t>(at_from) * bytes;
      std::copy(source, source + bytes, static_cast<std::byte*>(to.raw()) + static_cast<size_t>(at_to) * bytes);
      return;
    }
    for (int64_t i = 0; i < from.dim(axis); ++i) copy(from, to, axis + 1, at_from + i * from.stride(axis), at_to + i * to.stride(axis));
  }

  std::vector<NamedTensor> tensors_;
  std::deque<std::vector<int64_t>> numbers_;
  std::deque<Tensor> copies_;
};

/// Takes a file apart, name by name; what nobody asked for is an error in the end.
class Reader {
 public:
  Reader(const std::string& path, std::shared_ptr<Memory> memory) : file_(path), memory_(std::move(memory)) {}

  template <class... Parts>
  void require(bool holds, const Parts&... parts) const {
    check(holds, Error::Kind::io, "load_plan: ", file_.path(), ": ", parts...);
  }

  std::string text(const std::string& key) {
    const auto at = file_.metadata().find(key);
    require(at != file_.metadata().end(), "there is no ", key, " in its metadata; this is no plan");
    return at->second;
  }
  bool has_text(const std::string& key) const { return file_.metadata().count(key) != 0; }
  int64_t number(const std::string& key) {
    const std::string value = text(key);
    int64_t result = 0;
    const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), result);
    require(error == std::errc{} && end == value.data() + value.size(), key, " is '", value, "', takes a whole number");
    return result;
  }
  // Absent where the file has no such tensor.
  TensorView tensor(const std::string& name, Dtype dtype, int rank, PlanData& data) {
    const SafetensorsEntry* entry = file_.find(name);
    if (entry == nullptr) return {};
    asked_.insert(name);
    require(static_cast<int>(entry->shape.size()) == rank, name, " has ", entry->shape.size(), " axes, takes ", rank);
    Tensor tensor;
    try {
      tensor = file_.load(name, memory_);
    } catch (const Error& error) {  // a dtype that no Tensor has is damage here
      if (error.kind() == Error::Kind::memory) throw;
      fail(Error::Kind::io, "load_plan: ", error.what());
    }
    require(tensor.view.dtype() == dtype, name, " is ", tensor.view.dtype(), ", takes ", dtype);
    data.memory.push_back(std::move(tensor.buffer));
    return tensor.view;
  }
  std::vector<int64_t> numbers(const std::string& name, int rank, Shape& shape, int64_t low, int64_t high) {
    PlanData scratch;
    const TensorView view = tensor(name, Dtype::i64, rank, scratch);
    if (!view.has_value()) return {};
    shape = view.shape();
    const auto* values = static_cast<const int64_t*>(view.raw());
    for (int64_t i = 0; i < view.numel(); ++i) {
      require(values[i] >= low && values[i] <= high, name, " holds ", values[i], ", takes ", low, " to ", high);
    }
    return {values, values + view.numel()};
  }
  Lists lists(const std::string& prefix, PlanData& data) {
    Lists lists;
    Shape shape;
    const std::vector<int64_t> sizes = numbers(prefix + ".tile_and_grains", 1, shape, 1, INT32_MAX);
    if (sizes.empty()) return lists;
    require(sizes.size() == 4, prefix, ".tile_and_grains has ", sizes.size(), " numbers, takes 4");
    lists.tile = static_cast<int>(sizes[0]);
    lists.edge = tensor(prefix + ".edge", Dtype::i32, 1, data);
    lists.status = tensor(prefix + ".status", Dtype::i32, 1, data);
    const std::array<RunList*, 3> all{&lists.whole, &lists.masked, &lists.picked};
    for (size_t i = 0; i < 3; ++i) {
      const std::string name = prefix + "." + kLists[i];
      all[i]->grain = static_cast<int>(sizes[i + 1]);
      all[i]->begin = tensor(name + ".begin", Dtype::i64, 3, data);
      if (!all[i]->begin.has_value()) continue;
      all[i]->count = tensor(name + ".count", Dtype::i32, 3, data);
      all[i]->start = tensor(name + ".start", Dtype::i32, 1, data);
      all[i]->stop = tensor(name + ".stop", Dtype::i32, 1, data);
      all[i]->rows = tensor(name + ".rows", Dtype::u64, 2, data);
      require(all[i]->count.has_value() && all[i]->start.has_value(), name, " has a begin without count or start");
    }
    return lists;
  }
  Order order(const std::string& prefix, PlanData& data) {
    Order order;
    order.token = tensor(prefix + ".token", Dtype::i32, 3, data);
    Shape shape;
    const std::vector<int64_t> boxes = numbers(prefix + ".boxes", 2, shape, 1, INT32_MAX);
    if (boxes.empty()) return order;
    require(shape[0] == 3, prefix, ".boxes is ", shape, ", takes [3, axes]");
    order.boxes.emplace();
    const std::array<std::vector<int>*, 3> parts{&order.boxes->grid, &order.boxes->box, &order.boxes->dilation};
    for (size_t part = 0; part < 3; ++part) {
      for (int64_t axis = 0; axis < shape[1]; ++axis)
        parts[part]->push_back(static_cast<int>(boxes[part * static_cast<size_t>(shape[1]) + static_cast<size_t>(axis)]));
    }
    return order;
  }
  Mask mask(PlanData& data) {
    Mask mask;
    Shape shape;
    const std::vector<int64_t> bands = numbers("mask.bands", 2, shape, INT64_MIN, INT64_MAX);
    require(bands.empty() || shape[1] == 3, "mask.bands is ", shape, ", takes [C, 3]");
    for (size_t i = 0; i + 2 < bands.size(); i += 3) mask.bands.push_back({bands[i], bands[i + 1], bands[i + 2]});
    mask.spans = tensor("mask.spans", Dtype::i32, 4, data);
    const std::vector<int64_t> grids = numbers("mask.grids", 3, shape, 0, INT32_MAX);
    require(grids.empty() || shape[2] == 5, "mask.grids is ", shape, ", takes [C, axes, 5]");
    for (int64_t c = 0, at = 0; c < (grids.empty() ? 0 : shape[0]); ++c) {
      mask.grids.emplace_back();
      for (int64_t axis = 0; axis < shape[1]; ++axis, at += 5) {
        const auto value = [&](int64_t i) { return static_cast<int>(grids[static_cast<size_t>(at + i)]); };
        mask.grids.back().push_back({value(0), value(1), value(2), value(3), value(4) != 0});
      }
    }
    if (!grids.empty()) mask.first = number("mask.first");
    for (const int64_t head_class : numbers("mask.head_class", 1, shape, 0, 15)) mask.head_class.push_back(static_cast<uint8_t>(head_class));
    return mask;
  }
  void require_all_asked() const {
    for (const SafetensorsEntry& entry : file_.entries()) {
      require(asked_.count(entry.name) != 0, "tensor ", entry.name, " is no part of a plan of version ", kVersion);
    }
  }

 private:
  SafetensorsFile file_;
  std::shared_ptr<Memory> memory_;
  std::set<std::string> asked_;
};

}  // namespace

void save_plan(const Plan& plan, const std::string& path) {
  check(plan != nullptr, Error::Kind::value, "save_plan: the plan is null; make one with a method or load one");
  const PlanData& data = *plan;
  validate(plan);
  Writer writer;
  writer.add("by_query", data.by_query);
  writer.add("by_key", data.by_key);
  writer.add("order_q", data.order_q);
  writer.add("order_k", data.order_k);
  const auto length = [](const auto& values) { return static_cast<int64_t>(values.size()); };
  if (!data.dense_reads_of_head.empty()) writer.add("dense_reads_of_head", data.dense_reads_of_head, {length(data.dense_reads_of_head)});
  if (!data.pools.empty()) writer.add("pools", {data.pools.begin(), data.pools.end()}, {length(data.pools)});
  std::vector<int64_t> bands;
  for (const Mask::Band& band : data.mask.bands) bands.insert(bands.end(), {band.left, band.right, band.sink});
  if (!bands.empty()) writer.add("mask.bands", std::move(bands), {length(data.mask.bands), 3});
  writer.add("mask.spans", data.mask.spans);
  std::vector<int64_t> grids;
  for (const auto& grid : data.mask.grids) {
    for (const Mask::Axis& axis : grid) grids.insert(grids.end(), {axis.length, axis.window, axis.stride, axis.dilation, axis.is_causal ? 1 : 0});
  }
  if (!grids.empty()) writer.add("mask.grids", std::move(grids), {length(data.mask.grids), length(data.mask.grids[0]), 5});
  if (!data.mask.head_class.empty())
    writer.add("mask.head_class", {data.mask.head_class.begin(), data.mask.head_class.end()}, {length(data.mask.head_class)});

  SafetensorsMetadata metadata;
  metadata["format"] = kFormat;
  metadata["version"] = kVersion;
  metadata["hash"] = content_hash_text(plan);
  metadata["seqlen_q"] = std::to_string(data.seqlen_q);
  metadata["seqlen_k"] = std::to_string(data.seqlen_k);
  metadata["dense_reads"] = std::to_string(data.dense_reads);
  if (data.is_by_key) metadata["planned"] = kByKey;
  metadata["batch"] = std::to_string(data.batch);
  metadata["heads_q"] = std::to_string(data.heads_q);
  if (!data.mask.grids.empty()) metadata["mask.first"] = std::to_string(data.mask.first);
  writer.write(path, metadata);
}

Plan load_plan(const std::string& path, const std::shared_ptr<Memory>& memory) {
  Reader reader(path, memory);
  const std::string format = reader.text("format"), version = reader.text("version");
  reader.require(format == kFormat, "its format is '", format, "', takes '", kFormat, "'");
  reader.require(version == kVersion, "it has version ", version, ", this library reads version ", kVersion);
  auto data = std::make_shared<PlanData>();
  data->seqlen_q = reader.number("seqlen_q");
  data->seqlen_k = reader.number("seqlen_k");
  data->dense_reads = reader.number("dense_reads");
  data->batch = reader.number("batch");
  const int64_t heads_q = reader.number("heads_q");
  reader.require(data->seqlen_q >= 0 && data->seqlen_k >= 0 && data->batch >= 1 && heads_q >= 1 && heads_q <= (1 << 24) && data->batch <= (1 << 24) &&
                     data->batch * heads_q <= (1 << 24),
                 "its sizes are out of range: batch ", data->batch, ", heads_q ", heads_q, ", lengths ", data->seqlen_q, " and ", data->seqlen_k);
  data->heads_q = static_cast<int>(heads_q);
  data->by_query = reader.lists("by_query", *data);
  data->by_key = reader.lists("by_key", *data);
  data->order_q = reader.order("order_q", *data);
  data->order_k = reader.order("order_k", *data);
  Shape shape;
  data->dense_reads_of_head = reader.numbers("dense_reads_of_head", 1, shape, 0, INT64_MAX);
  if (reader.has_text("planned")) {
    reader.require(reader.text("planned") == kByKey, "planned is '", reader.text("planned"), "', takes '", kByKey, "' or nothing");
    data->is_by_key = true;
  }
  for (const int64_t group : reader.numbers("pools", 1, shape, 2, INT32_MAX)) data->pools.push_back(static_cast<int>(group));
  data->mask = reader.mask(*data);
  reader.require_all_asked();
  Plan plan = std::move(data);
  const auto fault = find_fault(plan);
  reader.require(!fault.has_value(), "its plan is not valid: ", fault.value_or(""));
  const std::string hash = reader.text("hash");
  reader.require(hash == content_hash_text(plan), "its contents have the hash ", content_hash_text(plan), ", it says ", hash,
                 "; the file is damaged");
  return plan;
}

TILEWISE_END_PUBLIC
