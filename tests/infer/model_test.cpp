// SPDX-License-Identifier: Apache-2.0
#include "tilewise/infer/model.h"

#include <gtest/gtest.h>

#include <chrono>
#include <cmath>
#include <cstring>
#include <thread>

#include "tilewise/cache/contiguous.h"
#include "tilewise/machine/cpu/thread_pool.h"
#include "tiny_checkpoint.h"

namespace tilewise {
namespace {

std::vector<int32_t> random_tokens(int64_t count, int vocab, unsigned seed) {
  std::mt19937 random(seed);
  std::vector<int32_t> tokens;
  for (int64_t i = 0; i < count; ++i) tokens.push_back(static_cast<int32_t>(random() % static_cast<unsigned>(vocab)));
  return tokens;
}

double bits_of(const std::vector<double>& logits, const std::vector<int32_t>& tokens, int vocab) {
  double bits = 0;
  for (size_t t = 0; t + 1 < tokens.size(); ++t) {
    double sum = 0;
    for (int i = 0; i < vocab; ++i) sum += std::exp(logits[t * static_cast<size_t>(vocab) + static_cast<size_t>(i)]);
    bits += std::log2(sum) - logits[t * static_cast<size_t>(vocab) + static_cast<size_t>(tokens[t + 1])] * std::log2(std::exp(1.0));
  }
  return bits;
}

void expect_equals_definition(const TinyCheckpoint& checkpoint, int64_t length) {
  SCOPED_TRACE(testing::Message() << "length " << length << ", heads " << checkpoint.heads_q << "/" << checkpoint.heads_kv << ", dtype "
                                  << checkpoint.dtype);
  TemporaryFolder folder;
  checkpoint.write(folder.path());
  Context context;
  const Model model = Model::load(folder.path(), context);
  const auto tokens = random_tokens(length, checkpoint.vocab, 5);
  const auto expected = checkpoint.logits(tokens);
  const auto cache = model.make_cache(length, context);
  const ForwardResult result = model.forward(tokens, *cache, {.attention = plain_attention, .logits_rows = length, .has_bits = true}, context);
  EXPECT_EQ(cache->length(), length);
  EXPECT_EQ(result.predictions, length - 1);
  EXPECT_NEAR(result.bits, bits_of(expected, tokens, checkpoint.vocab), 1e-4 * static_cast<double>(length));
  ASSERT_EQ(result.logits.view.shape(), (Shape{length, checkpoint.vocab}));
  for (size_t i = 0; i < expected.size(); ++i) ASSERT_NEAR(result.logits.view.data<float>()[i], expected[i], 2e-4) << "at " << i;
}

TEST(Model, EqualsItsDefinition) {
  TinyCheckpoint checkpoint;
  checkpoint.make(1);
  for (const int64_t length : {1, 2, 37, 257}) expect_equals_definition(checkpoint, length);
}

TEST(Model, EqualsItsDefinitionForOtherShapesAndDtypes) {
  for (const Dtype dtype : {Dtype::bf16, Dtype::f16}) {
    TinyCheckpoint checkpoint;
    checkpoint.dtype = dtype;
    checkpoint.make(2);
    expect_equals_definition(checkpoint, 20);
  }
  for (const int heads_kv : {1, 3, 6}) {
    TinyCheckpoint checkpoint;
    checkpoint.heads_kv = heads_kv;
    checkpoint.is_tied = heads_kv == 3;
    checkpoint.hidden = 17 + heads_kv;
    checkpoint.inner = 31;
    checkpoint.vocab = 301;
    checkpoint.make(3);
    expect_equals_definition(checkpoint, 19);
  }
}

TEST(Model, EqualsItsDefinitionWithBiasesAndNormsOfHeads) {
  TinyCheckpoint llama;
  llama.has_qkv_bias = llama.has_output_bias = llama.has_mlp_bias = true;
  llama.more_config = R"("attention_bias": true, "mlp_bias": true, )";
  llama.files = 3;
  llama.make(21);
  expect_equals_definition(llama, 23);
  TinyCheckpoint qwen2;
  qwen2.architecture = "Qwen2ForCausalLM";
  qwen2.more_config = R"("use_sliding_window": false, "sliding_window": 4096, "layer_types": ["full_attention", "full_attention"], )";
  qwen2.has_qkv_bias = true;
  qwen2.make(22);
  expect_equals_definition(qwen2, 23);
  TinyCheckpoint qwen3;
  qwen3.architecture = "Qwen3ForCausalLM";
  qwen3.has_qk_norm = true;
  qwen3.make(23);
  expect_equals_definition(qwen3, 23);
}

TEST(Model, TurnsByTheFrequenciesOfItsConfig) {
  TinyCheckpoint linear;
  linear.more_config = R"("rope_scaling": {"type": "linear", "factor": 2}, )";
  for (int i = 0; i < 4; ++i) linear.frequencies.push_back(std::pow(1e4, -i / 4.0) / 2);
  linear.make(24);
  expect_equals_definition(linear, 37);
  TinyCheckpoint longrope;  // beyond the original positions, with a factor of cosine and sine
  longrope.more_config =
      R"("rope_scaling": {"type": "longrope", "short_factor": [1, 1, 1, 1], "long_factor": [1, 2, 3, 4], "attention_factor": 1.25,
          "original_max_position_embeddings": 16}, )";
  for (int i = 0; i < 4; ++i) longrope.frequencies.push_back(std::pow(1e4, -i / 4.0) / (i + 1));
  longrope.attention_factor = 1.25;
  longrope.make(25);
  expect_equals_definition(longrope, 17);
}

TEST(Model, ReadsAPromptInChunks) {
  TinyCheckpoint checkpoint;
  checkpoint.make(26);
  TemporaryFolder folder;
  checkpoint.write(folder.path());
  Context context;
  const Model model = Model::load(folder.path(), context);
  const auto tokens = random_tokens(300, checkpoint.vocab, 27);
  const auto run = [&](int64_t chunk, std::vector<std::pair<int, int>>* progress = nullptr) {
    const auto cache = model.make_cache(300, context);
    const auto note = [&](int done, int of) {
      if (progress != nullptr) progress->push_back({done, of});
    };
    ForwardResult result = model.forward(
        tokens, *cache, {.attention = plain_attention, .logits_rows = 70, .has_bits = true, .chunk_tokens = chunk, .progress = note}, context);
    EXPECT_EQ(cache->length(), 300);
    return result;
  };
  const ForwardResult whole = run(0);
  for (const int64_t chunk : {64, 299, 300, 1000}) {
    const ForwardResult result = run(chunk);
    EXPECT_NEAR(result.bits, whole.bits, 1e-3) << chunk;
    EXPECT_EQ(result.predictions, 299);
    for (int64_t i = 0; i < whole.logits.view.numel(); ++i)
      ASSERT_NEAR(result.logits.view.data<float>()[i], whole.logits.view.data<float>()[i], 2e-5) << chunk << " at " << i;
  }
  std::vector<std::pair<int, int>> progress;
  run(150, &progress);
  EXPECT_EQ(progress, (std::vector<std::pair<int, int>>{{0, 4}, {1, 4}, {2, 4}, {3, 4}, {4, 4}}));
}

TEST(Model, LeavesTheCacheAsItWasWhenALaterChunkFails) {
  TinyCheckpoint checkpoint;
  checkpoint.make(28);
  TemporaryFolder folder;
  checkpoint.write(folder.path());
  Context context;
  const Model model = Model::load(folder.path(), context);
  const auto tokens = random_tokens(100, checkpoint.vocab, 29);
  const auto cache = model.make_cache(100, context);
  int calls = 0;
  const auto fails_late = [&](const LayerAttention& layer, Context& inner) {
    if (++calls == 4) fail(Error::Kind::memory, "no more");
    plain_attention(layer, inner);
  };
  EXPECT_EQ(error_of([&] { model.forward(tokens, *cache, {.attention = fails_late, .chunk_tokens = 40}, context); }), "memory: no more");
  EXPECT_EQ(cache->length(), 0);
  EXPECT_EQ(error_of([&] { model.forward(tokens, *cache, {.attention = plain_attention, .chunk_tokens = 40}, context); }), "no error");
  EXPECT_NE(error_of([&] { model.forward(tokens, *cache, {.chunk_tokens = -1}, context); }).find("value:"), std::string::npos);
}

TEST(Model, RunsInBf16NearItsDefinition) {
  TinyCheckpoint checkpoint;
  checkpoint.hidden = 64, checkpoint.inner = 96;
  checkpoint.dtype = Dtype::bf16;
  checkpoint.make(30);
  TemporaryFolder folder;
  checkpoint.write(folder.path());
  Context context;
  const std::string refusal = error_of([&] { Model::load(folder.path(), context, {.dtype = Dtype::bf16}); });
  if (refusal != "no error") {  // oneDNN computes in bf16 from AVX-512 on
    EXPECT_NE(refusal.find("bf16 needs AVX-512"), std::string::npos) << refusal;
    GTEST_SKIP() << refusal;
  }
  const Model model = Model::load(folder.path(), context, {.dtype = Dtype::bf16});
  EXPECT_EQ(model.dtype(), Dtype::bf16);
  const auto tokens = random_tokens(300, checkpoint.vocab, 31);
  const auto cache = model.make_cache(300, context);
  EXPECT_EQ(cache->dtype(), Dtype::bf16);
  const ForwardResult result = model.forward(tokens, *cache, {.logits_rows = 300, .has_bits = true}, context);
  const auto expected = checkpoint.logits(tokens);
  double error = 0, size = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    error += std::pow(result.logits.view.data<float>()[i] - expected[i], 2);
    size += std::pow(expected[i], 2);
  }
  // bf16 keeps 8 bits: each of some ten roundings on the way adds up to 2^-9.
  EXPECT_LT(std::sqrt(error / size), .03);
  EXPECT_NEAR(result.bits / 299, bits_of(expected, tokens, checkpoint.vocab) / 299, .05);
  KvCache other(2, 2, 300, 8, host_memory());
  EXPECT_NE(error_of([&] { model.forward(tokens, other, {}, context); }).find("the cache keeps f32, the model runs in bf16"), std::string::npos);
  EXPECT_EQ(error_of([&] { Model::load(folder.path(), context, {.dtype = Dtype::f16}); }).substr(0, 6), "dtype:");
}

TEST(Model, ReadsChunksBehindItsCache) {
  TinyCheckpoint checkpoint;
  checkpoint.make(4);
  TemporaryFolder folder;
  checkpoint.write(folder.path());
  Context context;
  const Model model = Model::load(folder.path(), context);
  const auto tokens = random_tokens(300, checkpoint.vocab, 6);
  const auto expected = checkpoint.logits(tokens);
  const auto cache = model.make_cache(300, context);
  const auto expect_rows = [&](const ForwardResult& result, int64_t first) {
    for (int64_t i = 0; i < result.logits.view.numel(); ++i)
      ASSERT_NEAR(result.logits.view.data<float>()[i], expected[static_cast<size_t>(first * checkpoint.vocab + i)], 2e-4);
  };
  const std::span<const int32_t> all(tokens);
  int64_t done = 0;
  for (const int64_t chunk : {257, 1, 6, 36}) {
    const auto result = model.forward(all.subspan(static_cast<size_t>(done), static_cast<size_t>(chunk)), *cache,
                                      {.attention = plain_attention, .logits_rows = std::min<int64_t>(chunk, 6)}, context);
    done += chunk;
    expect_rows(result, done - std::min<int64_t>(chunk, 6));
    EXPECT_EQ(cache->length(), done);
  }
  // Forget what was read last and read it again.
  cache->truncate(258);
  expect_rows(model.forward(all.subspan(258, 42), *cache, {.attention = plain_attention, .logits_rows = 42}, context), 258);
}

TEST(Model, BitsDoNotDependOnThreads) {
  TinyCheckpoint checkpoint;
  checkpoint.hidden = 48, checkpoint.inner = 136, checkpoint.vocab = 256;
  checkpoint.make(7);
  TemporaryFolder folder;
  checkpoint.write(folder.path());
  Context one;
  const Model model = Model::load(folder.path(), one);
  EXPECT_TRUE(model.config().reads_bytes);
  const auto tokens = random_tokens(700, checkpoint.vocab, 8);
  const auto run = [&](Context& context) {
    const auto cache = model.make_cache(700, context);
    return model.forward(tokens, *cache, {.attention = plain_attention, .logits_rows = 700, .has_bits = true}, context);
  };
  const ForwardResult alone = run(one);
  for (const int threads : {2, 3}) {
    Context many;
    many.executor = make_thread_pool(threads);
    const ForwardResult result = run(many);
    EXPECT_EQ(result.bits, alone.bits) << threads << " threads";
    EXPECT_EQ(std::memcmp(result.logits.view.raw(), alone.logits.view.raw(), static_cast<size_t>(alone.logits.view.numel()) * 4), 0) << threads;
  }
}

TEST(Model, SeveralCallersReadAtOnce) {
  TinyCheckpoint checkpoint;
  checkpoint.make(9);
  TemporaryFolder folder;
  checkpoint.write(folder.path());
  Context context;
  context.executor = make_thread_pool(2);
  const Model model = Model::load(folder.path(), context);
  const auto tokens = random_tokens(120, checkpoint.vocab, 10);
  std::vector<double> bits(4);
  std::vector<std::thread> callers;
  for (double& own : bits) {
    callers.emplace_back([&] {
      Context mine = context;
      const auto cache = model.make_cache(120, mine);
      own = model.forward(tokens, *cache, {.attention = plain_attention, .has_bits = true}, mine).bits;
    });
  }
  for (std::thread& caller : callers) caller.join();
  for (const double other : bits) EXPECT_EQ(other, bits[0]);
}

TEST(Model, StopsWhenAskedAndLeavesTheCacheAsItWas) {
  TinyCheckpoint checkpoint;
  checkpoint.make(11);
  TemporaryFolder folder;
  checkpoint.write(folder.path());
  Context context;
  const Model model = Model::load(folder.path(), context);
  const auto tokens = random_tokens(600, checkpoint.vocab, 12);
  const auto cache = model.make_cache(600, context);
  const std::span<const int32_t> all(tokens);
  model.forward(all.first(40), *cache, {.attention = plain_attention}, context);
  const std::string unasked = error_of([&] {
    std::stop_source source;
    source.request_stop();
    Context stopped = context;
    stopped.cancel = source.get_token();
    model.forward(all.subspan(40), *cache, {.attention = plain_attention}, stopped);
  });
  EXPECT_EQ(unasked.substr(0, 10), "cancelled:");
  std::vector<int> layers;
  const std::string within = error_of([&] {
    std::stop_source source;
    Context stopped = context;
    stopped.cancel = source.get_token();
    const auto attention = [&](const LayerAttention& layer, Context& inner) {
      plain_attention(layer, inner);
      if (layer.layer == 0) source.request_stop();
    };
    const auto progress = [&](int layer, int num_layers) {
      EXPECT_EQ(num_layers, 2);
      layers.push_back(layer);
    };
    model.forward(all.subspan(40, 300), *cache, {.attention = attention, .progress = progress}, stopped);
  });
  EXPECT_EQ(within.substr(0, 10), "cancelled:");
  EXPECT_EQ(layers, (std::vector<int>{0, 1}));
  EXPECT_EQ(cache->length(), 40);
  const auto expected = checkpoint.logits(std::vector<int32_t>(tokens.begin(), tokens.begin() + 60));
  const auto result = model.forward(all.subspan(40, 20), *cache, {.attention = plain_attention}, context);
  for (int i = 0; i < checkpoint.vocab; ++i)
    EXPECT_NEAR(result.logits.view.at<float>(0, i), expected[static_cast<size_t>(59 * checkpoint.vocab + i)], 2e-4);
}

TEST(Model, RefusesBadCalls) {
  TinyCheckpoint checkpoint;
  checkpoint.make(13);
  TemporaryFolder folder;
  checkpoint.write(folder.path());
  Context context;
  const Model model = Model::load(folder.path(), context);
  const auto cache = model.make_cache(10, context);
  const auto run = [&](const std::vector<int32_t>& tokens, int64_t rows = 1) {
    return error_of([&] { model.forward(tokens, *cache, {.attention = plain_attention, .logits_rows = rows}, context); });
  };
  EXPECT_NE(run({}).find("no token"), std::string::npos);
  EXPECT_NE(run({1, 50, 2}).find("token 50 at place 1 is not in [0, 50)"), std::string::npos);
  EXPECT_NE(run({-1}).find("token -1 at place 0"), std::string::npos);
  EXPECT_NE(run(std::vector<int32_t>(11)).find("11 tokens behind 0, the cache takes 10"), std::string::npos);
  EXPECT_NE(run({1, 2}, 3).find("logits_rows is 3"), std::string::npos);
  EXPECT_NE(run({1, 2}, -1).find("logits_rows is -1"), std::string::npos);
  KvCache other(2, 3, 10, 8, host_memory());
  EXPECT_NE(error_of([&] { model.forward(std::vector<int32_t>{1}, other, {}, context); }).find("of another model"), std::string::npos);
  EXPECT_NE(error_of([&] { model.make_cache(4097, context); }).find("max_position_embeddings, 4096"), std::string::npos);
  EXPECT_NE(error_of([&] { model.make_cache(-1, context); }).find("value:"), std::string::npos);
  EXPECT_EQ(cache->length(), 0);
  EXPECT_EQ(run({1, 2}, 0), "no error");
}

TEST(Model, CountsFlops) {
  ModelConfig config;
  config.num_layers = 8, config.hidden_size = 384, config.intermediate_size = 1024, config.heads_q = 6, config.heads_kv = 2, config.head_dim = 64;
  config.vocab_size = 256;
  const ModelFlops flops = model_flops(config, 16384, 0, 16384);
  EXPECT_DOUBLE_EQ(flops.linear, 2.0 * 16384 * (8 * 384.0 * (384 + 256 + 384 + 3 * 1024) + 384.0 * 256));
  EXPECT_DOUBLE_EQ(flops.attention, 8 * 4.0 * 64 * 6 * (16384.0 * 16385 / 2));
  EXPECT_DOUBLE_EQ(model_flops(config, 6, 100, 6).attention, 8 * 4.0 * 64 * 6 * (101 + 102 + 103 + 104 + 105 + 106));
  EXPECT_THROW(model_flops(config, 5, 0, 6), Error);
}

}  // namespace
}  // namespace tilewise
