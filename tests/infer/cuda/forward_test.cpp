// SPDX-License-Identifier: Apache-2.0
// A whole forward pass of a model on a GPU, on a queue whose device is the CPU (host_queue.h), against the model on the CPU.
#include "tilewise/infer/cuda/forward.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <stop_token>

#include "tests/infer/cuda/host_queue.h"
#include "tests/infer/tiny_checkpoint.h"
#include "tilewise/base/memory.h"
#include "tilewise/cache/contiguous.h"
#include "tilewise/infer/config.h"
#include "tilewise/infer/layer.h"

namespace tilewise::infer::cuda {
namespace {

std::vector<int32_t> random_tokens(int64_t count, int vocab) {
  std::mt19937 random(5);
  std::vector<int32_t> tokens;
  for (int64_t i = 0; i < count; ++i) tokens.push_back(static_cast<int32_t>(random() % static_cast<unsigned>(vocab)));
  return tokens;
}

/// The model of a folder on the stand-in.
struct OnStandIn {
  OnStandIn(const std::string& folder, Dtype in, std::optional<uint64_t> seed = {})
      : config(read_config(folder)), dtype(in), weights(make_weights(WeightSource(folder, config, seed), config, dtype, queue, context)) {}
  KvCache cache(int64_t capacity) {
    return KvCache(config.num_layers, config.heads_kv, capacity, config.head_dim, context.memory, dtype, context.device);
  }
  ForwardResult run(std::span<const int32_t> tokens, KvCache& into, const ForwardOptions& options) {
    return forward(config, weights, dtype, tokens, into, options, queue, context);
  }

  Context context = testing::stand_in_context();
  testing::HostQueue queue;
  ModelConfig config;
  Dtype dtype;
  DeviceWeights weights;
};

/// Dense attention of the CPU over memory that is labelled as a GPU's.
void relabelled_attention(const LayerAttention& layer, Context& context) {
  const auto on_cpu = [](const TensorView& view) {
    EXPECT_EQ(view.device().type, Device::Type::cuda);
    return TensorView(view.raw(), view.dtype(), view.shape(), {view.stride(0), view.stride(1), view.stride(2), view.stride(3), 0});
  };
  Context host = context;
  host.device = {};
  dense_attention()({.layer = layer.layer, .q = on_cpu(layer.q), .k = on_cpu(layer.k), .v = on_cpu(layer.v), .out = on_cpu(layer.out)}, host);
}

void expect_near(const TensorView& got, const TensorView& want, float bound, const char* what) {
  ASSERT_EQ(got.shape(), want.shape()) << what;
  for (int64_t i = 0; i < got.numel(); ++i) ASSERT_NEAR(got.data<float>()[i], want.data<float>()[i], bound) << what << " at " << i;
}

TEST(DeviceForward, EqualsTheModelOnTheCpu) {
  std::vector<TinyCheckpoint> checkpoints(4);
  checkpoints[1].is_tied = true;
  checkpoints[1].architecture = "Qwen2ForCausalLM";
  checkpoints[1].has_qkv_bias = true;
  checkpoints[2].architecture = "Qwen3ForCausalLM";
  checkpoints[2].has_qk_norm = checkpoints[2].has_qkv_bias = checkpoints[2].has_output_bias = true;
  checkpoints[2].more_config = "\"attention_bias\": true, ";
  checkpoints[2].files = 2;
  checkpoints[3].has_qkv_bias = checkpoints[3].has_output_bias = checkpoints[3].has_mlp_bias = true;
  checkpoints[3].more_config = "\"attention_bias\": true, \"mlp_bias\": true, ";
  checkpoints[3].dtype = Dtype::bf16;
  for (size_t i = 0; i < checkpoints.size(); ++i) {
    SCOPED_TRACE(i);
    TemporaryFolder folder;
    checkpoints[i].make(static_cast<unsigned>(i) + 1);
    checkpoints[i].write(folder.path());
    Context context;
    const Model model = Model::load(folder.path(), context);
    OnStandIn device(folder.path(), Dtype::f32);
    const auto tokens = random_tokens(41, checkpoints[i].vocab);
    const auto cache = model.make_cache(50, context);
    const ForwardResult want = model.forward(tokens, *cache, {.attention = plain_attention, .logits_rows = 41, .has_bits = true}, context);
    KvCache device_cache = device.cache(50);
    const ForwardResult got = device.run(tokens, device_cache, {.attention = plain_attention, .logits_rows = 41, .has_bits = true});
    expect_near(got.logits.view, want.logits.view, 2e-4f, "logits");
    EXPECT_NEAR(got.bits, want.bits, 1e-4 * 41);
    EXPECT_EQ(got.predictions, 40);
    EXPECT_EQ(device_cache.length(), 41);
    EXPECT_EQ(device_cache.device(), device.context.device);
    for (int layer = 0; layer < 2; ++layer) {
      const TensorView k = device_cache.k(layer, 41), v = device_cache.v(layer, 41), want_k = cache->k(layer, 41), want_v = cache->v(layer, 41);
      for (int64_t h = 0; h < 2; ++h)
        for (int64_t t = 0; t < 41; ++t)
          for (int64_t d = 0; d < 8; ++d) {
            ASSERT_NEAR(k.at<float>(0, h, t, d), want_k.at<float>(0, h, t, d), 1e-4f);
            ASSERT_NEAR(v.at<float>(0, h, t, d), want_v.at<float>(0, h, t, d), 1e-4f);
          }
    }
    // A second call goes on where the first ended, one token and then several.
    for (const int64_t count : {1, 4}) {
      const auto more = random_tokens(count, checkpoints[i].vocab);
      const ForwardResult next_want = model.forward(more, *cache, {.attention = plain_attention}, context);
      const ForwardResult next = device.run(more, device_cache, {.attention = plain_attention});
      expect_near(next.logits.view, next_want.logits.view, 2e-4f, "logits of the next call");
    }
  }
}

// Chunks give what one pass gives; logits of the last rows alone; progress is told as on the CPU.
TEST(DeviceForward, ChunksAndRowsOfLogits) {
  TinyCheckpoint checkpoint;
  checkpoint.make(3);
  TemporaryFolder folder;
  checkpoint.write(folder.path());
  OnStandIn device(folder.path(), Dtype::f32);
  const auto tokens = random_tokens(37, checkpoint.vocab);
  KvCache whole = device.cache(37);
  const ForwardResult want = device.run(tokens, whole, {.attention = plain_attention, .logits_rows = 37, .has_bits = true});
  for (const int64_t chunk : {1, 10, 36, 37, 100}) {
    for (const int64_t rows : {0, 1, 12, 37}) {
      KvCache cache = device.cache(40);
      std::vector<int> told;
      const ForwardResult got = device.run(
          tokens, cache, {.attention = plain_attention, .logits_rows = rows, .has_bits = true, .chunk_tokens = chunk, .progress = [&](int done, int) {
                            told.push_back(done);
                          }});
      EXPECT_NEAR(got.bits, want.bits, 1e-4) << chunk;
      EXPECT_EQ(told.size(), static_cast<size_t>((37 + chunk - 1) / chunk * 2 + 1));
      ASSERT_EQ(got.logits.view.dim(0), rows);
      for (int64_t row = 0; row < rows; ++row)
        for (int64_t i = 0; i < checkpoint.vocab; ++i)
          ASSERT_NEAR(got.logits.view.at<float>(row, i), want.logits.view.at<float>(37 - rows + row, i), 1e-4f) << chunk << " " << rows;
    }
  }
}

// bf16: operands, q, k, v and the cache are bf16, as the model on the CPU keeps them; attention by the CPU's own kernels.
TEST(DeviceForward, Bf16IsNearF32) {
  TinyCheckpoint checkpoint;
  checkpoint.make(4);
  TemporaryFolder folder;
  checkpoint.write(folder.path());
  OnStandIn exact(folder.path(), Dtype::f32), rounded(folder.path(), Dtype::bf16);
  const auto tokens = random_tokens(64, checkpoint.vocab);
  KvCache exact_cache = exact.cache(64), rounded_cache = rounded.cache(64);
  const ForwardOptions options{.attention = relabelled_attention, .logits_rows = 64, .has_bits = true};
  const ForwardResult want = exact.run(tokens, exact_cache, options), got = rounded.run(tokens, rounded_cache, options);
  double difference = 0, size = 0;
  for (int64_t i = 0; i < want.logits.view.numel(); ++i) {
    const double a = static_cast<double>(got.logits.view.data<float>()[i]), b = static_cast<double>(want.logits.view.data<float>()[i]);
    difference += (a - b) * (a - b);
    size += b * b;
  }
  EXPECT_LT(std::sqrt(difference / size), 2e-2) << "2^-9 a rounding, some twenty in a row";
  EXPECT_GT(difference, 0);
  EXPECT_EQ(rounded_cache.dtype(), Dtype::bf16);
  // The same bits again.
  KvCache again_cache = rounded.cache(64);
  const ForwardResult again = rounded.run(tokens, again_cache, options);
  for (int64_t i = 0; i < want.logits.view.numel(); ++i) ASSERT_EQ(again.logits.view.data<float>()[i], got.logits.view.data<float>()[i]);
  EXPECT_EQ(again.bits, got.bits);
}

// A folder with config.json alone; the CPU and the device draw the same model.
TEST(DeviceForward, RandomWeightsAreTheSameEverywhere) {
  TinyCheckpoint checkpoint;
  checkpoint.architecture = "Qwen2ForCausalLM";
  TemporaryFolder folder;
  TemporaryFolder::write(folder.path() + "/config.json", checkpoint.config());
  Context context;
  const Model model = Model::load(folder.path(), context, {.random_weights = 7});
  OnStandIn device(folder.path(), Dtype::f32, 7), other(folder.path(), Dtype::f32, 8);
  const auto tokens = random_tokens(20, checkpoint.vocab);
  const auto cache = model.make_cache(20, context);
  const ForwardOptions options{.attention = plain_attention, .logits_rows = 20};
  const ForwardResult want = model.forward(tokens, *cache, options, context);
  KvCache device_cache = device.cache(20), other_cache = other.cache(20);
  const ForwardResult got = device.run(tokens, device_cache, options), differs = other.run(tokens, other_cache, options);
  expect_near(got.logits.view, want.logits.view, 1e-6f, "logits");
  EXPECT_FALSE(std::equal(differs.logits.view.data<float>(), differs.logits.view.data<float>() + 1000, got.logits.view.data<float>()));
  const std::vector<float> ones(24, 1.0f);
  EXPECT_TRUE(std::equal(ones.begin(), ones.end(), static_cast<const float*>(device.weights.final_norm.view.raw())));
  EXPECT_EQ(*device.weights.layers[1].qkv.bias_or_null(), 0.0f);
}

// The shape that comes with the project, for --random-weights.
TEST(DeviceForward, TheShapeOfLlamaIsRead) {
  const ModelConfig config = read_config("models/llama-3.1-8b-shape");
  const WeightSource source("models/llama-3.1-8b-shape", config, 1);
  EXPECT_EQ(config.num_layers, 32);
  EXPECT_EQ(config.heads_q * config.head_dim, config.hidden_size);
  EXPECT_EQ(config.heads_kv, 8);
  EXPECT_EQ(config.rope.kind, RopeScaling::Kind::llama3);
  int64_t weights = source.numel(kEmbeddingName) + source.numel(kFinalNormName) + source.numel("lm_head.weight");
  for (int layer = 0; layer < config.num_layers; ++layer) {
    const LayerNames names = names_of_layer(config, layer);
    weights += source.numel(names.attention_norm) + source.numel(names.mlp_norm);
    for (const LinearNames* linear : {&names.qkv, &names.output, &names.gate, &names.up, &names.down}) {
      for (const std::string& part : linear->parts) weights += source.numel(part + ".weight");
    }
  }
  EXPECT_EQ(weights, 8'030'261'248) << "the published count";
}

// A call that is cancelled, or whose attention fails, leaves the cache as it was and gives its memory back.
TEST(DeviceForward, FailsWhole) {
  TinyCheckpoint checkpoint;
  checkpoint.make(5);
  TemporaryFolder folder;
  checkpoint.write(folder.path());
  OnStandIn device(folder.path(), Dtype::f32);
  const auto tokens = random_tokens(9, checkpoint.vocab);
  const auto counting = std::make_shared<CountingMemory>(host_memory());
  std::stop_source stop;
  device.context.memory = counting;
  device.context.cancel = stop.get_token();
  KvCache cache = device.cache(20);
  const size_t before = counting->bytes();
  EXPECT_THROW(device.run(tokens, cache, {.attention = [](const LayerAttention&, Context&) { fail(Error::Kind::unsupported, "no"); }}), Error);
  const auto stops = [&](const LayerAttention& layer, Context& context) {
    plain_attention(layer, context);
    if (layer.layer == 1) stop.request_stop();
  };
  try {
    device.run(tokens, cache, {.attention = stops});
    ADD_FAILURE() << "went on";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), Error::Kind::cancelled);
  }
  EXPECT_EQ(cache.length(), 0);
  EXPECT_EQ(counting->bytes(), before);
}

// Where no GPU can be used the model says so, and why, before it reads a file.
TEST(DeviceForward, IsRefusedWithoutAGpu) {
  const std::string reason = why_no_queues({Device::Type::cuda, 0});
  if (reason.empty()) GTEST_SKIP() << "there is a GPU";
  TinyCheckpoint checkpoint;
  checkpoint.make(6);
  TemporaryFolder folder;
  checkpoint.write(folder.path());
  Context context = testing::stand_in_context();
  try {
    Model::load(folder.path(), context);
    ADD_FAILURE() << "loaded";
  } catch (const Error& error) {
    EXPECT_TRUE(error.kind() == Error::Kind::unsupported || error.kind() == Error::Kind::device);
    EXPECT_NE(std::string(error.what()).find(reason), std::string::npos) << error.what();
  }
  Context host;
  const Model model = Model::load(folder.path(), host);
  EXPECT_NE(error_of([&] { model.make_cache(4, context); }).find("the context is on cuda:0, the model on cpu"), std::string::npos);
  KvCache cache(2, 2, 4, 8, host_memory(), Dtype::f32, context.device);
  const std::vector<int32_t> tokens = {1};
  EXPECT_NE(error_of([&] { model.forward(tokens, cache, {}, host); }).find("the cache on cuda:0"), std::string::npos);
  const Tensor rows(host_memory(), Dtype::f32, {1, 2, 1, 8});
  EXPECT_NE(error_of([&] { cache.write(0, 0, rows.view, rows.view); }).find("device: KvCache::write"), std::string::npos);
}

}  // namespace
}  // namespace tilewise::infer::cuda
