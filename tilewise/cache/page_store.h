// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <memory>
#include <variant>

#include "tilewise/cache/paged.h"

namespace tilewise::cache {

/// Which pages of a pool are free, and how many sequences hold each of the others.
class PageCounts {
 public:
  explicit PageCounts(int64_t pages);
  int64_t num_free() const { return static_cast<int64_t>(free_.size()); }
  bool is_shared(int32_t page) const { return holders_[static_cast<size_t>(page)] > 1; }
  /// A page with one holder; num_free() > 0.
  int32_t take() noexcept;
  void share(int32_t page) noexcept { ++holders_[static_cast<size_t>(page)]; }
  void release(int32_t page) noexcept;

 private:
  std::vector<int32_t> holders_, free_;
};

/// Keys, or values, of all pages of a pool: [pages, 1, page, D] as numbers or codes.
class PageStore {
 public:
  /// `name`: k or v, for messages.
  PageStore(const char* name, const PagedStore& store, const PagedCacheOptions& options, int channels, const std::shared_ptr<Memory>& memory);

  int channels() const { return channels_; }
  bool is_quantised() const { return is_quantised_; }
  Dtype dtype() const { return data_.view.dtype(); }
  /// What attention reads of a layer.
  std::variant<TensorView, Quantised> pool(int layer) const;
  /// The rows of a page as numbers, [1, 1, page, D]; not quantised.
  TensorView numbers(int32_t page) const { return data_.view.slice(0, page, 1); }
  /// First of the rows that have to be coded with row `row`, if it changes or its group is cut behind it.
  int64_t first_of_group(int64_t row) const { return has_given_scale_ ? row : row / group_tokens_ * group_tokens_; }
  /// Codes rows [first, last) of a page from `numbers` [1, 1, page, D] f32; `first` is the first of its group.
  void code(int layer, int32_t page, const TensorView& numbers, int64_t first, int64_t last) const;
  /// The inverse for rows [0, last).
  void decode(int layer, int32_t page, const TensorView& numbers, int64_t last) const;
  void copy_page(int32_t from, int32_t to) const;

 private:
  Quantised rows_of(int layer, int32_t page, int64_t first, int64_t last) const;

  int channels_, group_tokens_;
  bool is_quantised_, has_given_scale_;
  PagedStore store_;
  Tensor data_, scale_, zero_;
};

/// Statistics of the keys of all pages of a pool.
class PageSums {
 public:
  PageSums(int64_t pages, int page_size, int tokens, int channels, const std::shared_ptr<Memory>& memory);
  PageStatistics view() const;
  /// First row of the sub-page of a row.
  int64_t first_of_group(int64_t row) const { return row / tokens_ * tokens_; }
  /// Takes the sub-pages of rows [first, last) anew from `rows` [1, 1, page, D]; `first` begins one, and rows from `last` on do not count.
  void take(int32_t page, const TensorView& rows, int64_t first, int64_t last) const;
  void copy_page(int32_t from, int32_t to) const;

 private:
  int tokens_;
  Tensor sums_;  // [pages, sub-pages, 3, D] f32: one page's lie together
};

}  // namespace tilewise::cache
