// SPDX-License-Identifier: Apache-2.0
#include "tilewise/study/model_source.h"

#include <algorithm>
#include <cmath>

#include "tilewise/cache/contiguous.h"
#include "tilewise/study/row_meter.h"
#include "tilewise/study/trial.h"

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

/// Leaves a forward pass that has taken too long.
struct TooSlow {};

}  // namespace

void ModelSource::check(const CompareRequest& request) const {
  using tilewise::check;
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

InputFigures ModelSource::input() const {
  InputFigures input;
  input.num_layers = config_.num_layers;
  input.heads_q = config_.heads_q;
  input.heads_kv = config_.heads_kv;
  input.head_dim = config_.head_dim;
  input.length = input.length_k = static_cast<int64_t>(request_.texts.front().tokens.size());
  for (const NeedlePrompt& needle : request_.needles) {
    if (std::find(input.needle_lengths.begin(), input.needle_lengths.end(), needle.length) == input.needle_lengths.end())
      input.needle_lengths.push_back(needle.length);
  }
  return input;
}

double ModelSource::work(Step step, const std::string& name) const {
  const double weights = static_cast<double>(config_.num_layers) *
                         (static_cast<double>(config_.hidden_size) * config_.head_dim * (2 * config_.heads_q + 2 * config_.heads_kv) +
                          3.0 * config_.hidden_size * config_.intermediate_size);
  const auto linear = [&](double length) { return 2 * weights * length; };
  const auto attention = [&](double length) { return 2.0 * config_.num_layers * config_.heads_q * config_.head_dim * length * length; };
  const double length = static_cast<double>(request_.texts.front().tokens.size()), texts = static_cast<double>(request_.texts.size());
  const bool is_dense = name == "dense";
  const double extra = is_dense ? 1 : extra_share(name);
  switch (step) {
    case Step::dense: return texts * (linear(length) + attention(length));
    case Step::row: return texts * (linear(length) + (1 + extra) * attention(length)) + (request_.has_maps ? .7 * attention(length) : 0);
    case Step::attempt: return linear(length) + extra * attention(length);
    case Step::needles: break;
  }
  double needles = 0;
  for (const NeedlePrompt& needle : request_.needles) {
    const double size = static_cast<double>(needle.length);
    needles += linear(size) + extra * attention(size);
  }
  return needles;
}

void ModelSource::tell_text(size_t text, size_t of, int layer) {
  progress_.part("text " + std::to_string(text + 1) + "/" + std::to_string(of) + ", layer " + std::to_string(layer + 1) + "/" +
                     std::to_string(config_.num_layers),
                 (static_cast<double>(text) + static_cast<double>(layer) / std::max(1, config_.num_layers)) / static_cast<double>(of));
}

void ModelSource::run_dense(DenseFigures& dense) {
  const auto counting = std::make_shared<CountingMemory>(outer_.memory);
  Context own = outer_;
  own.memory = counting;
  DensePlans plans;
  double attend_ms = 0, model_ms = 0, bits_per_byte = 0;
  for (size_t i = 0; i < request_.texts.size(); ++i) {
    const auto attention = [&](const LayerAttention& layer, Context& context) {
      tell_text(i, request_.texts.size(), layer.layer);
      Problem problem = infer::problem_of(layer, 0);
      problem.layer = 0;
      const Plan& plan = plans.of(problem, context);
      if (request_.has_tune && i == 0 && layer.layer == 0) {
        const Stopwatch apart;
        rates_ = measure_rates(problem, outer_);
        dense_cost_ms_ = config_.num_layers * rates_.ms(attend_work(plan));
        model_ms -= apart.ms();
      }
      const Stopwatch watch;
      dense.backend = backend_name(attend(problem, plan, layer.out, {}, context));
      attend_ms += watch.ms();
    };
    const Pass pass = read_text(request_.texts[i], attention, own);
    model_ms += pass.total_ms;
    bits_per_byte += pass.bits_per_byte;
    dense_bits_.push_back(pass.bits_per_byte);
  }
  const double texts = static_cast<double>(request_.texts.size());
  dense.attend_ms = attend_ms / texts;
  dense.model_ms = model_ms / texts;
  dense.bits_per_byte = bits_per_byte / texts;
  dense.peak_bytes = counting->peak_bytes();
}

void ModelSource::fill_row(MethodFigures& row, size_t number, const Planner& planner) {
  const auto counting = std::make_shared<CountingMemory>(outer_.memory);
  Context own = outer_;
  own.memory = counting;
  RowMeter meter(planner, config_.num_layers, config_.heads_q, outer_);
  std::optional<HeadMaps> maps;
  if (map_shape_) maps.emplace(*map_shape_, input());
  double model_ms = 0;
  row.bits_per_byte = 0;
  row.max_extra_bits = -INFINITY;
  for (size_t i = 0; i < request_.texts.size(); ++i) {
    const auto beside_dense = [&](const LayerAttention& layer, Context& context) {
      tell_text(i, request_.texts.size(), layer.layer);
      const Plan plan = meter.run(infer::problem_of(layer, request_.seed), layer.out, context, 1, i == 0 && maps ? &*maps : nullptr);
      const Stopwatch watch;
      if (request_.on_plan) request_.on_plan(number, row.name, i, layer.layer, plan);
      meter.add_apart(watch.ms());
    };
    const Pass pass = read_text(request_.texts[i], beside_dense, own);
    model_ms += pass.total_ms;
    row.bits_per_byte += pass.bits_per_byte;
    row.max_extra_bits = std::max(row.max_extra_bits, pass.bits_per_byte - dense_bits_[i]);
    row.texts.push_back({request_.texts[i].name, pass.bits_per_byte, dense_bits_[i]});
  }
  const double texts = static_cast<double>(request_.texts.size());
  row.bits_per_byte /= texts;
  row.model_ms = (model_ms - meter.apart_ms()) / texts;
  row.peak_bytes = counting->peak_bytes();
  meter.write(row, texts);
  if (maps) maps->write(row);
}

Attempt ModelSource::attempt(const Planner& planner, double most_ms) {
  Context own = outer_;
  Trial trial(rates_, most_ms);
  const auto attention = [&](const LayerAttention& layer, Context& context) {
    tell_text(0, 1, layer.layer);
    if (!trial.run(planner, infer::problem_of(layer, request_.seed), layer.out, {}, context)) throw TooSlow();
  };
  Attempt result;
  try {
    result.excess = read_text(request_.texts.front(), attention, own).bits_per_byte - dense_bits_.front();
  } catch (const TooSlow&) {
    result.excess = kNoFigure;  // not known before the last layer
  }
  trial.write(result);
  return result;
}

ModelSource::Pass ModelSource::read_text(const CompareText& text, const AttentionFunction& attention, Context& context) const {
  const auto cache = model_.make_cache(static_cast<int64_t>(text.tokens.size()), context);
  ForwardOptions options;
  options.attention = attention;
  options.has_bits = true;
  const Stopwatch watch;
  const ForwardResult result = model_.forward(text.tokens, *cache, options, context);
  return {watch.ms(), result.bits / static_cast<double>(result.predictions)};
}

NeedleFigures ModelSource::ask_needles(const Planner& planner) {
  Context own = outer_;
  NeedleFigures figures;
  const size_t count = request_.needles.size();
  for (size_t i = 0; i < count; ++i) {
    const NeedlePrompt& needle = request_.needles[i];
    const auto attention = [&](const LayerAttention& layer, Context& context) {
      progress_.part("needle " + std::to_string(i + 1) + "/" + std::to_string(count) + ", layer " + std::to_string(layer.layer + 1) + "/" +
                         std::to_string(config_.num_layers),
                     (static_cast<double>(i) + static_cast<double>(layer.layer) / std::max(1, config_.num_layers)) / static_cast<double>(count));
      const Problem problem = infer::problem_of(layer, request_.seed);
      attend(problem, planner(problem, context).plan, layer.out, {}, context);
    };
    const bool is_right = answers(needle, attention, own);
    const auto same = [&](const NeedleCell& cell) { return cell.length == needle.length && cell.depth == needle.depth; };
    auto cell = std::find_if(figures.cells.begin(), figures.cells.end(), same);
    if (cell == figures.cells.end()) cell = figures.cells.insert(cell, {needle.length, needle.depth, 0, 0});
    cell->of += 1;
    cell->correct += is_right ? 1 : 0;
    figures.of += 1;
    figures.correct += is_right ? 1 : 0;
  }
  std::sort(figures.cells.begin(), figures.cells.end(),
            [](const NeedleCell& a, const NeedleCell& b) { return a.length != b.length ? a.length < b.length : a.depth < b.depth; });
  return figures;
}

bool ModelSource::answers(const NeedlePrompt& needle, const AttentionFunction& attention, Context& context) const {
  const std::vector<int32_t> prompt = bytes_of(needle.prompt), answer = bytes_of(needle.answer);
  const int64_t more = static_cast<int64_t>(answer.size()) - 1;
  const auto cache = model_.make_cache(static_cast<int64_t>(prompt.size()) + more, context);
  ForwardOptions options;
  options.attention = attention;
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
