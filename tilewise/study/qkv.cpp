// SPDX-License-Identifier: Apache-2.0
#include "tilewise/study/qkv.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <vector>

#include "tilewise/base/safetensors.h"
#include "tilewise/machine/device.h"

namespace tilewise::study {
namespace {

/// A tensor of four axes that are not empty.
Tensor load_operand(const SafetensorsFile& file, const char* name, Context& context) {
  const SafetensorsEntry* entry = file.find(name);
  if (entry == nullptr) {
    std::string known;
    for (const SafetensorsEntry& one : file.entries()) known += (known.empty() ? "" : ", ") + one.name;
    fail(Error::Kind::io, file.path(), ": there is no tensor ", name, "; it takes q, k and v, and has ", known.empty() ? "none" : known);
  }
  check(entry->dtype == "F32" || entry->dtype == "BF16" || entry->dtype == "F16", Error::Kind::dtype, file.path(), ": ", name, " is ", entry->dtype,
        "; takes F32, BF16 or F16");
  check(entry->shape.size() == 4, Error::Kind::shape, file.path(), ": ", name, " has ", entry->shape.size(),
        " axes; takes four, [batch, heads, tokens, channels]");
  Tensor tensor = file.load(name, context.memory);
  check(tensor.view.numel() > 0, Error::Kind::value, file.path(), ": ", name, " is empty, ", tensor.view.shape());
  return tensor;
}

void check_fit(const std::string& path, const TensorView& q, const TensorView& k, const TensorView& v) {
  check(q.dtype() == k.dtype() && k.dtype() == v.dtype(), Error::Kind::dtype, path, ": q is ", q.dtype(), ", k ", k.dtype(), ", v ", v.dtype(),
        "; takes one dtype for all");
  check(q.dim(0) == k.dim(0) && k.dim(0) == v.dim(0), Error::Kind::shape, path, ": q, k and v differ in batch: ", q.shape(), ", ", k.shape(), ", ",
        v.shape());
  check(k.dim(1) == v.dim(1) && k.dim(2) == v.dim(2), Error::Kind::shape, path, ": k and v differ in heads or tokens: ", k.shape(), ", ", v.shape());
  check(q.dim(1) % k.dim(1) == 0, Error::Kind::shape, path, ": ", q.dim(1), " query heads are no multiple of ", k.dim(1), " key heads");
  check(q.dim(3) == k.dim(3), Error::Kind::shape, path, ": q and k differ in channels: ", q.shape(), ", ", k.shape());
}

/// Ranges of set keys of one query. More than two: the message names it.
std::array<int32_t, 4> ranges_of(const uint8_t* row, int64_t seqlen_k, const std::string& path, int64_t b, int64_t query) {
  std::array<int32_t, 4> span{};
  size_t found = 0;
  for (int64_t k = 0; k < seqlen_k;) {
    if (row[k] == 0) {
      ++k;
      continue;
    }
    const int64_t start = k;
    while (k < seqlen_k && row[k] != 0) ++k;
    check(found < 2, Error::Kind::unsupported, path, ": mask: query ", query, " of batch entry ", b,
          " sees more than two ranges of keys, which no mask of a plan holds; give the tensors without it, or split them");
    span[2 * found] = static_cast<int32_t>(start);
    span[2 * found + 1] = static_cast<int32_t>(k);
    ++found;
  }
  if (found == 1) span[2] = span[3] = span[1];
  return span;
}

/// Reads `mask` into bands where it is one, else into spans.
void read_mask(const SafetensorsFile& file, QkvTensors& tensors, Context& context) {
  const std::string& path = file.path();
  const SafetensorsEntry& entry = *file.find("mask");
  const int64_t batch = tensors.q.view.dim(0), seqlen_q = tensors.q.view.dim(2), seqlen_k = tensors.k.view.dim(2);
  check(entry.dtype == "BOOL", Error::Kind::dtype, path, ": mask is ", entry.dtype,
        "; takes BOOL, true where the query sees the key (of an additive mask save mask == 0)");
  const Tensor loaded = file.load("mask", context.memory);
  const Shape& shape = loaded.view.shape();
  const bool is_flat = shape == Shape{seqlen_q, seqlen_k};
  const bool has_batch = shape.rank == 4 && (shape[0] == 1 || shape[0] == batch) && shape[2] == seqlen_q && shape[3] == seqlen_k;
  check(!has_batch || shape[1] == 1, Error::Kind::unsupported, path, ": mask ", shape, " differs between heads; takes one mask for all heads, [",
        seqlen_q, ", ", seqlen_k, "] or [", batch, " or 1, 1, ", seqlen_q, ", ", seqlen_k, "]");
  check(is_flat || has_batch, Error::Kind::shape, path, ": mask is ", shape, "; takes [", seqlen_q, ", ", seqlen_k, "] or [", batch, " or 1, 1, ",
        seqlen_q, ", ", seqlen_k, "]");
  const int64_t entries = is_flat ? 1 : shape[0];
  Tensor spans(context.memory, Dtype::i32, {1, entries, seqlen_q, 4});
  const auto* bits = static_cast<const uint8_t*>(loaded.view.raw());
  bool is_causal = true, is_full = true;
  for (int64_t b = 0; b < entries; ++b) {
    for (int64_t q = 0; q < seqlen_q; ++q) {
      const auto span = ranges_of(bits + (b * seqlen_q + q) * seqlen_k, seqlen_k, path, b, q);
      const bool is_one = span[2] == span[3] && span[0] == 0;
      is_full = is_full && is_one && span[1] == seqlen_k;
      is_causal = is_causal && is_one && span[1] == std::max(int64_t{0}, q + seqlen_k - seqlen_q + 1);
      for (int i = 0; i < 4; ++i) spans.view.at<int32_t>(0, b, q, i) = span[static_cast<size_t>(i)];
    }
  }
  if (is_causal || is_full) {
    tensors.mask = is_causal ? Mask::causal() : Mask::full();
    tensors.mask_text = is_causal ? "causal" : "full";
    return;
  }
  tensors.mask = Mask{};
  tensors.mask.spans = spans.view;
  tensors.mask_text = "spans";
  tensors.spans = std::move(spans);
}

std::optional<float> scale_of(const SafetensorsFile& file) {
  const auto place = file.metadata().find("softmax_scale");
  if (place == file.metadata().end()) return {};
  const std::string& text = place->second;
  double value = 0;
  const auto [stop, code] = std::from_chars(text.data(), text.data() + text.size(), value);
  check(code == std::errc() && stop == text.data() + text.size() && std::isfinite(value) && static_cast<float>(value) > 0, Error::Kind::value,
        file.path(), ": metadata softmax_scale is \"", text, "\"; takes a number above 0");
  return static_cast<float>(value);
}

std::optional<bool> causal_of(const SafetensorsFile& file) {
  const auto place = file.metadata().find("is_causal");
  if (place == file.metadata().end()) return {};
  std::string text = place->second;
  if (text == "True") text = "true";  // as Python prints it
  if (text == "False") text = "false";
  check(text == "true" || text == "false", Error::Kind::value, file.path(), ": metadata is_causal is \"", text, "\"; takes true or false");
  return text == "true";
}

}  // namespace
}  // namespace tilewise::study

TILEWISE_BEGIN_PUBLIC

QkvTensors load_qkv(const std::string& path, QkvMask mask, Context& context) {
  const SafetensorsFile file(path);
  QkvTensors tensors;
  tensors.name = path;
  tensors.softmax_scale = study::scale_of(file);
  const std::optional<bool> is_causal = study::causal_of(file);
  const bool has_mask = file.find("mask") != nullptr;
  check(!(has_mask && mask != QkvMask::from_file), Error::Kind::value, path, ": has a tensor mask, and --mask gives another; leave one away");
  check(!(has_mask && is_causal == true), Error::Kind::value, path, ": has a tensor mask and is_causal in its metadata; leave one away");
  tensors.q = study::load_operand(file, "q", context);
  tensors.k = study::load_operand(file, "k", context);
  tensors.v = study::load_operand(file, "v", context);
  study::check_fit(path, tensors.q.view, tensors.k.view, tensors.v.view);
  if (has_mask) {
    study::read_mask(file, tensors, context);
    return tensors;
  }
  const bool is_full = mask == QkvMask::full || (mask == QkvMask::from_file && is_causal == false);
  tensors.mask = is_full ? Mask::full() : Mask::causal();
  tensors.mask_text = is_full ? "full" : "causal";
  tensors.is_mask_assumed = mask == QkvMask::from_file && !is_causal;
  return tensors;
}

QkvTensors copy_to_device(const QkvTensors& tensors, const Context& context) {
  check(context.device.type == Device::Type::cuda, Error::Kind::device, "copy_to_device: the context runs on ", context.device,
        "; set Context::device to a GPU");
  for (const Tensor* tensor : {&tensors.q, &tensors.k, &tensors.v}) {
    check(tensor->view.device().type == Device::Type::cpu, Error::Kind::device, "copy_to_device: the tensors are on ", tensor->view.device(),
          ", it takes those of load_qkv");
  }
  QkvTensors copy;
  copy.name = tensors.name;
  copy.q = machine::to_device(tensors.q.view, context);
  copy.k = machine::to_device(tensors.k.view, context);
  copy.v = machine::to_device(tensors.v.view, context);
  copy.mask = tensors.mask;
  copy.mask_text = tensors.mask_text;
  copy.is_mask_assumed = tensors.is_mask_assumed;
  copy.softmax_scale = tensors.softmax_scale;
  if (tensors.mask.spans.has_value()) {
    copy.spans = machine::to_device(tensors.mask.spans, context);
    copy.mask.spans = copy.spans.view;
  }
  return copy;
}

TILEWISE_END_PUBLIC
