// SPDX-License-Identifier: Apache-2.0
#include "tilewise/study/model_source.h"

#include <algorithm>
#include <cmath>

#include "tilewise/study/row_meter.h"
#include "tilewise/study/trial.h"

namespace tilewise::study {
namespace {

const Planner& dense_planner() {
  static const Planner planner = planner_of("dense", {});
  return planner;
}

/// Leaves a forward pass that has taken too long.
struct TooSlow {};

}  // namespace

InputFigures ModelSource::input() const {
  InputFigures input = model_.input();
  for (const NeedlePrompt& needle : request_.needles) {
    if (std::find(input.needle_lengths.begin(), input.needle_lengths.end(), needle.length) == input.needle_lengths.end())
      input.needle_lengths.push_back(needle.length);
  }
  return input;
}

double ModelSource::work(Step step, const std::string& name) const {
  const InputFigures input = model_.input();
  const auto linear = [&](double length) { return model_.linear_work(length); };
  const auto attention = [&](double length) { return 2.0 * num_layers_ * input.heads_q * input.head_dim * length * length; };
  const double length = static_cast<double>(input.length), texts = static_cast<double>(model_.num_texts());
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
  progress_.part(
      "text " + std::to_string(text + 1) + "/" + std::to_string(of) + ", layer " + std::to_string(layer + 1) + "/" + std::to_string(num_layers_),
      (static_cast<double>(text) + static_cast<double>(layer) / std::max(1, num_layers_)) / static_cast<double>(of));
}

StudiedLayer ModelSource::seeded(const StudiedLayer& layer) const {
  StudiedLayer result = layer;
  result.problem.seed = request_.seed;
  return result;
}

double ModelSource::bits_of(double bits_per_byte, double bits_per_token) const {
  return model_.input().reads == InputFigures::Reads::tokens ? bits_per_token : bits_per_byte;
}

void ModelSource::run_dense(DenseFigures& dense) {
  const auto counting = std::make_shared<CountingMemory>(outer_.memory);
  Context own = outer_;
  own.memory = counting;
  DensePlans plans;
  double attend_ms = 0, model_ms = 0, bits_per_byte = 0, bits_per_token = 0;
  const size_t count = model_.num_texts();
  for (size_t i = 0; i < count; ++i) {
    bool has_rates = !request_.has_tune || i > 0;
    const auto attention = [&](const StudiedLayer& layer, Context& context) {
      tell_text(i, count, layer.problem.layer);
      const Stopwatch apart;
      const Plan plan = plans.of(layer.problem, context);
      if (request_.has_tune && i == 0) {
        if (!has_rates) rates_ = measure_rates(layer.problem, outer_);
        has_rates = true;
        dense_cost_ms_ += rates_.ms(attend_work(plan));
      }
      model_ms -= apart.ms();
      const Stopwatch watch(context);
      dense.backend = backend_name(attend(layer.problem, plan, layer.out, {}, context, layer.sink_logit));
      attend_ms += watch.ms();
    };
    const StudiedPass pass = model_.read(i, attention, own);
    model_ms += pass.total_ms;
    bits_per_byte += pass.bits_per_byte;
    bits_per_token += pass.bits_per_token;
    dense_.push_back(pass);
  }
  const double texts = static_cast<double>(count);
  dense.attend_ms = attend_ms / texts;
  dense.model_ms = model_ms / texts;
  dense.bits_per_byte = bits_per_byte / texts;
  dense.bits_per_token = bits_per_token / texts;
  dense.peak_bytes = model_.counts_memory() ? counting->peak_bytes() : 0;
}

void ModelSource::fill_row(MethodFigures& row, size_t number, const Planner& planner) {
  const auto counting = std::make_shared<CountingMemory>(outer_.memory);
  Context own = outer_;
  own.memory = counting;
  const InputFigures figures = input();
  RowMeter meter(num_layers_, figures.heads_q, outer_);
  std::optional<HeadMaps> maps;
  if (map_shape_) maps.emplace(*map_shape_, figures);
  double model_ms = 0;
  row.bits_per_byte = row.bits_per_token = 0;
  row.max_extra_bits = figures.has_bits() ? -INFINITY : kNoFigure;
  bool has_dense_layers = false;
  const size_t count = model_.num_texts();
  for (size_t i = 0; i < count; ++i) {
    const auto beside_dense = [&](const StudiedLayer& layer, Context& context) {
      const int number_of_layer = layer.problem.layer;
      tell_text(i, count, number_of_layer);
      has_dense_layers = has_dense_layers || layer.is_dense;
      const Plan plan = meter.run(seeded(layer), layer.is_dense ? dense_planner() : planner, context, 1, i == 0 && maps ? &*maps : nullptr);
      const Stopwatch watch;
      if (request_.on_plan) request_.on_plan(number, row.name, i, number_of_layer, plan);
      meter.add_apart(watch.ms());
    };
    const StudiedPass pass = model_.read(i, beside_dense, own);
    model_ms += pass.total_ms;
    row.bits_per_byte += pass.bits_per_byte;
    row.bits_per_token += pass.bits_per_token;
    const double extra = bits_of(pass.bits_per_byte, pass.bits_per_token) - bits_of(dense_[i].bits_per_byte, dense_[i].bits_per_token);
    if (figures.has_bits()) row.max_extra_bits = std::max(row.max_extra_bits, extra);
    row.texts.push_back({model_.text_name(i), pass.bits_per_byte, dense_[i].bits_per_byte, pass.bits_per_token, dense_[i].bits_per_token});
  }
  const double texts = static_cast<double>(count);
  row.bits_per_byte /= texts;
  row.bits_per_token /= texts;
  row.model_ms = (model_ms - meter.apart_ms()) / texts;
  row.peak_bytes = model_.counts_memory() ? counting->peak_bytes() : 0;
  meter.write(row, texts);
  if (has_dense_layers) row.notes.push_back("layers with a sliding window read their window densely");
  if (maps) maps->write(row);
}

Attempt ModelSource::attempt(const Planner& planner, double most_ms) {
  Context own = outer_;
  Trial trial(rates_, most_ms);
  const InputFigures figures = input();
  LayerSums sums(num_layers_, figures.heads_q);
  DensePlans plans;
  const auto attention = [&](const StudiedLayer& layer, Context& context) {
    tell_text(0, 1, layer.problem.layer);
    const StudiedLayer here = seeded(layer);
    const Planner& chosen = layer.is_dense ? dense_planner() : planner;
    if (figures.has_bits()) {
      if (!trial.run(chosen, here, {}, context)) throw TooSlow();
      return;
    }
    // Without bits the bound holds the output error, so dense attention is computed, too: cost is counted, not timed.
    const Problem& problem = here.problem;
    const Shape rows{problem.q.dim(0), problem.q.dim(1), problem.q.dim(2)};
    const Tensor lse(outer_.memory, Dtype::f32, rows), dense_lse(outer_.memory, Dtype::f32, rows),
        dense_out(outer_.memory, layer.out.dtype(), layer.out.shape());
    if (!trial.run(chosen, here, lse.view, context)) throw TooSlow();
    const Plan dense = plans.of(problem, outer_);
    attend(problem, dense, dense_out.view, dense_lse.view, outer_, layer.sink_logit);
    sums.add_plan(problem.layer, trial.plan(), dense);
    sums.add_outputs(problem.layer, layer.out, lse.view, dense_out.view, dense_lse.view, outer_);
  };
  Attempt result;
  try {
    const StudiedPass pass = model_.read(0, attention, own);
    if (figures.has_bits()) {
      result.excess = bits_of(pass.bits_per_byte, pass.bits_per_token) - bits_of(dense_.front().bits_per_byte, dense_.front().bits_per_token);
    } else {
      MethodFigures of_layers;
      sums.write(of_layers);
      result.excess = of_layers.output_error;
    }
  } catch (const TooSlow&) {
    result.excess = kNoFigure;  // not known before the last layer
  }
  trial.write(result);
  return result;
}

NeedleFigures ModelSource::ask_needles(const Planner& planner) {
  Context own = outer_;
  NeedleFigures figures;
  const size_t count = request_.needles.size();
  for (size_t i = 0; i < count; ++i) {
    const NeedlePrompt& needle = request_.needles[i];
    const auto attention = [&](const StudiedLayer& layer, Context& context) {
      progress_.part("needle " + std::to_string(i + 1) + "/" + std::to_string(count) + ", layer " + std::to_string(layer.problem.layer + 1) + "/" +
                         std::to_string(num_layers_),
                     (static_cast<double>(i) + static_cast<double>(layer.problem.layer) / std::max(1, num_layers_)) / static_cast<double>(count));
      const Problem problem = seeded(layer).problem;
      const Plan plan = (layer.is_dense ? dense_planner() : planner)(problem, context).plan;
      attend(problem, plan, layer.out, {}, context, layer.sink_logit);
    };
    const bool is_right = model_.answers(i, attention, own);
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

}  // namespace tilewise::study
