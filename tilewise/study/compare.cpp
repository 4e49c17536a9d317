// SPDX-License-Identifier: Apache-2.0
#include "tilewise/study/comparer.h"

#include <algorithm>
#include <cmath>

#include "tilewise/methods/registry.h"
#include "tilewise/study/head_maps.h"
#include "tilewise/study/model_source.h"
#include "tilewise/study/tune.h"

namespace tilewise::study {
namespace {

std::string label_of(const std::string& name, const OptionValues& options) {
  const std::string text = format_options(name, options);
  return text.empty() ? name : name + " " + text;
}

/// Errors that say that a method does not take a problem; all others end the comparison.
bool is_refusal(const Error& error) {
  switch (error.kind()) {
    case Error::Kind::cancelled:
    case Error::Kind::io:
    case Error::Kind::cuda: return false;
    default: return true;
  }
}

/// Runs the rows of one comparison over a source.
class Comparer {
 public:
  Comparer(Source& source, const CompareRequest& request, ProgressMeter& progress) : source_(source), request_(request), progress_(progress) {}

  Comparison run() {
    check_request();
    comparison_.max_bits = request_.max_bits;
    comparison_.max_error = request_.max_error;
    plan_stages();
    progress_.begin(dense_stage_, "dense");
    source_.run_dense(comparison_.dense);
    comparison_.input = source_.input();  // a model may show its masks only as it runs
    if (request_.has_maps && !source_.is_on_gpu()) {
      const int64_t rows = static_cast<int64_t>(rows_.size()) + (request_.recipe ? 1 : 0);
      comparison_.map = choose_map_shape(comparison_.input, rows * comparison_.input.num_layers * comparison_.input.heads_q);
      if (comparison_.map) source_.set_map_shape(*comparison_.map);
    }
    if (!request_.needles.empty()) {
      progress_.begin(dense_stage_ + 1, "dense");
      comparison_.dense.needle = source_.ask_needles(planner_of("dense", {}));
    }
    if (request_.has_tune) comparison_.tune.emplace().text = source_.tune_text();
    for (const MethodChoice& choice : rows_) run_row(choice);
    if (request_.recipe) run_recipe();
    if (request_.has_tune && !request_.needles.empty()) ask_two_best();
    return std::move(comparison_);
  }

 private:
  /// Where the work of one row stands among the progress meter's stages. Not there: as many as there are stages.
  struct Stages {
    size_t first_attempt = 0, attempts = 0, row = 0, needles = 0;
  };

  void check_request() {
    source_.check(request_);
    check(!(request_.has_tune && source_.is_on_gpu()), Error::Kind::unsupported,
          "compare: tuning counts CPU time, which says nothing of a GPU; tune on the CPU and give the options that it finds");
    for (const MethodChoice& choice : request_.methods) check_options(choice.name, choice.options);
    check(std::isfinite(request_.max_bits) && request_.max_bits >= 0, Error::Kind::value, "compare: max_bits is ", request_.max_bits,
          "; takes a finite number from 0");
    check(std::isfinite(request_.max_error) && request_.max_error >= 0, Error::Kind::value, "compare: max_error is ", request_.max_error,
          "; takes a finite number from 0");
    check(!request_.density || (*request_.density >= 0 && *request_.density <= 1), Error::Kind::value, "compare: density is ",
          request_.density.value_or(0), ", takes 0 to 1");
    check(!(request_.has_tune && request_.density), Error::Kind::value, "compare: tuning looks for the density, and a density is given; take one");
    for (const MethodChoice& choice : request_.methods) {
      if (choice.name != "dense") rows_.push_back(choice);
    }
  }

  void plan_stages() {
    dense_stage_ = progress_.add(source_.work(Step::dense, "dense"));
    progress_.add(source_.work(Step::needles, "dense"));
    const auto add = [&](const std::string& name, int attempts) {
      Stages stages;
      stages.attempts = static_cast<size_t>(attempts);
      for (int i = 0; i < attempts; ++i) {
        const size_t stage = progress_.add(source_.work(Step::attempt, name));
        if (i == 0) stages.first_attempt = stage;
      }
      stages.row = progress_.add(source_.work(Step::row, name));
      if (!request_.has_tune) stages.needles = progress_.add(source_.work(Step::needles, name));
      stages_.push_back(stages);
    };
    for (const MethodChoice& choice : rows_) {
      add(choice.name, request_.has_tune ? expected_trials(method_info(choice.name), choice.options) : 0);
    }
    if (request_.recipe) add("recipe", 0);
    if (request_.has_tune && !request_.needles.empty()) {
      last_needles_ = progress_.add(source_.work(Step::needles, ""));
      progress_.add(source_.work(Step::needles, ""));
    }
  }

  const Stages& stages() const { return stages_[comparison_.methods.size()]; }

  void run_row(const MethodChoice& choice) {
    MethodFigures row;
    row.name = choice.name;
    OptionValues options = choice.options;
    const MethodInfo& info = method_info(choice.name);
    row.is_baseline = info.source == "baseline";
    if (request_.has_tune && !tune_row(info, options, row)) {
      finish(std::move(row), {});
      return;
    }
    if (request_.density && info.has_option("density")) options["density"] = *request_.density;
    for (const OptionInfo& option : info.options) {
      const auto given = options.find(option.name);
      row.options[option.name] = given == options.end() ? option.default_value : given->second;
    }
    row.label = label_of(choice.name, options);
    if (choice.name == "oracle") row.notes.push_back("looks at the true attention to choose: a yardstick, not a method to use");
    if (choice.name == "random") row.notes.push_back("tiles drawn by chance: a floor for every method of this density");
    if (request_.density && !info.has_option("density")) row.refused = "has no option density, so --density cannot set its budget";
    finish(std::move(row), planner_of(choice.name, options));
    MethodFigures& done = comparison_.methods.back();
    if (request_.has_tune && comparison_.tune->curves.back().is_within && comparison_.excess(done) > comparison_.bound())
      done.notes.push_back("holds the bound on the text that chose its setting, but not on every text");
  }

  void run_recipe() {
    MethodFigures row;
    row.name = "recipe";
    row.label = request_.recipe_name.empty() ? "recipe" : "recipe " + request_.recipe_name;
    const Recipe& recipe = *request_.recipe;
    if (recipe.config_hash.empty()) row.notes.push_back("the recipe does not name the model that it was made for");
    if (request_.density) row.notes.push_back("--density does not reach into a recipe: its methods keep their options");
    finish(std::move(row), [&recipe](const Problem& problem, Context& context) { return plan_recipe(recipe, problem, context); });
  }

  /// Runs the row, or finds the reason why there is nothing to fill in, and adds it. A row that fails half way is refused as a whole.
  void finish(MethodFigures row, const Planner& planner) {
    const Stages here = stages();
    if (!row.is_refused()) {
      MethodFigures filled = row;
      try {
        progress_.begin(here.row, row.label);
        if (request_.has_maps && source_.is_on_gpu()) filled.notes.push_back("no maps of heads: they are measured on the CPU");
        source_.fill_row(filled, comparison_.methods.size(), planner);
        if (!request_.needles.empty() && !request_.has_tune) {
          progress_.begin(here.needles, row.label);
          filled.needle = source_.ask_needles(planner);
        }
        row = std::move(filled);
      } catch (const Error& error) {
        if (!is_refusal(error)) throw;
        row.refused = error.what();
        if (source_.is_on_gpu() && error.kind() == Error::Kind::device) row.refused += "; the method plans on the CPU alone, --device cpu runs it";
      }
    }
    if (row.is_refused()) {
      progress_.drop(here.row);
      if (here.needles > 0) progress_.drop(here.needles);
    }
    comparison_.methods.push_back(std::move(row));
    planners_.push_back(planner);
  }

  /// Sets the options to the best setting. False: none can be run, and the row says why.
  bool tune_row(const MethodInfo& info, OptionValues& options, MethodFigures& row) {
    const Stages here = stages();
    size_t done = 0;
    const auto try_setting = [&](const OptionValues& setting, double most_ms, TunePoint& point) {
      // Trials beyond those that were expected are told as part of the last.
      progress_.begin(here.first_attempt + std::min(done, here.attempts - 1), "tuning: " + point.label);
      ++done;
      try {
        const Attempt attempt = source_.attempt(planner_of(info.name, setting), most_ms);
        point.density = attempt.density;
        point.excess = attempt.excess;
        point.cost_ms = attempt.cost_ms;
        point.plan_ms = attempt.plan_ms;
        point.attend_ms = attempt.attend_ms;
        point.outcome = attempt.is_stopped ? TunePoint::Outcome::slow : TunePoint::Outcome::over;
      } catch (const Error& error) {
        if (!is_refusal(error)) throw;
        point.outcome = TunePoint::Outcome::refused;
        point.refused = error.what();
      }
    };
    TuneRequest request;
    request.fixed = options;
    request.bound = comparison_.bound();
    // A method that takes longer than dense is of no use; a yardstick may.
    request.same_ms = kSameMs * comparison_.input.num_layers;
    if (!row.is_baseline) request.most_ms = kMostOfDense * source_.dense_cost_ms() + kSmallMs * comparison_.input.num_layers;
    TuneCurve curve = tune_method(info, request, try_setting);
    for (size_t i = done; i < here.attempts; ++i) progress_.drop(here.first_attempt + i);
    if (curve.chosen) {
      for (const auto& [name, value] : curve.points[*curve.chosen].options) options[name] = value;
      const std::string note = note_of(curve);
      if (!note.empty()) row.notes.push_back(note);
    } else {
      row.label = label_of(info.name, options);
      row.refused = refusal_of(curve);
    }
    comparison_.tune->curves.push_back(std::move(curve));
    return !row.is_refused();
  }

  /// What is to be said of a choice that does not hold the bound.
  static std::string note_of(const TuneCurve& curve) {
    if (curve.is_within) return "";
    const TunePoint& chosen = curve.points[*curve.chosen];
    if (chosen.outcome == TunePoint::Outcome::slow) return "every setting that was tried costs more than dense attention: this is the sparsest";
    if (std::isnan(chosen.excess)) return "no setting that was tried gave a figure to hold the bound by: this is the sparsest";
    for (const TunePoint& point : curve.points) {
      if (point.outcome == TunePoint::Outcome::slow)
        return "no setting that was tried holds the bound at less than the cost of dense attention: this is the nearest";
    }
    return "no setting that was tried holds the bound: this is the nearest";
  }

  static std::string refusal_of(const TuneCurve& curve) {
    for (const TunePoint& point : curve.points) {
      if (point.outcome == TunePoint::Outcome::refused) return point.refused;
    }
    return "no setting that was tried gave a figure";
  }

  /// Needles of the two fastest rows that hold the bound on every text.
  void ask_two_best() {
    std::vector<size_t> order;
    for (size_t i = 0; i < comparison_.methods.size(); ++i) {
      const MethodFigures& row = comparison_.methods[i];
      const bool is_asked = !row.is_refused() && !row.is_baseline && row.density < 1 && comparison_.excess(row) <= comparison_.bound();
      if (is_asked) order.push_back(i);
    }
    std::sort(order.begin(), order.end(), [&](size_t a, size_t b) {
      const double speed_a = comparison_.methods[a].speedup, speed_b = comparison_.methods[b].speedup;
      return speed_a != speed_b ? speed_a > speed_b : a < b;
    });
    for (size_t i = 0; i < 2; ++i) {
      if (i >= order.size()) {
        progress_.drop(last_needles_ + i);
        continue;
      }
      progress_.begin(last_needles_ + i, comparison_.methods[order[i]].label);
      comparison_.methods[order[i]].needle = source_.ask_needles(planners_[order[i]]);
    }
  }

  /// A setting of a method that is not a yardstick is given up beyond this share of dense attention's cost: counted work may be some way off.
  static constexpr double kMostOfDense = 1.25;
  /// Of a layer's plan: what a page fault or a cold cache may add to its CPU time, and what is too little to give a setting of a short text up for.
  static constexpr double kSameMs = .25, kSmallMs = 2;

  Source& source_;
  const CompareRequest& request_;
  ProgressMeter& progress_;
  std::vector<MethodChoice> rows_;
  std::vector<Stages> stages_;  // of rows_, then the recipe
  std::vector<Planner> planners_;
  size_t dense_stage_ = 0, last_needles_ = 0;
  Comparison comparison_;
};

}  // namespace

Comparison run_comparison(Source& source, const CompareRequest& request, ProgressMeter& progress) {
  return Comparer(source, request, progress).run();
}

Comparison compare_model(StudiedModel& model, const CompareRequest& request, Context& context) {
  ProgressMeter progress(request.progress);
  ModelSource source(model, request, progress, context);
  return run_comparison(source, request, progress);
}

}  // namespace tilewise::study
