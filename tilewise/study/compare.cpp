// SPDX-License-Identifier: Apache-2.0
#include "tilewise/study/compare.h"

#include <algorithm>
#include <cmath>

#include "tilewise/attend/attend.h"
#include "tilewise/cache/contiguous.h"
#include "tilewise/methods/registry.h"
#include "tilewise/study/clock.h"
#include "tilewise/study/layer_sums.h"
#include "tilewise/study/progress.h"

namespace tilewise::study {
namespace {

/// What a row reads in one layer: a method's plan, or a recipe's with one plan per head for the figures.
using Planner = std::function<RecipePlan(const Problem& problem, Context& context)>;

std::string backend_name(const Ran& ran) { return ran.target.empty() ? ran.backend : ran.backend + "/" + ran.target; }

Planner planner_of(std::string name, OptionValues options) {
  return [name = std::move(name), options = std::move(options)](const Problem& problem, Context& context) {
    return RecipePlan{plan_with(name, problem, options, context).plan, {}};
  };
}

/// Dense plans by lengths: they depend on nothing else, so all layers of a run share one.
class DensePlans {
 public:
  const Plan& of(const LayerAttention& layer, Context& context) {
    const int64_t seqlen_q = layer.q.dim(2), seqlen_k = layer.k.dim(2);
    if (plan_ == nullptr || plan_->seqlen_q != seqlen_q || plan_->seqlen_k != seqlen_k) {
      plan_ = plan_with("dense", infer::problem_of(layer, 0), {}, context).plan;
    }
    return plan_;
  }

 private:
  Plan plan_;
};

int argmax(const TensorView& logits, int64_t row) {
  const float* values = &logits.at<const float>(row, 0);
  return static_cast<int>(std::max_element(values, values + logits.dim(1)) - values);
}

std::vector<int32_t> bytes_of(const std::string& text) {
  std::vector<int32_t> tokens;
  for (const char c : text) tokens.push_back(static_cast<unsigned char>(c));
  return tokens;
}

/// Everything that the rows of one comparison share.
class Comparer {
 public:
  Comparer(const Model& model, const CompareRequest& request, Context& context)
      : model_(model), config_(model.config()), request_(request), outer_(context), progress_(model.config(), request) {}

  Comparison run() {
    check_request();
    comparison_.max_bits = request_.max_bits;
    comparison_.input.num_layers = config_.num_layers;
    comparison_.input.heads_q = config_.heads_q;
    comparison_.input.heads_kv = config_.heads_kv;
    comparison_.input.head_dim = config_.head_dim;
    comparison_.input.length = static_cast<int64_t>(request_.texts.front().tokens.size());
    comparison_.input.needle_length = request_.needles.empty() ? 0 : request_.needles.front().length;
    run_dense();
    for (const MethodChoice& choice : request_.methods) {
      if (choice.name != "dense") run_row(choice);
    }
    if (request_.recipe) run_recipe();
    return std::move(comparison_);
  }

 private:
  void check_request() const {
    const auto& texts = request_.texts;
    check(!texts.empty(), Error::Kind::value, "compare: there is no text; give at least one");
    for (const CompareText& text : texts) {
      check(text.tokens.size() >= 2, Error::Kind::value, "compare: ", text.name, " has ", text.tokens.size(),
            " tokens; bits per byte need at least 2, a first token and one to predict");
      check(text.tokens.size() == texts.front().tokens.size(), Error::Kind::value, "compare: texts differ in length: ", texts.front().name, " has ",
            texts.front().tokens.size(), " tokens, ", text.name, " ", text.tokens.size(), "; cut them to one length");
    }
    for (const MethodChoice& choice : request_.methods) check_options(choice.name, choice.options);
    if (request_.recipe) check_recipe(*request_.recipe, config_);
    check(std::isfinite(request_.max_bits) && request_.max_bits >= 0, Error::Kind::value, "compare: max_bits is ", request_.max_bits,
          "; takes a finite number from 0");
  }

  void run_dense() {
    DenseFigures& dense = comparison_.dense;
    progress_.begin("dense", 0);
    const auto counting = std::make_shared<CountingMemory>(outer_.memory);
    Context own = outer_;
    own.memory = counting;
    DensePlans plans;
    double attend_ms = 0;
    const auto attend = [&](const LayerAttention& layer, Context& context) {
      progress_.layer(layer.layer);
      const Plan& plan = plans.of(layer, context);
      const Stopwatch watch;
      dense.backend = backend_name(attend_forward({.q = layer.q, .k = layer.k, .v = layer.v, .out = layer.out, .plan = plan}, context));
      attend_ms += watch.ms();
    };
    double model_ms = 0, bits_per_byte = 0;
    for (size_t i = 0; i < request_.texts.size(); ++i) {
      progress_.text(i);
      const Pass pass = read_text(request_.texts[i], attend, own);
      model_ms += pass.total_ms;
      bits_per_byte += pass.bits_per_byte;
      dense_bits_.push_back(pass.bits_per_byte);
    }
    const double texts = static_cast<double>(request_.texts.size());
    dense.attend_ms = attend_ms / texts;
    dense.model_ms = model_ms / texts;
    dense.bits_per_byte = bits_per_byte / texts;
    dense.peak_bytes = counting->peak_bytes();
    if (!request_.needles.empty()) dense.needle = ask_needles(attend, own);
  }

  void run_row(const MethodChoice& choice) {
    MethodFigures row;
    row.name = choice.name;
    OptionValues options = choice.options;
    const MethodInfo& info = method_info(choice.name);
    if (request_.density && info.has_option("density")) options["density"] = *request_.density;
    for (const OptionInfo& option : info.options) {
      const auto given = options.find(option.name);
      row.options[option.name] = given == options.end() ? option.default_value : given->second;
    }
    row.label = label_of(choice.name, options);
    row.is_baseline = info.source == "baseline";
    if (choice.name == "oracle") row.notes.push_back("looks at the true attention to choose: a yardstick, not a method to use");
    if (choice.name == "random") row.notes.push_back("tiles drawn by chance: a floor for every method of this density");
    if (request_.density && !info.has_option("density")) {
      row.refused = "has no option density, so --density cannot set its budget";
      progress_.skip_row(comparison_.methods.size());
    } else {
      measure_row(row, planner_of(choice.name, options));
    }
    comparison_.methods.push_back(std::move(row));
  }

  void run_recipe() {
    MethodFigures row;
    row.name = "recipe";
    row.label = request_.recipe_name.empty() ? "recipe" : "recipe " + request_.recipe_name;
    const Recipe& recipe = *request_.recipe;
    if (recipe.config_hash.empty()) row.notes.push_back("the recipe does not name the model that it was made for");
    if (request_.density) row.notes.push_back("--density does not reach into a recipe: its methods keep their options");
    measure_row(row, [&recipe](const Problem& problem, Context& context) { return plan_recipe(recipe, problem, context); });
    comparison_.methods.push_back(std::move(row));
  }

  /// Fills the row, or the reason why there is nothing to fill in.
  void measure_row(MethodFigures& row, const Planner& planner) {
    progress_.begin(row.label, comparison_.methods.size() + 1);
    MethodFigures filled = row;
    try {
      fill_row(filled, planner);
      row = std::move(filled);
    } catch (const Error& error) {
      switch (error.kind()) {
        case Error::Kind::cancelled:
        case Error::Kind::io:
        case Error::Kind::cuda: throw;
        default: row.refused = error.what();
      }
      progress_.skip_row(comparison_.methods.size());
    }
  }

  /// The row's own run. A row that fails half way is refused as a whole.
  void fill_row(MethodFigures& row, const Planner& planner) {
    const auto counting = std::make_shared<CountingMemory>(outer_.memory);
    Context own = outer_;
    own.memory = counting;
    LayerSums sums(config_.num_layers, config_.heads_q);
    DensePlans dense_plans;
    double plan_ms = 0, attend_ms = 0, dense_ms = 0, apart_ms = 0;
    size_t text_index = 0;

    const auto beside_dense = [&](const LayerAttention& layer, Context& context) {
      progress_.layer(layer.layer);
      const Stopwatch whole;
      double counted_ms = 0;
      // The dense pass and the figures take their memory past the row's counter: they are not part of the method.
      const Tensor dense_out(outer_.memory, Dtype::f32, layer.out.shape());
      const Shape rows{layer.q.dim(0), layer.q.dim(1), layer.q.dim(2)};
      const Tensor dense_lse(outer_.memory, Dtype::f32, rows), lse(outer_.memory, Dtype::f32, rows);
      const Plan dense_plan = dense_plans.of(layer, outer_);
      const auto run_dense = [&] {
        const Stopwatch watch;
        attend_forward({.q = layer.q, .k = layer.k, .v = layer.v, .out = dense_out.view, .lse = dense_lse.view, .plan = dense_plan}, outer_);
        dense_ms += watch.ms();
      };
      RecipePlan planned;
      const auto run_sparse = [&] {
        const Stopwatch planning;
        planned = planner(infer::problem_of(layer, request_.seed), context);
        const double plan_now = planning.ms();
        const Stopwatch attending;
        const Ran ran = attend_forward({.q = layer.q, .k = layer.k, .v = layer.v, .out = layer.out, .lse = lse.view, .plan = planned.plan}, context);
        const double attend_now = attending.ms();
        row.backend = backend_name(ran);
        plan_ms += plan_now;
        attend_ms += attend_now;
        counted_ms += plan_now + attend_now;
      };
      // Who runs second finds k and v in the cache; taking turns shares that out.
      if (layer.layer % 2 == 0) run_dense();
      run_sparse();
      if (layer.layer % 2 != 0) run_dense();
      if (planned.head_plans.empty()) {
        sums.add_plan(layer.layer, planned.plan, dense_plan);
      } else {
        sums.add_plans(layer.layer, planned.head_plans, dense_plan);
      }
      sums.add_outputs(layer.layer, layer.out, lse.view, dense_out.view, dense_lse.view, outer_);
      if (request_.on_plan) request_.on_plan(comparison_.methods.size(), row.name, text_index, layer.layer, planned.plan);
      apart_ms += whole.ms() - counted_ms;
    };

    double model_ms = 0;
    row.bits_per_byte = 0;
    row.max_extra_bits = -INFINITY;
    for (size_t i = 0; i < request_.texts.size(); ++i) {
      progress_.text(i);
      text_index = i;
      const Pass pass = read_text(request_.texts[i], beside_dense, own);
      model_ms += pass.total_ms;
      row.bits_per_byte += pass.bits_per_byte;
      row.max_extra_bits = std::max(row.max_extra_bits, pass.bits_per_byte - dense_bits_[i]);
      row.texts.push_back({request_.texts[i].name, pass.bits_per_byte, dense_bits_[i]});
    }
    const double texts = static_cast<double>(request_.texts.size());
    row.bits_per_byte /= texts;
    row.plan_ms = plan_ms / texts;
    row.attend_ms = attend_ms / texts;
    row.total_ms = row.plan_ms + row.attend_ms;
    row.dense_attend_ms = dense_ms / texts;
    row.speedup = row.dense_attend_ms / row.total_ms;
    row.model_ms = (model_ms - apart_ms) / texts;
    row.peak_bytes = counting->peak_bytes();
    sums.write(row);

    if (!request_.needles.empty()) {
      const auto alone = [&](const LayerAttention& layer, Context& context) {
        progress_.layer(layer.layer);
        const RecipePlan planned = planner(infer::problem_of(layer, request_.seed), context);
        attend_forward({.q = layer.q, .k = layer.k, .v = layer.v, .out = layer.out, .plan = planned.plan}, context);
      };
      row.needle = ask_needles(alone, own);
    }
  }

  struct Pass {
    double total_ms = 0, bits_per_byte = 0;
  };

  Pass read_text(const CompareText& text, const AttentionFunction& attention, Context& context) const {
    const auto cache = model_.make_cache(static_cast<int64_t>(text.tokens.size()), context);
    ForwardOptions options;
    options.attention = attention;
    options.has_bits = true;
    const Stopwatch watch;
    const ForwardResult result = model_.forward(text.tokens, *cache, options, context);
    return {watch.ms(), result.bits / static_cast<double>(result.predictions)};
  }

  NeedleFigures ask_needles(const AttentionFunction& attention, Context& context) {
    NeedleFigures figures;
    for (size_t i = 0; i < request_.needles.size(); ++i) {
      const NeedlePrompt& needle = request_.needles[i];
      progress_.needle(i);
      const bool is_right = answers(needle, attention, context);
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

  bool answers(const NeedlePrompt& needle, const AttentionFunction& attention, Context& context) const {
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

  static std::string label_of(const std::string& name, const OptionValues& options) {
    const std::string text = format_options(name, options);
    return text.empty() ? name : name + " " + text;
  }

  const Model& model_;
  const ModelConfig& config_;
  const CompareRequest& request_;
  Context& outer_;
  ProgressMeter progress_;
  Comparison comparison_;
  std::vector<double> dense_bits_;  // of each text
};

}  // namespace
}  // namespace tilewise::study

TILEWISE_BEGIN_PUBLIC

Comparison compare(const Model& model, const CompareRequest& request, Context& context) { return study::Comparer(model, request, context).run(); }

TILEWISE_END_PUBLIC
