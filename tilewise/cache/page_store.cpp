// SPDX-License-Identifier: Apache-2.0
#include "tilewise/cache/page_store.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "tilewise/base/error.h"
#include "tilewise/prepare/quantise.h"

namespace tilewise::cache {
namespace {

using Kind = Error::Kind;

void copy_entry(const TensorView& view, int64_t from, int64_t to) {
  const size_t bytes = static_cast<size_t>(view.stride(0)) * size_of(view.dtype());
  auto* const data = static_cast<std::byte*>(view.raw());
  std::memcpy(data + static_cast<size_t>(to) * bytes, data + static_cast<size_t>(from) * bytes, bytes);
}

template <class T>
void take_rows(const TensorView& rows, int64_t first, int64_t last, int64_t channels, float* least, float* most, float* sum) {
  for (int64_t row = first; row < last; ++row) {
    const T* const x = static_cast<const T*>(rows.raw()) + rows.offset(0, 0, row);
    for (int64_t d = 0; d < channels; ++d) {
      const float value = static_cast<float>(x[d]);
      if (row == first) {
        least[d] = most[d] = sum[d] = value;
        continue;
      }
      // A NaN stays: nothing is known of a sub-page that holds one.
      least[d] = value < least[d] || std::isnan(value) ? value : least[d];
      most[d] = value > most[d] || std::isnan(value) ? value : most[d];
      sum[d] += value;
    }
  }
}

}  // namespace

PageCounts::PageCounts(int64_t pages) : holders_(static_cast<size_t>(pages), 0), free_(static_cast<size_t>(pages)) {
  // The first pages go out first.
  for (size_t i = 0; i < free_.size(); ++i) free_[i] = static_cast<int32_t>(free_.size() - 1 - i);
}

int32_t PageCounts::take() noexcept {
  const int32_t page = free_.back();
  free_.pop_back();
  holders_[static_cast<size_t>(page)] = 1;
  return page;
}

void PageCounts::release(int32_t page) noexcept {
  if (--holders_[static_cast<size_t>(page)] == 0) free_.push_back(page);  // its capacity is that of the pool
}

PageStore::PageStore(const char* name, const PagedStore& store, const PagedCacheOptions& options, int channels, const std::shared_ptr<Memory>& memory)
    : channels_(channels),
      group_tokens_(store.group.tokens == 0 ? options.page_size : store.group.tokens),
      is_quantised_(store.dtype == Dtype::i8 || store.dtype == Dtype::u8),
      has_given_scale_(!store.scales.empty()),
      store_(store) {
  check(is_quantised_ || store.dtype == Dtype::f32 || store.dtype == Dtype::bf16 || store.dtype == Dtype::f16, Kind::dtype, "PagedKvCache: ", name,
        ".dtype is ", store.dtype, ", takes f32, bf16 or f16, or i8 and u8 for INT8 and INT4 codes");
  const int64_t pages = options.num_pages, page = options.page_size;
  if (!is_quantised_) {
    check(!has_given_scale_ && !store.has_zero, Kind::value, "PagedKvCache: ", name, " has scales or a zero, which belong to codes; it is ",
          store.dtype);
    data_ = Tensor(memory, store.dtype, {pages, 1, page, channels});
    return;
  }
  const bool is_int4 = store.dtype == Dtype::u8;
  check(!is_int4 || channels % 2 == 0, Kind::value, "PagedKvCache: INT4 codes lie two a byte, takes an even number of channels for ", name, ", got ",
        channels);
  check(store.group.tokens >= 0 && store.group.channels >= 0, Kind::value, "PagedKvCache: ", name, ".group is ", store.group.tokens, " tokens, ",
        store.group.channels, " channels, takes 1 or more of each, or 0 for all");
  data_ = Tensor(memory, store.dtype, {pages, 1, page, is_int4 ? channels / 2 : channels});
  if (has_given_scale_) {
    check(!store.has_zero && store.group == (Quantised::Group{0, 0}), Kind::value, "PagedKvCache: ", name,
          " has given scales, one a layer: takes no zero, and groups of 0 tokens and 0 channels");
    check(static_cast<int>(store.scales.size()) == options.num_layers, Kind::value, "PagedKvCache: ", name, " has ", store.scales.size(),
          " scales, takes one for each of ", options.num_layers, " layers");
    for (const float scale : store.scales) {
      check(std::isfinite(scale) && scale > 0, Kind::value, "PagedKvCache: a scale of ", name, " is ", scale, ", takes finite ones above 0");
    }
    scale_ = Tensor(memory, Dtype::f32, {options.num_layers, 1, 1, 1});
    std::copy(store.scales.begin(), store.scales.end(), scale_.view.data<float>());
    return;
  }
  const int64_t group_channels = store.group.channels == 0 ? channels : store.group.channels;
  const Shape scales{pages, 1, (page + group_tokens_ - 1) / group_tokens_, (channels + group_channels - 1) / group_channels};
  scale_ = Tensor(memory, Dtype::f32, scales);
  if (store.has_zero) zero_ = Tensor(memory, Dtype::f32, scales);
}

std::variant<TensorView, Quantised> PageStore::pool(int layer) const {
  if (!is_quantised_) return data_.view;
  return Quantised{
      .data = data_.view, .scale = has_given_scale_ ? scale_.view.slice(0, layer, 1) : scale_.view, .zero = zero_.view, .group = store_.group};
}

Quantised PageStore::rows_of(int layer, int32_t page, int64_t first, int64_t last) const {
  Quantised rows{.data = data_.view.slice(0, page, 1).slice(2, first, last - first), .group = {group_tokens_, store_.group.channels}};
  if (has_given_scale_) {
    rows.group.tokens = 0;
    rows.scale = scale_.view.slice(0, layer, 1);
    return rows;
  }
  const int64_t group = first / group_tokens_, groups = (last + group_tokens_ - 1) / group_tokens_ - group;
  rows.scale = scale_.view.slice(0, page, 1).slice(2, group, groups);
  if (zero_.view.has_value()) rows.zero = zero_.view.slice(0, page, 1).slice(2, group, groups);
  return rows;
}

void PageStore::code(int layer, int32_t page, const TensorView& numbers, int64_t first, int64_t last) const {
  if (first == last) return;
  Context here;  // one page is one item of the caller's work
  quantise({.x = numbers.slice(2, first, last - first), .out = rows_of(layer, page, first, last), .has_given_scale = has_given_scale_}, here);
}

void PageStore::decode(int layer, int32_t page, const TensorView& numbers, int64_t last) const {
  if (last == 0) return;
  Context here;
  dequantise(rows_of(layer, page, 0, last), numbers.slice(2, 0, last), here);
}

void PageStore::copy_page(int32_t from, int32_t to) const {
  copy_entry(data_.view, from, to);
  if (has_given_scale_ || !is_quantised_) return;
  copy_entry(scale_.view, from, to);
  if (zero_.view.has_value()) copy_entry(zero_.view, from, to);
}

PageSums::PageSums(int64_t pages, int page_size, int tokens, int channels, const std::shared_ptr<Memory>& memory)
    : tokens_(tokens), sums_(memory, Dtype::f32, {pages, page_size / tokens, 3, channels}) {}

PageStatistics PageSums::view() const {
  const TensorView& all = sums_.view;
  const auto part = [&](int64_t which) {
    return TensorView(all.data<float>() + all.offset(0, 0, which), Dtype::f32, {all.dim(0), all.dim(1), all.dim(3)},
                      {all.stride(0), all.stride(1), 1});
  };
  return {.min = part(0), .max = part(1), .sum = part(2), .tokens = tokens_};
}

void PageSums::take(int32_t page, const TensorView& rows, int64_t first, int64_t last) const {
  const int64_t channels = sums_.view.dim(3);
  for (int64_t at = first; at < last; at += tokens_) {
    float* const least = &sums_.view.at<float>(page, at / tokens_);
    float *const most = least + channels, *const sum = most + channels;
    const int64_t end = std::min(last, at + tokens_);
    switch (rows.dtype()) {
      case Dtype::bf16: take_rows<bf16>(rows, at, end, channels, least, most, sum); break;
      case Dtype::f16: take_rows<f16>(rows, at, end, channels, least, most, sum); break;
      default: take_rows<float>(rows, at, end, channels, least, most, sum);
    }
  }
}

void PageSums::copy_page(int32_t from, int32_t to) const { copy_entry(sums_.view, from, to); }

}  // namespace tilewise::cache
