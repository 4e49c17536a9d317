// SPDX-License-Identifier: Apache-2.0
#include "tilewise/study/infer_model.h"

#include <algorithm>

#include "tilewise/cache/contiguous.h"
#include "tilewise/study/clock.h"
#include "tilewise/study/comparer.h"
#include "tilewise/study/model_source.h"

namespace tilewise::study {
namespace {

int argmax(const TensorView& logits, int64_t row) {
  const float* values = &logits.at<const float>(row, 0);
  return static_cast<int>(std::max_element(values, values + logits.dim(1)) - values);
}

std::vector<int32_t> bytes_of(const std::string& text) {
  std::vector<int32_t> tokens;
  for (const char c : text) tokens.push_back(static_cast<unsigned char>(c));
  return tokens;
}

AttentionFunction as_infer(const StudiedAttention& attention) {
  return
      [&attention](const LayerAttention& layer, Context& context) { attention({.problem = infer::problem_of(layer, 0), .out = layer.out}, context); };
}

}  // namespace

InferModel::InferModel(const Model& model, const CompareRequest& request) : model_(model), config_(model.config()), request_(request) {
  const auto& texts = request.texts;
  check(!texts.empty(), Error::Kind::value, "compare: there is no text; give at least one");
  for (const CompareText& text : texts) {
    check(text.tokens.size() >= 2, Error::Kind::value, "compare: ", text.name, " has ", text.tokens.size(),
          " tokens; bits per byte need at least 2, a first token and one to predict");
    check(text.tokens.size() == texts.front().tokens.size(), Error::Kind::value, "compare: texts differ in length: ", texts.front().name, " has ",
          texts.front().tokens.size(), " tokens, ", text.name, " ", text.tokens.size(), "; cut them to one length");
  }
  if (request.recipe) check_recipe(*request.recipe, config_);
}

InputFigures InferModel::input() const {
  InputFigures input;
  input.num_layers = config_.num_layers;
  input.heads_q = config_.heads_q;
  input.heads_kv = config_.heads_kv;
  input.head_dim = config_.head_dim;
  input.dtype = std::string(name(model_.dtype()));
  input.length = input.length_k = static_cast<int64_t>(request_.texts.front().tokens.size());
  return input;
}

double InferModel::linear_work(double length) const {
  const double weights = static_cast<double>(config_.num_layers) *
                         (static_cast<double>(config_.hidden_size) * config_.head_dim * (2 * config_.heads_q + 2 * config_.heads_kv) +
                          3.0 * config_.hidden_size * config_.intermediate_size);
  return 2 * weights * length;
}

StudiedPass InferModel::read(size_t text, const StudiedAttention& attention, Context& context) {
  const std::vector<int32_t>& tokens = request_.texts[text].tokens;
  const auto cache = model_.make_cache(static_cast<int64_t>(tokens.size()), context);
  ForwardOptions options;
  options.attention = as_infer(attention);
  options.has_bits = true;
  const Stopwatch watch;
  const ForwardResult result = model_.forward(tokens, *cache, options, context);
  return {watch.ms(), result.bits / static_cast<double>(result.predictions), kNoFigure};
}

bool InferModel::answers(size_t number, const StudiedAttention& attention, Context& context) {
  const NeedlePrompt& needle = request_.needles[number];
  const std::vector<int32_t> prompt = bytes_of(needle.prompt), answer = bytes_of(needle.answer);
  const int64_t more = static_cast<int64_t>(answer.size()) - 1;
  const auto cache = model_.make_cache(static_cast<int64_t>(prompt.size()) + more, context);
  ForwardOptions options;
  options.attention = as_infer(attention);
  const ForwardResult first = model_.forward(prompt, *cache, options, context);
  if (argmax(first.logits.view, first.logits.view.dim(0) - 1) != answer.front()) return false;
  if (more == 0) return true;
  ForwardOptions dense;
  dense.logits_rows = more;
  const ForwardResult rest = model_.forward(std::span(answer).first(static_cast<size_t>(more)), *cache, dense, context);
  for (int64_t i = 0; i < more; ++i) {
    if (argmax(rest.logits.view, i) != answer[static_cast<size_t>(i) + 1]) return false;
  }
  return true;
}

}  // namespace tilewise::study

TILEWISE_BEGIN_PUBLIC

Comparison compare(const Model& model, const CompareRequest& request, Context& context) {
  study::InferModel studied(model, request);
  return study::compare_model(studied, request, context);
}

TILEWISE_END_PUBLIC
