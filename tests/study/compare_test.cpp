// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "tilewise/study/compare.h"

#include <gtest/gtest.h>

#include "tests/study/tiny_model.h"
#include "tilewise/base/error.h"
#include "tilewise/machine/cpu/context.h"

namespace tilewise::study {
namespace {

constexpr int64_t kInit = 5, kLocal = 23, kTile = 32;

CompareText drawn_text(const std::string& name, uint64_t seed, size_t length) {
  CompareText text{name, {}};
  // Few letters, so that a key comes again and attention has something to find.
  for (size_t i = 0; i < length; ++i) text.tokens.push_back(static_cast<int32_t>('a' + splitmix64(seed * 7919 + i) % 11));
  return text;
}

MethodChoice a_shape() { return {"a_shape", {{"init", kInit}, {"local", kLocal}, {"tile", kTile}}}; }
bool a_shape_reads(int, int, int64_t q, int64_t k) { return k <= q && (q - k < kLocal || k < kInit); }
bool all_read(int, int, int64_t, int64_t) { return true; }

class CompareTest : public ::testing::Test {
 protected:
  CompareTest() {
    tiny_.save(folder_.path());
    context_ = cpu_context(2);
    model_.emplace(Model::load(folder_.path(), context_));
  }
  std::string error(const CompareRequest& request, Error::Kind kind) {
    try {
      compare(*model_, request, context_);
    } catch (const Error& thrown) {
      EXPECT_EQ(thrown.kind(), kind) << thrown.what();
      return thrown.what();
    }
    ADD_FAILURE() << "no error";
    return "";
  }

  TemporaryFolder folder_;
  TinyModel tiny_;
  Context context_;
  std::optional<Model> model_;
};

TEST_F(CompareTest, FiguresEqualPlainLoops) {
  CompareRequest request;
  request.methods = {{"dense", {}}, a_shape()};
  request.texts = {drawn_text("one", 1, 150), drawn_text("two", 2, 150)};
  const Comparison comparison = compare(*model_, request, context_);
  ASSERT_EQ(comparison.methods.size(), 1u) << "dense is not a row of its own";
  const MethodFigures& row = comparison.methods[0];
  ASSERT_FALSE(row.is_refused()) << row.refused;

  double dense_bits = 0, bits = 0, extra = -INFINITY;
  std::vector<TinyModel::Head> heads(TinyModel::kLayers * TinyModel::kHeadsQ);
  for (const CompareText& text : request.texts) {
    const auto dense = tiny_.forward(text.tokens, all_read);
    const auto sparse = tiny_.forward(text.tokens, a_shape_reads);
    dense_bits += dense.bits_per_byte / 2;
    bits += sparse.bits_per_byte / 2;
    extra = std::max(extra, sparse.bits_per_byte - dense.bits_per_byte);
    for (size_t i = 0; i < heads.size(); ++i) {
      heads[i].recall += sparse.heads[i].recall / 2;
      heads[i].error_square += sparse.heads[i].error_square;
      heads[i].dense_square += sparse.heads[i].dense_square;
    }
  }
  EXPECT_NEAR(comparison.dense.bits_per_byte, dense_bits, 2e-5);
  EXPECT_NEAR(row.bits_per_byte, bits, 2e-5);
  EXPECT_NEAR(row.max_extra_bits, extra, 4e-5);
  ASSERT_EQ(row.texts.size(), 2u);
  EXPECT_NEAR(row.texts[0].bits_per_byte + row.texts[1].bits_per_byte, 2 * row.bits_per_byte, 1e-9);

  ASSERT_EQ(row.heads.size(), heads.size());
  double recall = 0, error = 0;
  for (size_t i = 0; i < heads.size(); ++i) {
    EXPECT_EQ(row.heads[i].layer, static_cast<int>(i) / TinyModel::kHeadsQ);
    EXPECT_EQ(row.heads[i].head, static_cast<int>(i) % TinyModel::kHeadsQ);
    EXPECT_NEAR(row.heads[i].recall, heads[i].recall, 2e-5);
    EXPECT_NEAR(row.heads[i].output_error, std::sqrt(heads[i].error_square / heads[i].dense_square), 2e-5);
    recall += heads[i].recall / static_cast<double>(heads.size());
  }
  for (size_t layer = 0; layer < TinyModel::kLayers; ++layer) {
    double of_error = 0, of_dense = 0;
    for (size_t h = 0; h < TinyModel::kHeadsQ; ++h) {
      of_error += heads[layer * TinyModel::kHeadsQ + h].error_square;
      of_dense += heads[layer * TinyModel::kHeadsQ + h].dense_square;
    }
    error += std::sqrt(of_error / of_dense) / TinyModel::kLayers;
  }
  EXPECT_NEAR(row.recall, recall, 2e-5);
  EXPECT_NEAR(row.output_error, error, 2e-5);
  EXPECT_GT(row.output_error, .01) << "the test must see something";

  int64_t read = 0, allowed = 0;
  for (int64_t q = 0; q < 150; ++q) {
    allowed += q + 1;
    for (int64_t k = 0; k <= q; ++k) read += a_shape_reads(0, 0, q, k) ? 1 : 0;
  }
  EXPECT_NEAR(row.allowed_density, static_cast<double>(read) / static_cast<double>(allowed), 1e-12);
  EXPECT_GT(row.density, 0);
  EXPECT_LE(row.density, 1);
}

TEST_F(CompareTest, ARecipesHeadsHaveFiguresOfTheirOwnMethod) {
  CompareRequest request;
  request.texts = {drawn_text("one", 1, 150)};
  request.recipe = uniform_recipe(model_->config(), {"dense", {}});
  request.recipe->layers = {{0, {{{1, 2}, {"a_shape", a_shape().options}}}}, {1, {{{0, 1, 2, 3}, {"a_shape", a_shape().options}}}}};
  request.recipe_name = "mixed.json";
  const Comparison comparison = compare(*model_, request, context_);
  ASSERT_EQ(comparison.methods.size(), 1u);
  const MethodFigures& row = comparison.methods[0];
  ASSERT_FALSE(row.is_refused()) << row.refused;
  EXPECT_EQ(row.label, "recipe mixed.json");
  const auto is_dense = [](int layer, int head) { return layer == 0 && (head == 0 || head == 3); };
  const auto expected = tiny_.forward(
      request.texts[0].tokens, [&](int layer, int head, int64_t q, int64_t k) { return is_dense(layer, head) || a_shape_reads(layer, head, q, k); });
  EXPECT_NEAR(row.bits_per_byte, expected.bits_per_byte, 2e-5);
  for (size_t i = 0; i < expected.heads.size(); ++i) {
    SCOPED_TRACE(i);
    const HeadFigures& head = row.heads[i];
    EXPECT_NEAR(head.recall, expected.heads[i].recall, 2e-5);
    EXPECT_NEAR(head.output_error, std::sqrt(expected.heads[i].error_square / expected.heads[i].dense_square), 2e-5);
    if (is_dense(head.layer, head.head)) {
      EXPECT_EQ(head.density, 1);
      EXPECT_EQ(head.allowed_density, 1);
    } else {
      EXPECT_LT(head.allowed_density, .5);
    }
  }
}

TEST_F(CompareTest, EveryPlanOfARowIsShown) {
  CompareRequest request;
  request.methods = {a_shape(), {"random", {}}};
  request.texts = {drawn_text("one", 1, 60), drawn_text("two", 2, 60)};
  std::vector<std::string> seen;
  request.on_plan = [&](size_t row, const std::string& name, size_t text, int layer, const Plan& plan) {
    EXPECT_EQ(plan->seqlen_q, 60);
    seen.push_back(std::to_string(row) + name + std::to_string(text) + std::to_string(layer));
  };
  compare(*model_, request, context_);
  EXPECT_EQ(seen,
            (std::vector<std::string>{"0a_shape00", "0a_shape01", "0a_shape10", "0a_shape11", "1random00", "1random01", "1random10", "1random11"}));
}

TEST_F(CompareTest, TimesAndMemoryAddUp) {
  CompareRequest request;
  request.methods = {a_shape()};
  request.texts = {drawn_text("one", 1, 200)};
  const Comparison comparison = compare(*model_, request, context_);
  const MethodFigures& row = comparison.methods[0];
  EXPECT_DOUBLE_EQ(row.total_ms, row.plan_ms + row.attend_ms);
  EXPECT_DOUBLE_EQ(row.speedup, row.dense_attend_ms / row.total_ms);
  EXPECT_GE(row.model_ms, row.total_ms);
  EXPECT_GE(comparison.dense.model_ms, comparison.dense.attend_ms);
  EXPECT_GT(row.peak_bytes, 200u * TinyModel::kHeadsKv * TinyModel::kHeadDim * 2 * TinyModel::kLayers * 4) << "at least the cache";
  EXPECT_EQ(row.backend.rfind("cpu/", 0), 0u) << row.backend;
  EXPECT_EQ(row.options.at("tile"), OptionValue(kTile));
  EXPECT_EQ(row.label, "a_shape init=5,local=23,tile=32");
}

TEST_F(CompareTest, TwoRunsAndAnyThreadsGiveEqualFigures) {
  CompareRequest request;
  request.methods = {a_shape(), {"random", {{"density", .3}, {"tile", int64_t{16}}}}};
  request.texts = {drawn_text("one", 3, 170)};
  const Comparison two = compare(*model_, request, context_);
  Context serial = cpu_context(1);
  const Comparison one = compare(*model_, request, serial);
  for (size_t i = 0; i < 2; ++i) {
    EXPECT_EQ(one.methods[i].bits_per_byte, two.methods[i].bits_per_byte);
    EXPECT_EQ(one.methods[i].recall, two.methods[i].recall);
    EXPECT_EQ(one.methods[i].output_error, two.methods[i].output_error);
    EXPECT_EQ(one.methods[i].density, two.methods[i].density);
  }
}

TEST_F(CompareTest, NeedlesAreRightIffGreedyDecodingGivesThem) {
  const std::vector<int32_t> prompt = drawn_text("", 5, 90).tokens;
  std::vector<int32_t> all = prompt;
  std::string answer;
  for (int i = 0; i < 7; ++i) {  // greedy, dense: a prompt that the method reads whole gives the same
    const auto logits = tiny_.forward(all, all_read).logits.back();
    all.push_back(static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin()));
    answer += static_cast<char>(all.back());
  }
  const std::string text(prompt.begin(), prompt.end());
  CompareRequest request;
  request.methods = {{"a_shape", {{"local", int64_t{1000}}}}, a_shape()};
  request.texts = {drawn_text("one", 1, 60)};
  request.needles = {{90, .5, text, answer}, {90, .25, text, answer}};
  request.needles[1].answer.back() = static_cast<char>(request.needles[1].answer.back() ^ 1);
  const Comparison comparison = compare(*model_, request, context_);
  EXPECT_EQ(comparison.input.needle_lengths, std::vector<int64_t>{90});
  for (const auto& needle : {comparison.dense.needle, comparison.methods[0].needle}) {
    ASSERT_TRUE(needle.has_value());
    EXPECT_EQ(needle->correct, 1);
    EXPECT_EQ(needle->of, 2);
    ASSERT_EQ(needle->cells.size(), 2u);
    EXPECT_EQ(needle->cells[0].depth, .25);
    EXPECT_EQ(needle->cells[0].correct, 0);
    EXPECT_EQ(needle->cells[1].correct, 1);
  }
  // The sparse reading: the prompt by the method's rule, the answer's bytes densely.
  const int64_t n = static_cast<int64_t>(prompt.size());
  const auto logits =
      tiny_.forward(all, [&](int layer, int head, int64_t q, int64_t k) { return q >= n || a_shape_reads(layer, head, q, k); }).logits;
  bool is_right = true;
  for (size_t i = 0; i < 7; ++i) {
    const auto& row = logits[prompt.size() - 1 + i];
    is_right &= std::max_element(row.begin(), row.end()) - row.begin() == static_cast<unsigned char>(answer[i]);
  }
  EXPECT_EQ(comparison.methods[1].needle->correct, is_right ? 1 : 0);
}

TEST_F(CompareTest, WhatAMethodCannotTakeIsSaidInItsRow) {
  CompareRequest request;
  request.methods = {a_shape(), {"random", {}}};
  request.texts = {drawn_text("one", 1, 100)};
  request.density = .4;
  const Comparison comparison = compare(*model_, request, context_);
  EXPECT_NE(comparison.methods[0].refused.find("density"), std::string::npos);
  EXPECT_TRUE(std::isnan(comparison.methods[0].bits_per_byte));
  EXPECT_TRUE(comparison.methods[0].heads.empty());
  EXPECT_FALSE(comparison.methods[1].is_refused());
  EXPECT_EQ(comparison.methods[1].options.at("density"), OptionValue(.4));
}

TEST_F(CompareTest, ProgressGoesUpAndCancelStops) {
  CompareRequest request;
  request.methods = {a_shape(), {"random", {}}};
  request.texts = {drawn_text("one", 1, 100)};
  double last = -1;
  int calls = 0;
  request.progress = [&](const CompareProgress& progress) {
    EXPECT_GE(progress.share, last);
    EXPECT_LE(progress.share, 1);
    last = progress.share;
    ++calls;
  };
  compare(*model_, request, context_);
  EXPECT_EQ(calls, 3 * TinyModel::kLayers);
  EXPECT_GT(last, .5);

  std::stop_source stop;
  context_.cancel = stop.get_token();
  request.progress = [&](const CompareProgress& progress) {
    if (progress.row != "dense") stop.request_stop();
  };
  error(request, Error::Kind::cancelled);
}

TEST_F(CompareTest, TuneChoosesOnTheFirstTextAndQuotesTheOthers) {
  CompareRequest request;
  request.methods = {{"a_shape", {{"init", int64_t{64}}, {"tile", int64_t{32}}}}, {"random", {{"tile", int64_t{16}}}}};
  request.texts = {drawn_text("one", 1, 200), drawn_text("two", 2, 200)};
  const std::vector<int32_t> prompt = drawn_text("", 5, 90).tokens;
  request.needles = {{90, .5, std::string(prompt.begin(), prompt.end()), "a"}};
  request.has_tune = true;
  request.max_bits = .5;
  double last = -1;
  request.progress = [&](const CompareProgress& progress) {
    EXPECT_GE(progress.share, last);
    EXPECT_LE(progress.share, 1);
    last = progress.share;
  };
  const Comparison comparison = compare(*model_, request, context_);
  ASSERT_TRUE(comparison.tune.has_value());
  EXPECT_EQ(comparison.tune->text, "one");
  ASSERT_EQ(comparison.tune->curves.size(), 2u);
  ASSERT_EQ(comparison.methods.size(), 2u);
  for (size_t i = 0; i < 2; ++i) {
    const TuneCurve& curve = comparison.tune->curves[i];
    const MethodFigures& row = comparison.methods[i];
    EXPECT_EQ(curve.name, row.name);
    if (row.is_refused()) continue;
    ASSERT_TRUE(curve.chosen.has_value());
    const TunePoint& chosen = curve.points[*curve.chosen];
    for (const auto& [name, value] : chosen.options) EXPECT_EQ(row.options.at(name), value);
    EXPECT_EQ(row.label, chosen.label);
    EXPECT_EQ(row.texts.size(), 2u);
    // The trial ran the same model over the same text.
    if (chosen.outcome != TunePoint::Outcome::slow) {  // given up on a machine under load
      EXPECT_DOUBLE_EQ(chosen.excess, row.texts[0].bits_per_byte - row.texts[0].dense_bits_per_byte);
    }
    EXPECT_NEAR(chosen.density, row.density, .1);
    EXPECT_EQ(row.needle.has_value(), !row.is_baseline && row.density < 1 && row.max_extra_bits <= request.max_bits);
  }
  request.density = .5;
  error(request, Error::Kind::value);
}

TEST_F(CompareTest, ASettingThatHoldsOnTheTextThatChoseItAloneSaysSo) {
  CompareRequest request;
  request.methods = {a_shape()};  // all options given: nothing is left to tune
  request.texts = {drawn_text("one", 1, 200), drawn_text("two", 2, 200)};
  const auto extra = [](const TextFigures& text) { return text.bits_per_byte - text.dense_bits_per_byte; };
  const std::vector<TextFigures> texts = compare(*model_, request, context_).methods[0].texts;
  if (extra(texts[0]) > extra(texts[1])) std::swap(request.texts[0], request.texts[1]);
  request.has_tune = true;
  request.max_bits = (extra(texts[0]) + extra(texts[1])) / 2;
  ASSERT_GE(request.max_bits, 0);
  const auto has_note = [&] {
    const std::vector<std::string> notes = compare(*model_, request, context_).methods[0].notes;
    return std::any_of(notes.begin(), notes.end(), [](const std::string& note) { return note.find("not on every text") != std::string::npos; });
  };
  EXPECT_TRUE(has_note());
  request.max_bits = 10;
  EXPECT_FALSE(has_note());
}

TEST_F(CompareTest, RefusesBadRequestsBeforeAnyWork) {
  CompareRequest request;
  bool has_started = false;
  request.progress = [&](const CompareProgress&) { has_started = true; };
  error(request, Error::Kind::value);
  request.texts = {drawn_text("one", 1, 1)};
  EXPECT_NE(error(request, Error::Kind::value).find("at least 2"), std::string::npos);
  request.texts = {drawn_text("one", 1, 20), drawn_text("two", 1, 21)};
  EXPECT_NE(error(request, Error::Kind::value).find("two 21"), std::string::npos);
  request.texts.pop_back();
  request.methods = {{"no_such_method", {}}};
  error(request, Error::Kind::value);
  request.methods = {{"a_shape", {{"no_such_option", int64_t{1}}}}};
  error(request, Error::Kind::value);
  request.methods = {{"a_shape", {{"tile", int64_t{100000}}}}};
  error(request, Error::Kind::value);
  request.methods = {};
  request.max_bits = -1;
  error(request, Error::Kind::value);
  request.max_bits = NAN;
  error(request, Error::Kind::value);
  EXPECT_FALSE(has_started);
  request.max_bits = .005;
  request.texts[0].tokens[3] = 256;
  error(request, Error::Kind::value);
}

}  // namespace
}  // namespace tilewise::study
