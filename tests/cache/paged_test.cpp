// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "tilewise/cache/paged.h"

#include <gtest/gtest.h>

#include "tests/cache/paged_testing.h"
#include "tests/select/testing.h"
#include "tilewise/attend/decode.h"
#include "tilewise/cache/contiguous.h"

namespace tilewise::testing {
namespace {

using Kind = Error::Kind;

void fill(PagedKvCache& cache, int64_t sequence, const std::vector<Tensor>& k, const std::vector<Tensor>& v, const std::vector<int64_t>& pieces) {
  Context context;
  context.executor = std::make_shared<ShuffledExecutor>(7);
  for (const int64_t tokens : pieces) {
    const int64_t first = cache.length(sequence);
    cache.reserve(sequence, tokens);
    for (int layer = 0; layer < cache.options().num_layers; ++layer) {
      const auto i = static_cast<size_t>(layer);
      cache.write(sequence, layer, first, k[i].view.slice(2, first, tokens), v[i].view.slice(2, first, tokens), context);
    }
    cache.advance(sequence, tokens);
  }
}

std::vector<Tensor> random_layers(Rng& rng, int layers, int heads, int64_t tokens, int channels) {
  std::vector<Tensor> result;
  for (int layer = 0; layer < layers; ++layer) result.push_back(random_rows(rng, heads, tokens, channels));
  return result;
}

struct Decoded {
  std::vector<float> out, lse;
};

// Of one sequence or several; q [B, Hq, 2, D] f32 rounded to `dtype`.
template <class T>
Decoded decode(const Tensor& q, const Operand& k, const Operand& v, const TensorView& lengths, int64_t channels_v) {
  const Shape& shape = q.view.shape();
  Tensor rounded(host_memory(), kDtypeOf<T>, shape), out(host_memory(), kDtypeOf<T>, {shape[0], shape[1], shape[2], channels_v});
  Tensor lse(host_memory(), Dtype::f32, {shape[0], shape[1], shape[2]});
  for (int64_t i = 0; i < shape.numel(); ++i) rounded.view.template data<T>()[i] = T(q.view.data<float>()[i]);
  Context context;
  attend_decode({.q = rounded.view, .k = k, .v = v, .out = out.view, .lse = lse.view, .lengths = lengths, .dense_band = Mask::Band{Mask::kAll, 0, 0}},
                context);
  Decoded result;
  for (int64_t i = 0; i < out.view.numel(); ++i) result.out.push_back(static_cast<float>(out.view.template data<T>()[i]));
  result.lse.assign(lse.view.data<float>(), lse.view.data<float>() + lse.view.numel());
  return result;
}

template <class T>
void expect_equals_contiguous() {
  Rng rng(3);
  for (const int page : {1, 16, 64, 100}) {
    constexpr int kLayers = 2, kHeads = 2, kDim = 64;
    constexpr int64_t kTokens = 700;
    PagedKvCache cache({.num_layers = kLayers,
                        .heads_kv = kHeads,
                        .head_dim = kDim,
                        .num_pages = 8 * (kTokens / page + 2),
                        .page_size = page,
                        .statistics_tokens = 0,
                        .k = {.dtype = kDtypeOf<T>},
                        .v = {.dtype = kDtypeOf<T>}},
                       host_memory());
    KvCache plain(kLayers, kHeads, kTokens, kDim, host_memory(), kDtypeOf<T>);
    const auto k = random_layers(rng, kLayers, kHeads, kTokens, kDim), v = random_layers(rng, kLayers, kHeads, kTokens, kDim);
    // Another sequence grows beside it, so that pages do not follow one another.
    const int64_t other = cache.add(), sequence = cache.add();
    for (int64_t tokens = 0; tokens < kTokens; tokens += 100) {
      fill(cache, other, k, v, {100});
      fill(cache, sequence, k, v, {1, 98, 1});
    }
    for (int layer = 0; layer < kLayers; ++layer) plain.write(layer, 0, k[static_cast<size_t>(layer)].view, v[static_cast<size_t>(layer)].view);
    plain.advance(kTokens);
    const PagedBatch batch = cache.batch(std::vector{sequence}, 0, host_memory());
    const Tensor q = random_rows(rng, 6, 2, kDim);
    for (int layer = 0; layer < kLayers; ++layer) {
      const auto i = static_cast<size_t>(layer);
      const Decoded paged = decode<T>(q, batch.k[i], batch.v[i], batch.lengths.view, kDim);
      const Decoded contiguous = decode<T>(q, plain.k(layer, kTokens), plain.v(layer, kTokens), {}, kDim);
      EXPECT_EQ(paged.out, contiguous.out) << "page " << page;
      EXPECT_EQ(paged.lse, contiguous.lse) << "page " << page;
    }
  }
}

TEST(PagedKvCache, DecodesAsAContiguousCacheBitForBit) {
  expect_equals_contiguous<float>();
  expect_equals_contiguous<bf16>();
  expect_equals_contiguous<f16>();
}

TEST(PagedKvCache, SequencesOfABatchShareAPrefix) {
  Rng rng(11);
  constexpr int kHeads = 2, kDim = 32;
  PagedKvCache cache({.heads_kv = kHeads, .head_dim = kDim, .num_pages = 40, .page_size = 16}, host_memory());
  const auto k = random_layers(rng, 1, kHeads, 90, kDim), v = random_layers(rng, 1, kHeads, 90, kDim);
  const auto other_k = random_layers(rng, 1, kHeads, 90, kDim), other_v = random_layers(rng, 1, kHeads, 90, kDim);
  const int64_t first = cache.add();
  fill(cache, first, k, v, {50});
  EXPECT_EQ(cache.free_pages(), 40 - 2 * 4);
  const int64_t second = cache.fork(first);
  EXPECT_EQ(cache.free_pages(), 40 - 2 * 4);
  fill(cache, second, other_k, other_v, {20, 1});  // copies the fourth page, takes a fifth
  EXPECT_EQ(cache.free_pages(), 40 - 2 * 6);
  fill(cache, first, k, v, {40});  // writes the fourth in place
  EXPECT_EQ(cache.free_pages(), 40 - 2 * 8);
  const int64_t third = cache.add();
  const Tensor q = random_rows(rng, 4, 1, kDim);
  Tensor three(host_memory(), Dtype::f32, {3, 4, 1, kDim});
  for (int64_t b = 0; b < 3; ++b) std::copy_n(q.view.data<float>(), q.view.numel(), &three.view.at<float>(b));
  const PagedBatch batch = cache.batch(std::vector{first, second, third}, 0, host_memory());
  const Decoded together = decode<float>(three, batch.k[0], batch.v[0], batch.lengths.view, kDim);
  Tensor mixed_k(host_memory(), Dtype::f32, {1, kHeads, 71, kDim}), mixed_v(host_memory(), Dtype::f32, {1, kHeads, 71, kDim});
  for (int64_t h = 0; h < kHeads; ++h) {
    for (int64_t t = 0; t < 71; ++t) {
      std::copy_n(&(t < 50 ? k : other_k)[0].view.at<float>(0, h, t), kDim, &mixed_k.view.at<float>(0, h, t));
      std::copy_n(&(t < 50 ? v : other_v)[0].view.at<float>(0, h, t), kDim, &mixed_v.view.at<float>(0, h, t));
    }
  }
  const Decoded of_first = decode<float>(q, k[0].view, v[0].view, {}, kDim), of_second = decode<float>(q, mixed_k.view, mixed_v.view, {}, kDim);
  const auto part = [&](size_t b) {
    return std::vector<float>(together.out.begin() + static_cast<std::ptrdiff_t>(b) * 4 * kDim,
                              together.out.begin() + static_cast<std::ptrdiff_t>(b + 1) * 4 * kDim);
  };
  EXPECT_EQ(part(0), of_first.out);
  EXPECT_EQ(part(1), of_second.out);
  EXPECT_EQ(part(2), std::vector<float>(4 * kDim, 0.0f));
  cache.drop(first);
  cache.drop(third);
  EXPECT_EQ(decode<float>(q, cache.batch(std::vector{second}, 0, host_memory()).k[0], cache.batch(std::vector{second}, 0, host_memory()).v[0],
                          cache.batch(std::vector{second}, 0, host_memory()).lengths.view, kDim)
                .out,
            of_second.out);
  cache.drop(second);
  EXPECT_EQ(cache.free_pages(), 40);
}

// A pass decodes each layer before the next one is written, with its own token counted in.
TEST(PagedKvCache, ABatchMaySeeThePassThatIsUnderWay) {
  Rng rng(12);
  PagedKvCache cache({.num_layers = 2, .heads_kv = 1, .head_dim = 16, .num_pages = 20, .page_size = 4, .statistics_tokens = 2}, host_memory());
  const auto k = random_layers(rng, 2, 1, 9, 16), v = random_layers(rng, 2, 1, 9, 16);
  const int64_t sequence = cache.add();
  fill(cache, sequence, k, v, {7});
  cache.reserve(sequence, 2);
  const PagedBatch batch = cache.batch(std::vector{sequence}, 2, host_memory());
  EXPECT_EQ(batch.lengths.view.at<int32_t>(0), 9);
  const Tensor q = random_rows(rng, 2, 2, 16);
  Context context;
  for (int layer = 0; layer < 2; ++layer) {
    const auto i = static_cast<size_t>(layer);
    cache.write(sequence, layer, 7, k[i].view.slice(2, 7, 2), v[i].view.slice(2, 7, 2), context);
    EXPECT_EQ(decode<float>(q, batch.k[i], batch.v[i], batch.lengths.view, 16).out, decode<float>(q, k[i].view, v[i].view, {}, 16).out);
  }
  cache.advance(sequence, 2);
}

// Every way of coding: whatever pieces the tokens come in, the cache holds what one write of all would have left, statistics too.
TEST(PagedKvCache, BitsDoNotDependOnPieces) {
  Rng rng(4);
  const PagedStore stores[] = {{.dtype = Dtype::i8},
                               {.dtype = Dtype::u8, .has_zero = true},
                               {.dtype = Dtype::i8, .group = {1, 0}, .has_zero = true},
                               {.dtype = Dtype::u8, .group = {5, 3}},
                               {.dtype = Dtype::i8, .scales = {0.02f, 0.03f}}};
  for (const PagedStore& store : stores) {
    const PagedCacheOptions options{
        .num_layers = 2, .heads_kv = 2, .head_dim = 12, .num_pages = 100, .page_size = 16, .statistics_tokens = 4, .k = store, .v = store};
    PagedKvCache cache(options, host_memory());
    constexpr int64_t kTokens = 75;
    const auto k = random_layers(rng, 2, 2, kTokens, 12), v = random_layers(rng, 2, 2, kTokens, 12);
    std::vector<int64_t> sequences{cache.add(), cache.add(), cache.add()};
    fill(cache, sequences[0], k, v, {kTokens});
    fill(cache, sequences[1], k, v, std::vector<int64_t>(kTokens, 1));
    fill(cache, sequences[2], k, v, {15, 1, 1, 20, 16, 22});
    const PagedBatch batch = cache.batch(sequences, 0, host_memory());
    for (size_t layer = 0; layer < 2; ++layer) {
      for (int64_t head = 0; head < 2; ++head) {
        for (int64_t t = 0; t < kTokens; ++t) {
          for (int64_t d = 0; d < 12; ++d) {
            for (const auto* side : {&batch.k, &batch.v}) {
              const Paged& paged = (*side)[layer];
              const float all = read_number(paged, 0, head, t, d);
              ASSERT_EQ(read_number(paged, 1, head, t, d), all);
              ASSERT_EQ(read_number(paged, 2, head, t, d), all);
            }
            const PageStatistics& s = batch.k[layer].statistics;
            const auto entry = [&](int64_t b) { return batch.k[layer].table.at<int32_t>(b, head, t / 16); };
            for (const TensorView* one : {&s.min, &s.max, &s.sum}) {
              ASSERT_EQ(one->at<float>(entry(1), t % 16 / 4, d), one->at<float>(entry(0), t % 16 / 4, d));
              ASSERT_EQ(one->at<float>(entry(2), t % 16 / 4, d), one->at<float>(entry(0), t % 16 / 4, d));
            }
          }
        }
      }
    }
  }
}

TEST(PagedKvCache, CodesLieWithinHalfAScale) {
  Rng rng(6);
  for (const bool is_int4 : {false, true}) {
    for (const bool has_zero : {false, true}) {
      const PagedStore store{.dtype = is_int4 ? Dtype::u8 : Dtype::i8, .has_zero = has_zero};
      PagedKvCache cache({.heads_kv = 2, .head_dim = 16, .num_pages = 20, .page_size = 16, .k = store, .v = store}, host_memory());
      const auto k = random_layers(rng, 1, 2, 60, 16), v = random_layers(rng, 1, 2, 60, 16);
      const int64_t sequence = cache.add();
      fill(cache, sequence, k, v, {30, 1, 29});
      const PagedBatch batch = cache.batch(std::vector{sequence}, 0, host_memory());
      for (int64_t head = 0; head < 2; ++head) {
        for (int64_t t = 0; t < 60; ++t) {
          for (int64_t d = 0; d < 16; ++d) {
            const float scale = std::get<Quantised>(batch.k[0].pool).scale.at<float>(batch.k[0].table.at<int32_t>(0, head, t / 16), 0, 0, 0);
            // Half a scale, and the roundings of x / scale + zero and its inverse.
            ASSERT_LE(std::abs(read_number(batch.k[0], 0, head, t, d) - k[0].view.at<float>(0, head, t, d)), scale * (0.5f + 300 * 0x1p-23f));
          }
        }
      }
      // Decode reads the numbers that the codes stand for.
      Tensor dense_k(host_memory(), Dtype::f32, {1, 2, 60, 16}), dense_v(host_memory(), Dtype::f32, {1, 2, 60, 16});
      for (int64_t head = 0; head < 2; ++head) {
        for (int64_t t = 0; t < 60; ++t) {
          for (int64_t d = 0; d < 16; ++d) {
            dense_k.view.at<float>(0, head, t, d) = read_number(batch.k[0], 0, head, t, d);
            dense_v.view.at<float>(0, head, t, d) = read_number(batch.v[0], 0, head, t, d);
          }
        }
      }
      const Tensor q = random_rows(rng, 4, 1, 16);
      const Decoded coded = decode<float>(q, batch.k[0], batch.v[0], batch.lengths.view, 16),
                    plain = decode<float>(q, dense_k.view, dense_v.view, {}, 16);
      for (size_t i = 0; i < coded.out.size(); ++i) EXPECT_NEAR(coded.out[i], plain.out[i], 1e-5);
    }
  }
}

// LServe: a sub-page's score is a bound from above of every product in it, exact where it holds one token.
TEST(PagedKvCache, StatisticsBoundEveryScore) {
  Rng rng(9);
  for (const int tokens : {1, 4, 16}) {
    PagedKvCache cache({.heads_kv = 1, .head_dim = 8, .num_pages = 10, .page_size = 16, .statistics_tokens = tokens, .k = {.dtype = Dtype::i8}},
                       host_memory());
    const auto k = random_layers(rng, 1, 1, 50, 8);
    const int64_t sequence = cache.add();
    fill(cache, sequence, k, k, {23, 27});
    const PagedBatch batch = cache.batch(std::vector{sequence}, 0, host_memory());
    const PageStatistics& s = batch.k[0].statistics;
    const Tensor q = random_rows(rng, 1, 1, 8);
    for (int64_t t = 0; t < 50; ++t) {
      const int32_t entry = batch.k[0].table.at<int32_t>(0, 0, t / 16);
      double bound = 0, product = 0;
      for (int64_t d = 0; d < 8; ++d) {
        const double x = q.view.at<float>(0, 0, 0, d), most = s.max.at<float>(entry, t % 16 / tokens, d),
                     least = s.min.at<float>(entry, t % 16 / tokens, d);
        bound += std::max(x * most, x * least);
        product += x * double{k[0].view.at<float>(0, 0, t, d)};
      }
      EXPECT_GE(bound, product);
      if (tokens == 1) {
        EXPECT_EQ(bound, product);
      }
    }
  }
}

TEST(PagedKvCache, NaNStaysInItsGroupAndItsStatistics) {
  Rng rng(10);
  PagedKvCache cache(
      {.heads_kv = 1, .head_dim = 4, .num_pages = 10, .page_size = 8, .statistics_tokens = 2, .k = {.dtype = Dtype::i8, .group = {2, 0}}},
      host_memory());
  const auto k = random_layers(rng, 1, 1, 8, 4);
  k[0].view.at<float>(0, 0, 3, 1) = NAN;
  const int64_t sequence = cache.add();
  fill(cache, sequence, k, k, {2, 1, 5});
  const PagedBatch batch = cache.batch(std::vector{sequence}, 0, host_memory());
  for (int64_t t = 0; t < 8; ++t) {
    for (int64_t d = 0; d < 4; ++d) EXPECT_EQ(std::isnan(read_number(batch.k[0], 0, 0, t, d)), t / 2 == 1) << t;
  }
  const PageStatistics& s = batch.k[0].statistics;
  for (int64_t sub = 0; sub < 4; ++sub) {
    for (const TensorView* one : {&s.min, &s.max, &s.sum}) EXPECT_EQ(std::isnan(one->at<float>(0, sub, 1)), sub == 1);
  }
}

TEST(PagedKvCache, CancelledWriteMayBeginAnew) {
  Rng rng(13);
  const PagedStore int8{.dtype = Dtype::i8};
  PagedKvCache cache({.heads_kv = 2, .head_dim = 8, .num_pages = 20, .page_size = 8, .statistics_tokens = 4, .k = int8, .v = int8}, host_memory());
  const auto k = random_layers(rng, 1, 2, 40, 8), v = random_layers(rng, 1, 2, 40, 8);
  const int64_t sequence = cache.add(), other = cache.add();
  fill(cache, sequence, k, v, {5});
  cache.reserve(sequence, 20);
  Context context;
  std::stop_source stop;
  stop.request_stop();
  context.cancel = stop.get_token();
  EXPECT_THROW(cache.write(sequence, 0, 5, k[0].view.slice(2, 5, 20), v[0].view.slice(2, 5, 20), context), Error);
  EXPECT_THROW(cache.advance(sequence, 20), Error);
  fill(cache, sequence, k, v, {20});
  fill(cache, other, k, v, {25});
  const PagedBatch batch = cache.batch(std::vector{sequence, other}, 0, host_memory());
  for (int64_t t = 0; t < 25; ++t) EXPECT_EQ(read_number(batch.k[0], 0, 1, t, 3), read_number(batch.k[0], 1, 1, t, 3));
}

}  // namespace
}  // namespace tilewise::testing
