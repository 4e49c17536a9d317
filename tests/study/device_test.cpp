// SPDX-License-Identifier: Apache-2.0
// What `compare --device cuda` does around kernels and products: on a stand-in for a GPU (stand_in/gpu.h), against the same on the CPU.
#include <gtest/gtest.h>

#include <stop_token>

#include "tests/study/stand_in/gpu.h"
#include "tests/study/tiny_model.h"
#include "tilewise/base/error.h"
#include "tilewise/cache/contiguous.h"
#include "tilewise/infer/generate.h"
#include "tilewise/machine/device.h"
#include "tilewise/study/compare.h"

namespace tilewise::study {
namespace {

CompareText drawn_text(const std::string& name, uint64_t seed, size_t length) {
  CompareText text{name, {}};
  for (size_t i = 0; i < length; ++i) text.tokens.push_back(static_cast<int32_t>('a' + splitmix64(seed * 7919 + i) % 11));
  return text;
}

void expect_equal_figures(const MethodFigures& got, const MethodFigures& want) {
  ASSERT_FALSE(got.is_refused()) << got.refused;
  EXPECT_EQ(got.label, want.label);
  EXPECT_EQ(got.density, want.density);
  EXPECT_EQ(got.allowed_density, want.allowed_density);
  EXPECT_NEAR(got.recall, want.recall, 1e-5);
  EXPECT_NEAR(got.output_error, want.output_error, 1e-5);
  ASSERT_EQ(got.heads.size(), want.heads.size());
  for (size_t i = 0; i < got.heads.size(); ++i) {
    EXPECT_EQ(got.heads[i].density, want.heads[i].density);
    EXPECT_NEAR(got.heads[i].recall, want.heads[i].recall, 1e-5);
  }
  EXPECT_EQ(got.backend, "stand-in");
  EXPECT_GT(got.plan_ms, 0);
  EXPECT_GT(got.attend_ms, 0);
  EXPECT_GT(got.peak_bytes, 0u);
}

class OnDevice : public ::testing::Test {
 protected:
  OnDevice() : gpu_(machine::on_gpu(host_, 0)) { tiny_.save(folder_.path()); }

  TemporaryFolder folder_;
  TinyModel tiny_;
  Context host_, gpu_;
};

TEST_F(OnDevice, ModelsAreComparedAsOnTheCpu) {
  CompareRequest request;
  request.methods = {{"mean_pool", {{"tile", int64_t{16}}, {"density", .4}}}, {"a_shape", {}}};
  request.texts = {drawn_text("one", 1, 150), drawn_text("two", 2, 150)};
  request.has_maps = true;
  const std::string prompt = "one two three", answer = "abc";
  request.needles = {NeedlePrompt{.length = static_cast<int64_t>(prompt.size()), .depth = .5, .prompt = prompt, .answer = answer}};
  size_t plans = 0;
  request.on_plan = [&](size_t, const std::string&, size_t, int, const Plan& plan) {
    // The host may read it.
    EXPECT_EQ(plan->by_query.whole.begin.device(), Device{});
    plans += plan->by_query.masked.count.has_value() && plan->by_query.masked.count.at<int32_t>(0, 0, 0) >= 0 ? 1 : 0;
  };
  const Model model = Model::load(folder_.path(), gpu_);
  EXPECT_EQ(model.device(), gpu_.device);
  testing::traffic() = {};
  const Comparison got = compare(model, request, gpu_);
  EXPECT_EQ(plans, 4u) << "two texts of two layers";
  EXPECT_GE(testing::traffic().waits, 2 * 2 * 6) << "each stopwatch of a layer waits twice";
  EXPECT_GE(testing::traffic().copies_to_host, 2 * 2 * 4);

  request.has_maps = false;
  request.on_plan = {};
  const Model on_host = Model::load(folder_.path(), host_);
  const Comparison want = compare(on_host, request, host_);
  EXPECT_NEAR(got.dense.bits_per_byte, want.dense.bits_per_byte, 2e-5);
  EXPECT_EQ(got.dense.backend, "stand-in");
  EXPECT_GT(got.dense.peak_bytes, 0u);
  EXPECT_EQ(got.input.dtype, "f32");
  ASSERT_EQ(got.methods.size(), 2u);
  expect_equal_figures(got.methods[0], want.methods[0]);
  EXPECT_NEAR(got.methods[0].bits_per_byte, want.methods[0].bits_per_byte, 2e-5);
  EXPECT_NEAR(got.methods[0].max_extra_bits, want.methods[0].max_extra_bits, 4e-5);
  ASSERT_TRUE(got.methods[0].needle.has_value());
  EXPECT_EQ(got.methods[0].needle->correct, want.methods[0].needle->correct);
  EXPECT_FALSE(got.map.has_value());
  ASSERT_EQ(got.methods[0].notes.size(), 1u);
  EXPECT_NE(got.methods[0].notes[0].find("no maps of heads"), std::string::npos);
  // A method without a search on the GPU is refused in its row, with the device in the reason; nothing runs in its place.
  EXPECT_TRUE(got.methods[1].is_refused());
  EXPECT_NE(got.methods[1].refused.find("cuda:0"), std::string::npos) << got.methods[1].refused;
  EXPECT_NE(got.methods[1].refused.find("--device cpu runs it"), std::string::npos) << got.methods[1].refused;
}

TEST_F(OnDevice, TensorsAreComparedAsOnTheCpu) {
  QkvTensors tensors;
  tensors.name = "drawn";
  const auto drawn = [](const Shape& shape, uint64_t seed) {
    Tensor tensor(host_memory(), Dtype::f32, shape);
    for (int64_t i = 0; i < shape.numel(); ++i)
      tensor.view.data<float>()[i] = static_cast<float>(splitmix64(seed << 32 | static_cast<uint64_t>(i)) >> 40) / 8388608.0f - 1.0f;
    return tensor;
  };
  tensors.q = drawn({1, 4, 100, 16}, 1);
  tensors.k = drawn({1, 2, 120, 16}, 2);
  tensors.v = drawn({1, 2, 120, 16}, 3);
  tensors.mask_text = "causal";
  CompareRequest request;
  request.methods = {{"mean_pool", {{"tile", int64_t{16}}, {"density", .3}}}};
  const QkvTensors there = copy_to_device(tensors, gpu_);
  EXPECT_EQ(there.k.view.device(), gpu_.device);
  const Comparison got = compare(there, request, gpu_), want = compare(tensors, request, host_);
  expect_equal_figures(got.methods[0], want.methods[0]);
  EXPECT_EQ(got.dense.backend, "stand-in");
  request.has_tune = true;
  try {
    compare(there, request, gpu_);
    ADD_FAILURE() << "tuned";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), Error::Kind::unsupported);
    EXPECT_NE(std::string(error.what()).find("tuning counts CPU time"), std::string::npos);
  }
}

// Spans go along.
TEST_F(OnDevice, SpansAreCopied) {
  QkvTensors tensors;
  tensors.name = "spans";
  tensors.q = Tensor(host_memory(), Dtype::bf16, {1, 1, 5, 8});
  tensors.k = Tensor(host_memory(), Dtype::bf16, {1, 1, 5, 8});
  tensors.v = Tensor(host_memory(), Dtype::bf16, {1, 1, 5, 8});
  tensors.spans = Tensor(host_memory(), Dtype::i32, {1, 1, 5, 4});
  for (int64_t i = 0; i < 20; ++i) tensors.spans.view.data<int32_t>()[i] = static_cast<int32_t>(i % 4 == 1 ? 3 : 0);
  tensors.mask = Mask{};
  tensors.mask.spans = tensors.spans.view;
  const QkvTensors there = copy_to_device(tensors, gpu_);
  EXPECT_EQ(there.mask.spans.device(), gpu_.device);
  EXPECT_EQ(there.mask.spans.raw(), there.spans.view.raw());
  const machine::OnHost back(there.mask.spans, gpu_);
  for (int64_t i = 0; i < 20; ++i) EXPECT_EQ(back.view.data<int32_t>()[i], i % 4 == 1 ? 3 : 0);
}

TEST_F(OnDevice, TextsContinueAsOnTheCpu) {
  const Model model = Model::load(folder_.path(), gpu_), on_host = Model::load(folder_.path(), host_);
  const std::vector<int32_t> prompt = drawn_text("prompt", 3, 40).tokens;
  GenerateOptions options;
  options.max_tokens = 6;  // this GPU has no decode: new tokens go through forward
  const auto cache = model.make_cache(60, gpu_), host_cache = on_host.make_cache(60, host_);
  EXPECT_EQ(generate(model, prompt, *cache, options, gpu_).tokens, generate(on_host, prompt, *host_cache, options, host_).tokens);
}

// A stop is heard between the steps of a layer, and the error is the caller's own.
TEST_F(OnDevice, IsCancelled) {
  std::stop_source stop;
  gpu_.cancel = stop.get_token();
  const Model model = Model::load(folder_.path(), gpu_);
  CompareRequest request;
  request.methods = {{"mean_pool", {}}};
  request.texts = {drawn_text("one", 1, 100)};
  request.progress = [&](const CompareProgress& progress) {
    if (progress.row != "dense") stop.request_stop();
  };
  try {
    compare(model, request, gpu_);
    ADD_FAILURE() << "went on";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), Error::Kind::cancelled);
  }
}

TEST_F(OnDevice, HostCodeCannotReachItsMemory) {
  const Tensor tensor = machine::make_tensor(gpu_, Dtype::f32, {4});
  EXPECT_DEATH(tensor.view.data<float>()[0] = 1, "");
}

}  // namespace
}  // namespace tilewise::study
