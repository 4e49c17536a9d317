// SPDX-License-Identifier: Apache-2.0
#include "tilewise/infer/generate.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "tilewise/base/hash.h"
#include "tilewise/infer/recipe.h"
#include "tilewise/machine/cpu/thread_pool.h"
#include "tiny_checkpoint.h"

namespace tilewise {
namespace {

TEST(SampleToken, TakesTheLargestLogitWithoutATemperature) {
  const std::vector<float> logits = {-1, 3, 2, 3, -INFINITY};
  EXPECT_EQ(sample_token(logits, {}, 0), 1) << "ties go to the smaller token";
  EXPECT_EQ(sample_token(logits, {.temperature = 2, .top_k = 1, .seed = 7}, 5), 1);
}

TEST(SampleToken, DrawsEachTokenAsOftenAsItIsLikely) {
  const std::vector<float> logits = {0, std::log(2.0f), std::log(3.0f), std::log(4.0f), -INFINITY};
  const auto shares = [&](const Sampling& sampling) {
    std::vector<double> counts(logits.size());
    constexpr int kDraws = 40'000;
    for (int step = 0; step < kDraws; ++step)
      counts[static_cast<size_t>(sample_token(logits, sampling, static_cast<uint64_t>(step)))] += 1.0 / kDraws;
    return counts;
  };
  const auto expect_shares = [&](const Sampling& sampling, std::vector<double> weights) {
    const double sum = std::accumulate(weights.begin(), weights.end(), 0.0);
    const auto counts = shares(sampling);
    // Five standard deviations of a share of 40,000 draws are at most .0125.
    for (size_t i = 0; i < weights.size(); ++i) EXPECT_NEAR(counts[i], weights[i] / sum, .0125) << "token " << i;
    for (size_t i = 0; i < weights.size(); ++i) EXPECT_EQ(counts[i] == 0, weights[i] == 0) << "token " << i;
  };
  expect_shares({.temperature = 1, .seed = 1}, {1, 2, 3, 4, 0});
  expect_shares({.temperature = .5, .seed = 2}, {1, 4, 9, 16, 0});
  expect_shares({.temperature = 1, .top_k = 2, .seed = 3}, {0, 0, 3, 4, 0});
  expect_shares({.temperature = 1, .top_p = .7, .seed = 4}, {0, 0, 3, 4, 0});   // .4 + .3 reach .7
  expect_shares({.temperature = 1, .top_p = .71, .seed = 4}, {0, 2, 3, 4, 0});  // not .71
  expect_shares({.temperature = 1, .top_p = .01, .seed = 5}, {0, 0, 0, 1, 0});
  expect_shares({.temperature = 1, .top_k = 3, .top_p = .5, .seed = 6}, {0, 0, 3, 4, 0});
}

TEST(SampleToken, RepeatsWithItsSeed) {
  std::vector<float> logits(100);
  for (size_t i = 0; i < logits.size(); ++i) logits[i] = static_cast<float>(i % 7);
  const auto draws = [&](uint64_t seed) {
    std::vector<int32_t> tokens;
    for (uint64_t step = 0; step < 50; ++step) tokens.push_back(sample_token(logits, {.temperature = 1, .seed = seed}, step));
    return tokens;
  };
  EXPECT_EQ(draws(1), draws(1));
  EXPECT_NE(draws(1), draws(2));
}

TEST(SampleToken, RefusesBadCalls) {
  const std::vector<float> logits = {1, 2};
  const auto refusal = [&](std::vector<float> row, const Sampling& sampling) { return error_of([&] { sample_token(row, sampling, 0); }); };
  EXPECT_NE(refusal({}, {}).find("no logit"), std::string::npos);
  EXPECT_NE(refusal({1, NAN}, {}).find("token 1 is NaN"), std::string::npos);
  EXPECT_NE(refusal({-INFINITY, -INFINITY}, {}).find("largest logit is -inf"), std::string::npos);
  EXPECT_NE(refusal(logits, {.temperature = -1}).find("temperature is -1"), std::string::npos);
  EXPECT_NE(refusal(logits, {.temperature = NAN}).find("temperature is nan"), std::string::npos);
  EXPECT_NE(refusal(logits, {.top_k = -1}).find("top_k is -1"), std::string::npos);
  EXPECT_NE(refusal(logits, {.top_p = 0}).find("top_p is 0"), std::string::npos);
  EXPECT_NE(refusal(logits, {.top_p = 1.5}).find("top_p is 1.5"), std::string::npos);
}

class Generating : public testing::Test {
 protected:
  Generating() {
    checkpoint.make(41);
    checkpoint.write(folder.path());
    model.emplace(Model::load(folder.path(), context));
    for (int i = 0; i < 90; ++i) prompt.push_back(static_cast<int32_t>(splitmix64(static_cast<uint64_t>(i)) % 50));
  }
  GenerateResult run(const GenerateOptions& options, int64_t capacity = 200) {
    cache = model->make_cache(capacity, context);
    return generate(*model, prompt, *cache, options, context);
  }

  TemporaryFolder folder;
  TinyCheckpoint checkpoint;
  Context context;
  std::optional<Model> model;
  std::unique_ptr<KvCache> cache;
  std::vector<int32_t> prompt;
};

TEST_F(Generating, GreedyTokensAreTheArgmaxesOfTheDefinition) {
  const GenerateResult result = run({.max_tokens = 8});
  ASSERT_EQ(result.tokens.size(), 8u);
  EXPECT_EQ(result.end, GenerateResult::End::length);
  EXPECT_EQ(result.prompt_tokens, 90);
  EXPECT_EQ(cache->length(), 97) << "the last token is not read";
  std::vector<int32_t> all = prompt;
  all.insert(all.end(), result.tokens.begin(), result.tokens.end());
  const auto logits = checkpoint.logits(all);
  for (size_t i = 0; i < 8; ++i) {
    const auto row = logits.begin() + static_cast<std::ptrdiff_t>((89 + i) * 50);
    EXPECT_EQ(result.tokens[i], std::max_element(row, row + 50) - row) << i;
  }
}

TEST_F(Generating, GoesOnFromItsCache) {
  const GenerateResult whole = run({.max_tokens = 12});
  const GenerateResult first = run({.max_tokens = 5});
  const GenerateResult second = generate(*model, std::span(&first.tokens.back(), 1), *cache, {.max_tokens = 7}, context);
  std::vector<int32_t> both = first.tokens;
  both.insert(both.end(), second.tokens.begin(), second.tokens.end());
  EXPECT_EQ(both, whole.tokens);
}

TEST_F(Generating, PrefillAndDecodeHaveAttentionsOfTheirOwn) {
  std::vector<int64_t> prefill, decode;
  const auto noting = [](std::vector<int64_t>& lengths) {
    return [&lengths, inner = method_attention("a_shape", {{"init", int64_t{16}}, {"local", int64_t{32}}})](const LayerAttention& layer, Context& c) {
      lengths.push_back(layer.q.dim(2));
      inner(layer, c);
    };
  };
  const GenerateResult result = run({.max_tokens = 4, .prefill = noting(prefill), .decode = noting(decode), .chunk_tokens = 64});
  EXPECT_EQ(result.tokens.size(), 4u);
  EXPECT_EQ(prefill, (std::vector<int64_t>{64, 64, 26, 26}));
  EXPECT_EQ(decode, (std::vector<int64_t>(6, 1)));
}

TEST_F(Generating, EndsAtAStopTokenOrWhenTheCallerSaysSo) {
  const GenerateResult whole = run({.max_tokens = 12});
  const int32_t stop = whole.tokens[3];
  const auto first = std::find(whole.tokens.begin(), whole.tokens.end(), stop);
  const std::vector<int32_t> until(whole.tokens.begin(), first + 1);
  const GenerateResult stopped = run({.max_tokens = 12, .stop_tokens = {stop}});
  EXPECT_EQ(stopped.tokens, until);
  EXPECT_EQ(stopped.end, GenerateResult::End::stop_token);
  std::vector<int32_t> seen;
  const GenerateResult ended = run({.max_tokens = 12, .on_token = [&](int32_t token) { return seen.push_back(token), seen.size() < 3; }});
  EXPECT_EQ(ended.end, GenerateResult::End::caller);
  EXPECT_EQ(ended.tokens, seen);
  EXPECT_EQ(seen.size(), 3u);
}

TEST_F(Generating, DrawsTheSameWithAnyNumberOfThreads) {
  const GenerateOptions options{.max_tokens = 20, .sampling = {.temperature = 1.5, .top_k = 20, .top_p = .9, .seed = 3}};
  const auto alone = run(options).tokens;
  context.executor = make_thread_pool(3);
  EXPECT_EQ(run(options).tokens, alone);
  EXPECT_NE(run({.max_tokens = 20, .sampling = {.temperature = 1.5, .seed = 4}}).tokens, alone);
}

TEST_F(Generating, LeavesTheCacheAsItWasWhenItFails) {
  cache = model->make_cache(200, context);
  model->forward(prompt, *cache, {}, context);
  int steps = 0;
  const auto fails = [&](int32_t) -> bool { return ++steps < 3 ? true : throw std::runtime_error("no more"); };
  EXPECT_THROW(generate(*model, prompt, *cache, {.on_token = fails}, context), std::runtime_error);
  EXPECT_EQ(cache->length(), 90);
}

TEST_F(Generating, RefusesBadCalls) {
  const auto refusal = [&](const GenerateOptions& options, int64_t capacity = 200) { return error_of([&] { run(options, capacity); }); };
  EXPECT_NE(refusal({.max_tokens = 0}).find("max_tokens is 0"), std::string::npos);
  EXPECT_NE(refusal({.max_tokens = 8}, 96).find("need a cache of 97, it takes 96"), std::string::npos);
  EXPECT_EQ(refusal({.max_tokens = 7}, 96), "no error");
  EXPECT_NE(refusal({.stop_tokens = {50}}).find("stop token 50"), std::string::npos);
  EXPECT_NE(refusal({.sampling = {.top_p = -1}}).find("top_p is -1"), std::string::npos);
  prompt.clear();
  EXPECT_NE(refusal({}).find("no token"), std::string::npos);
}

}  // namespace
}  // namespace tilewise
