// SPDX-License-Identifier: Apache-2.0
#include "tilewise/cache/contiguous.h"

#include <gtest/gtest.h>

#include <numeric>
#include <vector>

#include "tests/base/error_kind.h"

namespace tilewise {
namespace {

TEST(KvCache, KeepsWhatIsWrittenPerLayerHeadAndToken) {
  KvCache cache(2, 3, 10, 8, host_memory());
  // Token-major rows of k and v side by side, as a projection leaves them.
  std::vector<float> rows(6 * 2 * 3 * 8);
  std::iota(rows.begin(), rows.end(), 1.0f);
  const TensorView all = TensorView::of(rows.data(), {6, 2, 3, 8});
  const auto side = [&](int which, int64_t first, int64_t tokens) {
    const TensorView part = all.slice(0, first, tokens).slice(1, which, 1);
    return part.permute({1, 2, 0, 3});
  };
  cache.write(1, 0, side(0, 0, 4), side(1, 0, 4));
  EXPECT_EQ(cache.length(), 0);
  cache.advance(4);
  cache.write(1, 4, side(0, 4, 2), side(1, 4, 2));
  cache.advance(2);
  EXPECT_EQ(cache.length(), 6);
  for (int64_t t = 0; t < 6; ++t) {
    for (int h = 0; h < 3; ++h) {
      for (int d = 0; d < 8; ++d) {
        EXPECT_EQ(cache.k(1, 6).at<float>(0, h, t, d), all.at<float>(t, 0, h, d));
        EXPECT_EQ(cache.v(1, 6).at<float>(0, h, t, d), all.at<float>(t, 1, h, d));
      }
    }
  }
  cache.truncate(3);
  cache.write(1, 3, side(0, 0, 1), side(1, 0, 1));
  EXPECT_EQ(cache.k(1, 4).at<float>(0, 2, 3, 7), all.at<float>(0, 0, 2, 7));
  EXPECT_EQ(cache.k(1, 4).at<float>(0, 2, 2, 7), all.at<float>(2, 0, 2, 7));
}

TEST(KvCache, RoundsToItsDtype) {
  std::vector<float> rows(2 * 3 * 8);
  for (size_t i = 0; i < rows.size(); ++i) rows[i] = 1.0f / static_cast<float>(i + 3);
  const TensorView from = TensorView::of(rows.data(), {1, 2, 3, 8});
  const auto expect_rounded = [&](auto zero) {
    using To = decltype(zero);
    KvCache cache(1, 2, 3, 8, host_memory(), kDtypeOf<To>);
    EXPECT_EQ(cache.dtype(), kDtypeOf<To>);
    cache.write(0, 0, from, from);
    KvCache copy(1, 2, 3, 8, host_memory(), kDtypeOf<To>);
    copy.write(0, 0, cache.k(0, 3), cache.v(0, 3));
    for (const KvCache* one : {&cache, &copy}) {
      for (int64_t i = 0; i < 48; ++i) {
        EXPECT_EQ(static_cast<float>(one->k(0, 3).at<To>(0, i / 24, i / 8 % 3, i % 8)), static_cast<float>(To(rows[static_cast<size_t>(i)])));
        EXPECT_EQ(static_cast<float>(one->v(0, 3).at<To>(0, i / 24, i / 8 % 3, i % 8)), static_cast<float>(To(rows[static_cast<size_t>(i)])));
      }
    }
  };
  expect_rounded(bf16{});
  expect_rounded(f16{});
  KvCache cache(1, 2, 3, 8, host_memory());
  KvCache halves(1, 2, 3, 8, host_memory(), Dtype::bf16);
  EXPECT_EQ(kind_of([&] { cache.write(0, 0, halves.k(0, 3), halves.v(0, 3)); }), "dtype");
  EXPECT_EQ(kind_of([] { KvCache(1, 1, 1, 8, host_memory(), Dtype::i32); }), "dtype");
}

TEST(KvCache, RefusesWhatDoesNotFit) {
  EXPECT_EQ(kind_of([] { KvCache cache(0, 1, 1, 8, host_memory()); }), "value");
  EXPECT_EQ(kind_of([] { KvCache cache(1, 1, -1, 8, host_memory()); }), "value");
  KvCache cache(2, 3, 10, 8, host_memory());
  std::vector<float> rows(3 * 11 * 8);
  const auto rows_of = [&](int64_t tokens) { return TensorView::of(rows.data(), {1, 3, tokens, 8}); };
  EXPECT_EQ(kind_of([&] { cache.write(0, 0, rows_of(11), rows_of(11)); }), "value");
  EXPECT_EQ(kind_of([&] { cache.write(0, 8, rows_of(3), rows_of(3)); }), "value");
  EXPECT_EQ(kind_of([&] { cache.write(2, 0, rows_of(3), rows_of(3)); }), "value");
  EXPECT_EQ(kind_of([&] { cache.write(0, 0, rows_of(3), rows_of(2)); }), "shape");
  EXPECT_EQ(kind_of([&] { cache.write(0, 0, rows_of(4).permute({0, 1, 3, 2}), rows_of(4).permute({0, 1, 3, 2})); }), "shape");
  EXPECT_EQ(kind_of([&] { cache.advance(11); }), "value");
  EXPECT_EQ(kind_of([&] { cache.truncate(1); }), "value");
  EXPECT_EQ(kind_of([&] { cache.k(0, 11); }), "value");
  EXPECT_EQ(kind_of([&] { cache.v(-1, 1); }), "value");
  cache.advance(2);
  EXPECT_EQ(kind_of([&] { cache.write(0, 1, rows_of(1), rows_of(1)); }), "value");
  EXPECT_EQ(cache.length(), 2);
}

}  // namespace
}  // namespace tilewise
