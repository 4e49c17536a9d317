// SPDX-License-Identifier: Apache-2.0
#include "tilewise/select/last_queries.h"

#include <gtest/gtest.h>

#include <cmath>

#include "tests/select/testing.h"
#include "tilewise/machine/cpu/thread_pool.h"

namespace tilewise::select {
namespace {

using testing::TestTensor;

// MInference spec 6, oracle 3: logits that are the logarithms of its probabilities. Queries 1 to 3 of 4, so the last 3.
TEST(LastQuerySums, AddUpTheSpecsDiagonals) {
  const double a[3][4] = {{.5, .5, 0, 0}, {.1, .2, .7, 0}, {.1, .1, .1, .7}};
  TestTensor q = testing::make_tensor(Dtype::f32, 1, 1, 4, 8), k = testing::make_tensor(Dtype::f32, 1, 1, 4, 8);
  for (int64_t key = 0; key < 4; ++key) k.set(0, 0, key, key, 1);
  for (int64_t i = 0; i < 3; ++i) {
    for (int64_t key = 0; key <= i + 1; ++key) q.set(0, 0, i + 1, key, static_cast<float>(std::log(a[i][key])));
  }
  Context context;
  const LastQuerySums sums = last_query_sums("test", {.q = q.view, .k = k.view, .mask = Mask::causal(), .softmax_scale = 1}, 3, context);
  EXPECT_EQ(sums.queries, 3);
  const double vertical[] = {.7, .8, .8, .7}, slash[] = {1.9, .8, .2, .1};
  for (int64_t i = 0; i < 4; ++i) {
    EXPECT_NEAR(sums.key.view.at<float>(0, 0, i), vertical[i], 1e-6) << i;
    EXPECT_NEAR(sums.offset.view.at<float>(0, 0, i), slash[i], 1e-6) << i;
  }
}

TEST(LastQuerySums, EqualTheirDefinition) {
  unsigned seed = 40;
  for (const testing::Sizes& s : std::vector<testing::Sizes>{
           {2, 4, 2, 150, 150, 16}, {1, 2, 1, 30, 211, 24}, {1, 2, 2, 90, 64, 8}, {1, 1, 1, 1, 1, 8}, {1, 2, 1, 200, 200, 40}}) {
    for (const int64_t count : {1, 64, 128}) {
      for (const float softcap : {0.0f, 3.0f}) {
        const Dtype dtype = count == 64 ? Dtype::bf16 : Dtype::f32;
        const TestTensor q = testing::random_tensor(dtype, s.batch, s.heads_q, s.seqlen_q, s.dim, ++seed, 1.5f),
                         k = testing::random_tensor(dtype, s.batch, s.heads_kv, s.seqlen_k, s.dim, ++seed, 1.5f);
        const Inputs inputs{.q = q.view, .k = k.view, .mask = Mask::causal(), .softmax_scale = .3f, .softcap = softcap};
        Context context, pooled;
        pooled.executor = make_thread_pool(3);
        const LastQuerySums sums = last_query_sums("test", inputs, count, context), again = last_query_sums("test", inputs, count, pooled);
        const int64_t used = std::min(count, s.seqlen_q);
        for (int64_t b = 0; b < s.batch; ++b) {
          for (int h = 0; h < s.heads_q; ++h) {
            std::vector<double> key(static_cast<size_t>(s.seqlen_k), 0.0), offset(key);
            for (int64_t i = s.seqlen_q - used; i < s.seqlen_q; ++i) {
              const int64_t token = i + s.seqlen_k - s.seqlen_q;
              std::vector<double> p;
              double total = 0;
              for (int64_t j = 0; j <= token; ++j) {
                double dot = 0;
                for (int64_t d = 0; d < s.dim; ++d) dot += q.get(b, h, i, d) * k.get(b, h * s.heads_kv / s.heads_q, j, d);
                dot *= .3;
                if (softcap > 0) dot = 3 * std::tanh(dot / 3);
                p.push_back(std::exp(dot));
                total += p.back();
              }
              for (size_t j = 0; j < p.size(); ++j) {
                key[j] += p[j] / total;
                offset[static_cast<size_t>(token) - j] += p[j] / total;
              }
            }
            for (int64_t j = 0; j < s.seqlen_k; ++j) {
              ASSERT_NEAR(sums.key.view.at<float>(b, h, j), key[static_cast<size_t>(j)], 2e-5) << s << " count " << count << " key " << j;
              ASSERT_NEAR(sums.offset.view.at<float>(b, h, j), offset[static_cast<size_t>(j)], 2e-5) << s << " count " << count << " offset " << j;
              ASSERT_EQ(sums.key.view.at<float>(b, h, j), again.key.view.at<float>(b, h, j)) << "bits depend on threads";
              ASSERT_EQ(sums.offset.view.at<float>(b, h, j), again.offset.view.at<float>(b, h, j)) << "bits depend on threads";
            }
          }
        }
      }
    }
  }
}

TEST(LastQuerySums, RefuseWhatTheyCannotTell) {
  const TestTensor x = testing::make_tensor(Dtype::f32, 1, 1, 8, 8);
  Context context;
  const auto kind_of = [&](const Mask& mask, int64_t count) {
    try {
      last_query_sums("test", {.q = x.view, .k = x.view, .mask = mask}, count, context);
    } catch (const Error& error) {
      return error.kind();
    }
    return Error::Kind::io;
  };
  EXPECT_EQ(kind_of(Mask::causal(), 0), Error::Kind::value);
  EXPECT_EQ(kind_of(Mask::full(), 4), Error::Kind::unsupported);
}

}  // namespace
}  // namespace tilewise::select
