// SPDX-License-Identifier: Apache-2.0
#include "tilewise/base/safetensors.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <set>
#include <tuple>
#include <utility>

#include "tilewise/base/error.h"
#include "tilewise/base/safetensors_header.h"

TILEWISE_BEGIN_PUBLIC

static_assert(std::endian::native == std::endian::little, "safetensors stores little-endian numbers and this code maps them as they are");

namespace {

constexpr uint64_t kMaxHeaderBytes = 100'000'000;  // the format's own limit
constexpr size_t kHeaderAlignment = 8;             // the widest dtype

struct FileDtype {
  std::string_view name;
  uint64_t bytes;
  std::optional<Dtype> dtype;
};
constexpr FileDtype kFileDtypes[] = {
    {"BOOL", 1, Dtype::boolean}, {"U8", 1, Dtype::u8},   {"I8", 1, Dtype::i8},   {"F8_E4M3", 1, {}},
    {"F8_E5M2", 1, {}},          {"I16", 2, {}},         {"U16", 2, {}},         {"F16", 2, Dtype::f16},
    {"BF16", 2, Dtype::bf16},    {"I32", 4, Dtype::i32}, {"U32", 4, {}},         {"F32", 4, Dtype::f32},
    {"I64", 8, Dtype::i64},      {"U64", 8, Dtype::u64}, {"F64", 8, Dtype::f64},
};

const FileDtype* file_dtype(std::string_view name) {
  const auto* found = std::find_if(std::begin(kFileDtypes), std::end(kFileDtypes), [&](const FileDtype& d) { return d.name == name; });
  return found == std::end(kFileDtypes) ? nullptr : found;
}

std::string_view file_name(Dtype dtype) {
  const auto* found = std::find_if(std::begin(kFileDtypes), std::end(kFileDtypes), [&](const FileDtype& d) { return d.dtype == dtype; });
  return found->name;  // every Dtype has a row above
}

/// Elements of a shape. Zero sizes count as one on the way, so that strides made of the shape cannot overflow either.
std::optional<uint64_t> checked_numel(const std::vector<int64_t>& shape) {
  uint64_t product = 1;
  bool is_empty = false;
  for (const int64_t size : shape) {
    is_empty = is_empty || size == 0;
    const auto factor = static_cast<uint64_t>(std::max<int64_t>(size, 1));
    if (product > static_cast<uint64_t>(INT64_MAX) / 8 / factor) return std::nullopt;
    product *= factor;
  }
  return is_empty ? 0 : product;
}

}  // namespace

SafetensorsFile::SafetensorsFile(const std::string& path) : file_(path) {
  const std::string where = "safetensors file '" + path + "': ";
  const auto bytes = file_.bytes();
  check(bytes.size() >= 8, Error::Kind::io, where, "it has ", bytes.size(),
        " bytes, too few for the header's length (8); the file is damaged or empty");
  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, bytes.data(), 8);
  check(header_bytes <= kMaxHeaderBytes, Error::Kind::io, where, "its header claims ", header_bytes, " bytes, at most ", kMaxHeaderBytes,
        " are taken; the file is damaged or not safetensors");
  check(header_bytes <= bytes.size() - 8, Error::Kind::io, where, "its header claims ", header_bytes, " bytes, the file has ", bytes.size() - 8,
        " behind the length; it was cut short");
  data_begin_ = 8 + header_bytes;
  const uint64_t data_bytes = bytes.size() - data_begin_;
  SafetensorsHeader header = parse_safetensors_header({reinterpret_cast<const char*>(bytes.data()) + 8, header_bytes}, where);
  metadata_ = std::move(header.metadata);
  entries_ = std::move(header.entries);

  for (const SafetensorsEntry& entry : entries_) {
    const std::string tensor = where + "tensor " + json_quote(entry.name) + ": ";
    const FileDtype* dtype = file_dtype(entry.dtype);
    check(dtype != nullptr, Error::Kind::io, tensor, "unknown dtype ", json_quote(entry.dtype));
    check(entry.begin <= entry.end && entry.end <= data_bytes, Error::Kind::io, tensor, "bytes [", entry.begin, ", ", entry.end,
          ") are not within the ", data_bytes, " bytes of data; the file was cut short or is damaged");
    const std::optional<uint64_t> numel = checked_numel(entry.shape);
    check(numel.has_value(), Error::Kind::io, tensor, "its shape has more elements than can be counted");
    check(*numel * dtype->bytes == entry.end - entry.begin, Error::Kind::io, tensor, "its shape and dtype need ", *numel * dtype->bytes,
          " bytes, its place has ", entry.end - entry.begin);
  }
  std::sort(entries_.begin(), entries_.end(),
            [](const SafetensorsEntry& a, const SafetensorsEntry& b) { return std::tie(a.begin, a.end, a.name) < std::tie(b.begin, b.end, b.name); });
  uint64_t covered = 0;
  for (size_t i = 0; i < entries_.size(); ++i) {
    const SafetensorsEntry& entry = entries_[i];
    check(entry.begin == covered, Error::Kind::io, where, "tensor ", json_quote(entry.name), " begins at byte ", entry.begin,
          ", the one before ends at ", covered, entry.begin < covered ? ": they overlap" : ": bytes between them belong to no tensor");
    covered = entry.end;
    by_name_.emplace(entry.name, i);
  }
  check(covered == data_bytes, Error::Kind::io, where, data_bytes - covered, " bytes follow the last tensor; the file is damaged");
}

const SafetensorsEntry* SafetensorsFile::find(std::string_view name) const {
  const auto found = by_name_.find(name);
  return found == by_name_.end() ? nullptr : &entries_[found->second];
}

const SafetensorsEntry& SafetensorsFile::require(std::string_view name) const {
  const SafetensorsEntry* entry = find(name);
  check(entry != nullptr, Error::Kind::io, "safetensors file '", path(), "': there is no tensor ", json_quote(name), " among its ", entries_.size());
  return *entry;
}

TensorView SafetensorsFile::describe(const SafetensorsEntry& entry) const {
  const std::string where = "safetensors file '" + path() + "': tensor " + json_quote(entry.name) + ": ";
  const FileDtype* dtype = file_dtype(entry.dtype);
  check(dtype->dtype.has_value(), Error::Kind::dtype, where, "dtype ", entry.dtype, " cannot be read here; store it as F32 or BF16");
  check(entry.shape.size() <= Shape::kMaxRank, Error::Kind::shape, where, "rank ", entry.shape.size(), " is above ", Shape::kMaxRank);
  Shape shape;
  for (const int64_t size : entry.shape) shape.sizes[static_cast<size_t>(shape.rank++)] = size;
  if (shape.rank == 0) shape = Shape{1};
  const std::byte* data = file_.bytes().data() + data_begin_ + entry.begin;
  if (dtype->dtype == Dtype::boolean) {
    const bool is_boolean = std::all_of(data, data + (entry.end - entry.begin), [](std::byte b) { return b <= std::byte{1}; });
    check(is_boolean, Error::Kind::io, where, "a BOOL is neither 0 nor 1; the file is damaged");
  }
  return TensorView(const_cast<std::byte*>(data), *dtype->dtype, shape);
}

TensorView SafetensorsFile::view(std::string_view name) const {
  const SafetensorsEntry& entry = require(name);
  const TensorView result = describe(entry);
  check(reinterpret_cast<uintptr_t>(result.raw()) % size_of(result.dtype()) == 0, Error::Kind::io, "safetensors file '", path(), "': tensor ",
        json_quote(name), " does not lie on a multiple of its element size; load a copy of it");
  return result;
}

Tensor SafetensorsFile::load(std::string_view name, const std::shared_ptr<Memory>& memory) const {
  const SafetensorsEntry& entry = require(name);
  const TensorView source = describe(entry);
  Tensor result(memory, source.dtype(), source.shape());
  if (entry.end > entry.begin) std::memcpy(result.view.raw(), source.raw(), entry.end - entry.begin);
  return result;
}

Tensor SafetensorsFile::load(std::string_view name, Dtype dtype, const Shape& shape, const std::shared_ptr<Memory>& memory) const {
  const TensorView source = describe(require(name));
  check(source.dtype() == dtype && source.shape() == shape, Error::Kind::io, "safetensors file '", path(), "': tensor ", json_quote(name), " is ",
        source.dtype(), " ", source.shape(), ", must be ", dtype, " ", shape);
  return load(name, memory);
}

void write_safetensors(const std::string& path, std::span<const NamedTensor> tensors, const SafetensorsMetadata& metadata) {
  std::vector<const NamedTensor*> sorted;
  std::set<std::string_view> names;
  for (const NamedTensor& tensor : tensors) {
    check(tensor.name != "__metadata__", Error::Kind::value, "write_safetensors: a tensor cannot be named __metadata__");
    check(names.insert(tensor.name).second, Error::Kind::value, "write_safetensors: two tensors are named ", json_quote(tensor.name));
    check(tensor.view.has_value(), Error::Kind::unsupported, "write_safetensors: tensor ", json_quote(tensor.name), " is absent");
    check(tensor.view.device() == Device{} && tensor.view.is_contiguous(), Error::Kind::unsupported, "write_safetensors: tensor ",
          json_quote(tensor.name), " must be contiguous and on the CPU; copy it first");
    sorted.push_back(&tensor);
  }
  std::sort(sorted.begin(), sorted.end(), [](const NamedTensor* a, const NamedTensor* b) {
    const size_t bytes_a = size_of(a->view.dtype()), bytes_b = size_of(b->view.dtype());
    return bytes_a != bytes_b ? bytes_a > bytes_b : a->name < b->name;
  });

  std::string header = "{";
  const auto separate = [&] {
    if (header.back() != '{') header += ',';
  };
  if (!metadata.empty()) {
    header += "\"__metadata__\":{";
    for (const auto& [key, value] : metadata) {
      separate();
      header += json_quote(key) + ":" + json_quote(value);
    }
    header += '}';
  }
  uint64_t offset = 0;
  for (const NamedTensor* tensor : sorted) {
    separate();
    header += json_quote(tensor->name) + ":{\"dtype\":\"" + std::string(file_name(tensor->view.dtype())) + "\",\"shape\":[";
    for (int axis = 0; axis < tensor->view.rank(); ++axis) {
      if (axis > 0) header += ',';
      header += std::to_string(tensor->view.dim(axis));
    }
    const uint64_t end = offset + static_cast<uint64_t>(tensor->view.numel()) * size_of(tensor->view.dtype());
    header += "],\"data_offsets\":[" + std::to_string(offset) + "," + std::to_string(end) + "]}";
    offset = end;
  }
  header += '}';
  header.resize((header.size() + kHeaderAlignment - 1) / kHeaderAlignment * kHeaderAlignment, ' ');
  check(header.size() <= kMaxHeaderBytes, Error::Kind::value, "write_safetensors: the header would have ", header.size(), " bytes, at most ",
        kMaxHeaderBytes, " are allowed");
  // What cannot be read back must not be written: names and metadata that are not UTF-8 are found here.
  try {
    parse_safetensors_header(header, "");
  } catch (const Error& error) {
    fail(Error::Kind::value, "write_safetensors: names and metadata must be UTF-8: ", error.what());
  }

  AtomicFile file(path);
  const uint64_t header_bytes = header.size();
  file.write(std::as_bytes(std::span(&header_bytes, 1)));
  file.write(header);
  for (const NamedTensor* tensor : sorted) {
    const size_t bytes = static_cast<size_t>(tensor->view.numel()) * size_of(tensor->view.dtype());
    file.write(std::span(static_cast<const std::byte*>(tensor->view.raw()), bytes));
  }
  file.commit();
}

TILEWISE_END_PUBLIC
