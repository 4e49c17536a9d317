// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "tilewise/base/file.h"
#include "tilewise/base/memory.h"
#include "tilewise/base/tensor.h"

TILEWISE_BEGIN_PUBLIC

/// Free text beside the tensors: the file's `__metadata__`.
using SafetensorsMetadata = std::map<std::string, std::string, std::less<>>;

/// One tensor as the header describes it.
struct SafetensorsEntry {
  std::string name;
  std::string dtype;           // as the file spells it: "F32", "BF16", "I16", ...
  std::vector<int64_t> shape;  // any rank; empty: one element
  uint64_t begin = 0, end = 0; // bytes behind the header
};

/// A safetensors file, mapped; everything in its header is checked before the constructor returns: lengths against the file's size,
/// strict JSON, no name or key twice, known dtypes, shape x dtype = bytes, and tensors that cover the data without gap or overlap.
/// Dtypes  BOOL U8 I8 F8_E4M3 F8_E5M2 I16 U16 F16 BF16 I32 U32 F32 I64 U64 F64; those without a Dtype here can be listed, not read.
/// Errors  io, with the path and what is wrong.
/// Source  github.com/huggingface/safetensors, README, "Format".
class TILEWISE_API SafetensorsFile {
 public:
  explicit SafetensorsFile(const std::string& path);

  const std::string& path() const { return file_.path(); }
  const SafetensorsMetadata& metadata() const { return metadata_; }
  /// By place in the file.
  const std::vector<SafetensorsEntry>& entries() const { return entries_; }
  /// Null when there is no tensor of that name.
  const SafetensorsEntry* find(std::string_view name) const;

  /// The tensor where it lies in the mapping: read-only, alive while this object is. One element without axes is [1].
  /// Errors: io (no such tensor, its place is not aligned for its dtype, a BOOL that is neither 0 nor 1), dtype (no Dtype for it),
  ///         shape (rank above 5).
  TensorView view(std::string_view name) const;
  /// A copy of the tensor, aligned whatever the file. Errors: as view, without the alignment; memory.
  Tensor load(std::string_view name, const std::shared_ptr<Memory>& memory) const;
  /// As load, and the dtype and shape must be these. Errors: as load; io, with both.
  Tensor load(std::string_view name, Dtype dtype, const Shape& shape, const std::shared_ptr<Memory>& memory) const;

 private:
  const SafetensorsEntry& require(std::string_view name) const;
  TensorView describe(const SafetensorsEntry& entry) const;  // view without the alignment check

  MappedFile file_;
  uint64_t data_begin_ = 0;
  SafetensorsMetadata metadata_;
  std::vector<SafetensorsEntry> entries_;
  std::map<std::string, size_t, std::less<>> by_name_;
};

/// A tensor to be written; contiguous, on the host.
struct NamedTensor {
  std::string name;
  TensorView view;
};

/// Writes a safetensors file (beside its target, then renamed). Equal input gives equal bytes. Tensors lie by element size, largest first, then by
/// name, behind a header padded to 8 bytes, so each is aligned.
/// Errors: value (a name twice or `__metadata__`), unsupported (a view that is not contiguous or not on the host; absent), io.
TILEWISE_API void write_safetensors(const std::string& path, std::span<const NamedTensor> tensors, const SafetensorsMetadata& metadata = {});

TILEWISE_END_PUBLIC
