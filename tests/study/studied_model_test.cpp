// SPDX-License-Identifier: Apache-2.0
// A comparison of a model that is not ours: layers with windows, sinks and without attention, bits of several kinds, or none.
#include "tilewise/study/studied_model.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "tilewise/base/hash.h"
#include "tilewise/machine/cpu/context.h"
#include "tilewise/study/comparer.h"

namespace tilewise::study {
namespace {

using Reads = InputFigures::Reads;

constexpr int64_t kLength = 90, kHeadDim = 16, kWindow = 20;
constexpr int kHeads = 2;
constexpr int64_t kInit = 16, kLocal = 16;
constexpr float kSink = .7f;

Tensor drawn(const Shape& shape, uint64_t seed) {
  Tensor tensor(host_memory(), Dtype::f32, shape);
  for (int64_t i = 0; i < shape.numel(); ++i)
    tensor.view.data<float>()[i] = static_cast<float>(splitmix64(seed + static_cast<uint64_t>(i)) % 1000) / 250 - 2;
  return tensor;
}

/// Four layers of the same q, k, v: 0 is causal, 1 has a window, 2 has no attention, 3 is causal with a sink. Its bits are the sum of what comes out of 3.
class FakeModel : public StudiedModel {
 public:
  explicit FakeModel(Reads reads) { input_.reads = reads; }

  InputFigures input() const override {
    InputFigures input = input_;
    input.model = "fake";
    input.num_layers = 4;
    input.heads_q = kHeads;
    input.heads_kv = 1;
    input.head_dim = kHeadDim;
    input.length = input.length_k = kLength;
    input.mask = "windows";
    return input;
  }
  bool counts_memory() const override { return false; }
  size_t num_texts() const override { return 2; }
  std::string text_name(size_t text) const override { return text == 0 ? "one" : "two"; }
  double linear_work(double length) const override { return length; }

  StudiedPass read(size_t text, const StudiedAttention& attention, Context& context) override {
    if (fails) throw std::runtime_error("the model fails");
    double sum = 0;
    for (const int layer : {0, 1, 3}) {
      StudiedLayer call;
      call.problem.q = q.view;
      call.problem.k = k.view;
      call.problem.v = v.view;
      call.problem.layer = layer;
      if (layer == 1) {
        call.problem.mask.bands[0].left = kWindow - 1;
        call.is_dense = true;
      }
      if (layer == 3) call.sink_logit = sink.view;
      call.out = out.view;
      attention(call, context);
      for (int64_t i = 0; i < out.view.numel(); ++i) sum += std::abs(static_cast<double>(out.view.data<float>()[i]));
    }
    StudiedPass pass;
    pass.total_ms = 5;
    if (input_.reads == Reads::text || input_.reads == Reads::bytes) pass.bits_per_byte = sum * static_cast<double>(text + 1);
    if (input_.reads == Reads::text || input_.reads == Reads::tokens) pass.bits_per_token = 3 * sum * static_cast<double>(text + 1);
    return pass;
  }
  bool answers(size_t needle, const StudiedAttention& attention, Context& context) override {
    read(0, attention, context);
    return needle == 0;
  }

  Tensor q = drawn({1, kHeads, kLength, kHeadDim}, 1), k = drawn({1, 1, kLength, kHeadDim}, 100000), v = drawn({1, 1, kLength, kHeadDim}, 200000);
  Tensor out = Tensor(host_memory(), Dtype::f32, {1, kHeads, kLength, kHeadDim});
  Tensor sink = sinks();
  bool fails = false;

 private:
  static Tensor sinks() {
    Tensor tensor(host_memory(), Dtype::f32, {kHeads});
    for (int head = 0; head < kHeads; ++head) tensor.view.data<float>()[head] = kSink;
    return tensor;
  }
  InputFigures input_;
};

CompareRequest request_of_a_shape() {
  CompareRequest request;
  request.methods = {{"a_shape", {{"init", kInit}, {"local", kLocal}, {"tile", int64_t{16}}}}};
  return request;
}

/// Recall and error of one head in doubles: what a_shape keeps of causal attention with a sink in the denominator.
HeadFigures plain(const FakeModel& model, int head, double sink) {
  double recall = 0, error_square = 0, dense_square = 0;
  for (int64_t i = 0; i < kLength; ++i) {
    double all = sink, kept = sink;
    std::vector<double> dense(kHeadDim), sparse(kHeadDim);
    for (int64_t j = 0; j <= i; ++j) {
      double dot = 0;
      for (int64_t d = 0; d < kHeadDim; ++d)
        dot += static_cast<double>(model.q.view.at<float>(0, head, i, d)) * static_cast<double>(model.k.view.at<float>(0, 0, j, d));
      const double weight = std::exp(dot / std::sqrt(static_cast<double>(kHeadDim)));
      const bool is_read = j < kInit || i - j < kLocal;
      all += weight;
      kept += is_read ? weight : 0;
      for (int64_t d = 0; d < kHeadDim; ++d) {
        const double value = weight * static_cast<double>(model.v.view.at<float>(0, 0, j, d));
        dense[static_cast<size_t>(d)] += value;
        sparse[static_cast<size_t>(d)] += is_read ? value : 0;
      }
    }
    recall += kept / all / kLength;
    for (size_t d = 0; d < dense.size(); ++d) {
      error_square += std::pow(sparse[d] / kept - dense[d] / all, 2);
      dense_square += std::pow(dense[d] / all, 2);
    }
  }
  HeadFigures figures;
  figures.recall = recall;
  figures.output_error = std::sqrt(error_square / dense_square);
  return figures;
}

TEST(StudiedModel, WindowsSinksAndLayersWithoutAttention) {
  FakeModel model(Reads::text);
  Context context = cpu_context(2);
  CompareRequest request = request_of_a_shape();
  request.has_maps = true;
  request.needles = {{100, .5, "", ""}, {100, .5, "", ""}};
  const Comparison comparison = compare_model(model, request, context);
  ASSERT_EQ(comparison.methods.size(), 1u);
  const MethodFigures& row = comparison.methods[0];
  ASSERT_EQ(row.refused, "");
  ASSERT_EQ(row.heads.size(), 6u) << "the layer without attention has no heads";
  double errors = 0;
  for (const HeadFigures& head : row.heads) {
    SCOPED_TRACE(testing::Message() << "layer " << head.layer << ", head " << head.head);
    EXPECT_NE(head.layer, 2);
    EXPECT_TRUE(head.map.has_value());
    if (head.layer == 1) {
      EXPECT_EQ(head.density, 1);
      EXPECT_LT(head.output_error, 1e-6);
      EXPECT_TRUE(std::all_of(head.map.missed.begin(), head.map.missed.end(), [](uint8_t byte) { return byte == 0; }));
      continue;
    }
    const HeadFigures exact = plain(model, head.head, head.layer == 3 ? std::exp(static_cast<double>(kSink)) : 0);
    EXPECT_LT(head.density, 1);
    EXPECT_NEAR(head.recall, exact.recall, 1e-5);
    EXPECT_NEAR(head.output_error, exact.output_error, 1e-5);
    errors += head.output_error;
  }
  EXPECT_NEAR(row.output_error, errors / kHeads / 3, .01) << "the mean of the three layers that have attention";
  EXPECT_EQ(row.notes, std::vector<std::string>{"layers with a sliding window read their window densely"});
  EXPECT_TRUE(comparison.map && comparison.map->is_triangle);
  EXPECT_EQ(comparison.dense.peak_bytes, 0u);
  ASSERT_TRUE(row.needle && comparison.dense.needle);
  EXPECT_EQ(row.needle->correct, 1);
  EXPECT_EQ(row.needle->of, 2);
}

TEST(StudiedModel, BitsAreBoundedPerByteElsePerToken) {
  Context context = cpu_context(1);
  for (const Reads reads : {Reads::bytes, Reads::text, Reads::tokens}) {
    FakeModel model(reads);
    const Comparison comparison = compare_model(model, request_of_a_shape(), context);
    const MethodFigures& row = comparison.methods[0];
    EXPECT_EQ(std::isnan(row.bits_per_byte), reads == Reads::tokens);
    EXPECT_EQ(std::isnan(row.bits_per_token), reads == Reads::bytes);
    ASSERT_EQ(row.texts.size(), 2u);
    const TextFigures &one = row.texts[0], &two = row.texts[1];
    EXPECT_EQ(one.name, "one");
    const double first = reads == Reads::tokens ? one.bits_per_token - one.dense_bits_per_token : one.bits_per_byte - one.dense_bits_per_byte;
    const double second = reads == Reads::tokens ? two.bits_per_token - two.dense_bits_per_token : two.bits_per_byte - two.dense_bits_per_byte;
    EXPECT_EQ(row.max_extra_bits, std::max(first, second));
    EXPECT_EQ(comparison.excess(row), row.max_extra_bits);
    EXPECT_NEAR(second, 2 * first, 1e-9 * std::abs(first));
  }
}

TEST(StudiedModel, WithoutBitsTheErrorIsTunedAndBounded) {
  FakeModel model(Reads::other);
  Context context = cpu_context(1);
  CompareRequest request;
  request.methods = {{"random", {{"tile", int64_t{16}}}}};
  request.has_tune = true;
  request.max_error = .4;
  const Comparison comparison = compare_model(model, request, context);
  const MethodFigures& row = comparison.methods[0];
  ASSERT_EQ(row.refused, "");
  EXPECT_TRUE(std::isnan(row.max_extra_bits) && std::isnan(row.bits_per_byte));
  EXPECT_EQ(comparison.excess(row), row.output_error);
  EXPECT_EQ(comparison.tune->text, "one");
  const TuneCurve& curve = comparison.tune->curves.at(0);
  ASSERT_TRUE(curve.chosen.has_value());
  EXPECT_NEAR(curve.points[*curve.chosen].excess, row.output_error, 1e-6) << "tried and run, the error is the same";
  EXPECT_EQ(curve.is_within, row.output_error <= .4);
}

TEST(StudiedModel, WhatTheModelThrowsEndsTheComparison) {
  FakeModel model(Reads::text);
  model.fails = true;
  Context context = cpu_context(1);
  EXPECT_THROW(compare_model(model, request_of_a_shape(), context), std::runtime_error);
}

}  // namespace
}  // namespace tilewise::study
