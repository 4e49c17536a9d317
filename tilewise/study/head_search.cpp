// SPDX-License-Identifier: Apache-2.0
#include "tilewise/study/head_search.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "tilewise/attend/attend.h"
#include "tilewise/cache/contiguous.h"
#include "tilewise/methods/minference.h"
#include "tilewise/methods/options.h"
#include "tilewise/methods/problem.h"
#include "tilewise/methods/registry.h"
#include "tilewise/plan/count.h"
#include "tilewise/select/antidiagonal.h"
#include "tilewise/study/thresholds.h"

namespace tilewise::study {
namespace {

using Options = method::MInferenceOptions;
using Json = nlohmann::ordered_json;

RecipeMethod vertical_slash(int64_t vertical, int64_t slash) { return {"minference", {{"vertical", vertical}, {"slash", slash}}}; }

/// What dense attention gives in one layer: the yardstick of every candidate.
struct Dense {
  Plan plan;
  Tensor out, lse;
};

Dense run_dense(const Problem& problem, Context& context) {
  Dense dense;
  dense.plan = plan_with("dense", problem, {}, context).plan;
  dense.out = Tensor(context.memory, Dtype::f32, {problem.q.dim(0), problem.q.dim(1), problem.q.dim(2), problem.v.dim(3)});
  dense.lse = Tensor(context.memory, Dtype::f32, {problem.q.dim(0), problem.q.dim(1), problem.q.dim(2)});
  attend_forward({.q = problem.q,
                  .k = problem.k,
                  .v = problem.v,
                  .out = dense.out.view,
                  .lse = dense.lse.view,
                  .plan = dense.plan,
                  .softmax_scale = problem.softmax_scale,
                  .softcap = problem.softcap},
                 context);
  return dense;
}

/// The score of each head: a mass, of which more is better, or a difference.
std::vector<double> scores_of(const Problem& problem, const Plan& plan, const Dense& dense, const HeadSearch& search, Context& context) {
  const bool is_mass = search.objective == HeadSearch::Objective::mass;
  const Tensor lse(context.memory, Dtype::f32, dense.lse.view.shape());
  Tensor out;
  if (!is_mass) out = Tensor(context.memory, Dtype::f32, dense.out.view.shape());
  attend_forward({.q = problem.q,
                  .k = problem.k,
                  .v = is_mass ? TensorView{} : problem.v,
                  .out = out.view,
                  .lse = lse.view,
                  .plan = plan,
                  .softmax_scale = problem.softmax_scale,
                  .softcap = problem.softcap},
                 context);
  const int64_t rows = problem.q.dim(2), first = rows > search.first_row ? search.first_row : 0;
  std::vector<double> scores(static_cast<size_t>(problem.q.dim(1)), 0.0);
  context.parallel_for(problem.q.dim(1), [&](int64_t h, int) {
    double sum = 0;
    for (int64_t b = 0; b < problem.q.dim(0); ++b) {
      for (int64_t i = is_mass ? first : 0; i < rows; ++i) {
        if (is_mass) {
          sum += std::exp(static_cast<double>(lse.view.at<float>(b, h, i)) - static_cast<double>(dense.lse.view.at<float>(b, h, i)));
          continue;
        }
        for (int64_t d = 0; d < out.view.dim(3); ++d) {
          const double difference = static_cast<double>(out.view.at<float>(b, h, i, d)) - static_cast<double>(dense.out.view.at<float>(b, h, i, d));
          if (search.tolerance > 0)
            sum += std::abs(difference) > search.tolerance ? 1 : 0;
          else
            sum += difference * difference;
        }
      }
    }
    scores[static_cast<size_t>(h)] = is_mass                ? sum / static_cast<double>(problem.q.dim(0) * (rows - first))
                                     : search.tolerance > 0 ? sum
                                                            : std::sqrt(sum);
  });
  return scores;
}

/// The options of a candidate as minference reads them.
Options options_of(const RecipeMethod& candidate) { return method::read_options<Options>("minference", candidate.options); }

Options::Head sizes_of(const Options& options) {
  if (options.pattern == Options::Pattern::a_shape) return {options.pattern, {options.init, options.local}};
  if (options.pattern == Options::Pattern::block_sparse) return {options.pattern, {options.blocks, 0}};
  return {options.pattern, {options.vertical, options.slash}};
}

RecipeMethod with_sizes(RecipeMethod candidate, const Options::Head& head) {
  const char* const names[3][2] = {{"vertical", "slash"}, {"init", "local"}, {"blocks", nullptr}};
  for (size_t i = 0; i < 2; ++i) {
    const char* const name = names[static_cast<size_t>(head.pattern)][i];
    if (name != nullptr) candidate.options[name] = static_cast<int64_t>(head.sizes[i]);
  }
  return candidate;
}

/// For each head the candidate's size that changes, as a number of steps, at which the head reads nearest to `target` pairs. What a head reads grows with
/// the size, so each is found by halving; all heads are planned together.
std::vector<Options::Head> fit_sizes(const Problem& problem, const Options& options, const std::vector<int64_t>& target, Context& context) {
  const Options::Head start = sizes_of(options);
  const size_t changing = start.pattern == Options::Pattern::block_sparse ? 0 : 1, heads = target.size();
  // 50 is the paper's; 50 tiles of 64 keys would jump over most targets.
  const int fit_step = start.pattern == Options::Pattern::block_sparse ? 1 : 50, remainder = start.sizes[changing] % fit_step;
  const auto longest = static_cast<int>(std::min<int64_t>(problem.k.dim(2), 1 << 29));
  const auto size_at = [&](int step) { return std::max(1, remainder + step * fit_step); };
  const auto reads_at = [&](const std::vector<int>& steps) {
    Options all = options;
    all.ratio = 1;
    all.heads.assign(heads, start);
    for (size_t h = 0; h < heads; ++h) all.heads[h].sizes[changing] = size_at(steps[h]);
    const Plan plan = method::minference(problem, all, context).plan;
    std::vector<int64_t> counts;
    for (size_t h = 0; h < heads; ++h) counts.push_back(reads(plan, static_cast<int>(h)));
    return counts;
  };
  std::vector<int> below(heads, 0), above(heads, longest / fit_step + 1);  // the size at `below` reads at most the target, or is the least
  while (true) {
    std::vector<int> middle(heads);
    bool is_open = false;
    for (size_t h = 0; h < heads; ++h) {
      middle[h] = below[h] + (above[h] - below[h]) / 2;
      is_open = is_open || above[h] - below[h] > 1;
    }
    if (!is_open) break;
    const std::vector<int64_t> counts = reads_at(middle);
    for (size_t h = 0; h < heads; ++h) {
      if (above[h] - below[h] > 1) (counts[h] <= target[h] ? below[h] : above[h]) = middle[h];
    }
  }
  const std::vector<int64_t> low = reads_at(below), high = reads_at(above);
  std::vector<Options::Head> fitted(heads, start);
  for (size_t h = 0; h < heads; ++h) {
    const bool is_low_nearer = std::abs(low[h] - target[h]) <= std::abs(high[h] - target[h]);
    fitted[h].sizes[changing] = size_at(is_low_nearer ? below[h] : above[h]);
  }
  return fitted;
}

void check_search(const HeadSearch& search) {
  check(!search.candidates.empty(), Error::Kind::value, "search_heads: there is no candidate; give methods with their options");
  for (const RecipeMethod& candidate : search.candidates) check_options(candidate.method, candidate.options);
  check(search.first_row >= 0 && search.tolerance >= 0 && search.fit_init >= 0 && search.fit_local >= 0, Error::Kind::value,
        "search_heads: first_row ", search.first_row, ", tolerance ", search.tolerance, ", fit_init ", search.fit_init, " and fit_local ",
        search.fit_local, "; all take 0 or more");
}

/// The recipe's layers: heads of one method together, in the order of their first head.
Recipe recipe_of(const ModelConfig& config, const std::vector<HeadPick>& picks, RecipeMethod otherwise) {
  Recipe recipe = uniform_recipe(config, std::move(otherwise));
  for (const HeadPick& pick : picks) {
    if (recipe.layers.empty() || recipe.layers.back().layer != pick.layer) recipe.layers.push_back({pick.layer, {}});
    std::vector<Recipe::Heads>& groups = recipe.layers.back().heads;
    const auto at = std::find_if(groups.begin(), groups.end(), [&](const Recipe::Heads& group) { return group.use == pick.use; });
    if (at == groups.end())
      groups.push_back({{pick.head}, pick.use});
    else
      at->heads.push_back(pick.head);
  }
  return recipe;
}

std::string label_of(const RecipeMethod& use) {
  const std::string options = format_options(use.method, use.options);
  return use.method + (options.empty() ? "" : " " + options);
}

/// Runs the text dense and shows each layer's problem.
void for_layers(const Model& model, const CompareText& text, const std::function<void(int, int)>& progress, Context& context,
                const std::function<void(const Problem&)>& visit) {
  check(!text.tokens.empty(), Error::Kind::value, "the calibration text ", text.name, " is empty; give at least one token");
  const auto cache = model.make_cache(static_cast<int64_t>(text.tokens.size()), context);
  ForwardOptions options;
  options.progress = progress;
  options.attention = [&](const LayerAttention& layer, Context& own) {
    const Problem problem = infer::problem_of(layer, 0);
    const Plan dense = plan_with("dense", problem, {}, own).plan;
    attend_forward({.q = layer.q, .k = layer.k, .v = layer.v, .out = layer.out, .plan = dense}, own);
    visit(problem);
  };
  model.forward(text.tokens, *cache, options, context);
}

}  // namespace

std::vector<HeadPick> search_layer(const Problem& problem, const HeadSearch& search, Context& context) {
  check_search(search);
  const Dense dense = run_dense(problem, context);
  const auto heads = static_cast<size_t>(problem.q.dim(1));
  std::vector<HeadPick> picks(heads);
  std::vector<int64_t> target;
  if (search.fit_local > 0) {
    Options shape;
    shape.pattern = Options::Pattern::a_shape;
    shape.init = search.fit_init;
    shape.local = search.fit_local;
    const Plan plan = method::minference(problem, shape, context).plan;
    for (size_t h = 0; h < heads; ++h) target.push_back(reads(plan, static_cast<int>(h)));
  }
  for (size_t h = 0; h < heads; ++h) {
    picks[h].layer = problem.layer;
    picks[h].head = static_cast<int>(h);
  }
  const bool is_mass = search.objective == HeadSearch::Objective::mass;
  for (size_t c = 0; c < search.candidates.size(); ++c) {
    const RecipeMethod& candidate = search.candidates[c];
    std::vector<RecipeMethod> uses(heads, candidate);
    Plan plan;
    if (!target.empty() && candidate.method == "minference") {
      Options options = options_of(candidate);
      options.heads = fit_sizes(problem, options, target, context);
      options.ratio = 1;
      for (size_t h = 0; h < heads; ++h) uses[h] = with_sizes(candidate, options.heads[h]);
      plan = method::minference(problem, options, context).plan;
    } else {
      plan = plan_with(candidate.method, problem, candidate.options, context).plan;
    }
    const std::vector<double> scores = scores_of(problem, plan, dense, search, context);
    for (size_t h = 0; h < heads; ++h) {
      HeadPick& pick = picks[h];
      pick.scores.push_back(scores[h]);
      pick.costs.push_back(static_cast<double>(reads(plan, static_cast<int>(h))) / static_cast<double>(reads(dense.plan, static_cast<int>(h))));
      // Two that read all of the mass differ by the rounding of f32 sums; the one that reads less is meant.
      constexpr double kRounding = 1e-5;
      const double gain = (is_mass ? 1 : -1) * (scores[h] - pick.scores[pick.candidate]), equal = is_mass ? kRounding : 0;
      const bool is_better = c == 0 || gain > equal || (gain >= -equal && pick.costs[c] < pick.costs[pick.candidate]);
      if (!is_better) continue;
      pick.candidate = c;
      pick.use = uses[h];
    }
  }
  for (HeadPick& pick : picks) {
    if (!search.becomes_vertical_slash || pick.use.method != "minference") continue;
    const Options options = options_of(pick.use);
    if (options.pattern == Options::Pattern::a_shape) pick.use = vertical_slash(options.init, options.local);
    if (options.pattern == Options::Pattern::block_sparse) pick.use = vertical_slash(1000, 6096);
  }
  return picks;
}

std::vector<double> profile_layer(const Problem& problem, const ProfileSearch& search, Context& context) {
  check(search.tile >= 16 && search.tile <= 256 && search.stride >= 1 && search.tile % search.stride == 0, Error::Kind::value, "profile_map: tile ",
        search.tile, " must be 16 to 256 and a multiple of stride ", search.stride);
  const Dense dense = run_dense(problem, context);
  const select::Inputs inputs = method::inputs_of("profile_map", problem);
  const select::Scores estimate = select::antidiagonal_scores(inputs, {.tile = search.tile, .stride = search.stride}, context);
  const int64_t heads = problem.q.dim(1), rows = estimate.grid.rows(), tiles = estimate.key_tiles();
  const Plan plan = plan_with("dense", problem, {{"tile", int64_t{search.tile}}}, context).plan;
  const Tensor truth(context.memory, Dtype::f32, {problem.q.dim(0), heads, rows, tiles});
  measure({.q = problem.q,
           .k = problem.k,
           .plan = plan,
           .lse = dense.lse.view,
           .over = MeasureOver::tile,
           .softmax_scale = problem.softmax_scale,
           .softcap = problem.softcap,
           .sum = truth.view},
          context);
  std::vector<double> thresholds(static_cast<size_t>(heads), 0.0);
  const auto size = static_cast<size_t>(rows * tiles);
  for (int64_t b = 0; b < problem.q.dim(0); ++b) {
    for (int64_t h = 0; h < heads; ++h) {
      double& threshold = thresholds[static_cast<size_t>(h)];
      threshold =
          std::max(threshold, profile_threshold({&truth.view.at<float>(b, h, 0, 0), size}, {estimate.row(b, h, 0), size}, tiles, search.coverage));
    }
  }
  return thresholds;
}

}  // namespace tilewise::study

TILEWISE_BEGIN_PUBLIC

using study::vertical_slash;

std::vector<RecipeMethod> released_mass_candidates(int64_t length) {
  std::vector<RecipeMethod> candidates = {{"minference", {{"pattern", std::string("a_shape")}, {"init", int64_t{100}}, {"local", int64_t{800}}}}};
  for (const auto& [vertical, slash] : {std::pair{30, 800}, std::pair{100, 750}, std::pair{500, 700}, std::pair{3500, 100}}) {
    candidates.push_back(vertical_slash(vertical, slash));
    candidates.back().options["nearest"] = int64_t{30};
  }
  // Tiles of 32, an eighth of them in each row.
  candidates.push_back(
      {"minference", {{"pattern", std::string("block_sparse")}, {"tile", int64_t{32}}, {"blocks", std::max<int64_t>(1, length / 32 / 8)}}});
  return candidates;
}

std::vector<RecipeMethod> released_output_candidates() {
  std::vector<RecipeMethod> candidates = {{"minference", {{"pattern", std::string("a_shape")}, {"init", int64_t{100}}, {"local", int64_t{800}}}}};
  for (const auto& [vertical, slash] :
       {std::pair{30, 800}, std::pair{100, 800}, std::pair{100, 750}, std::pair{500, 700}, std::pair{3500, 100}, std::pair{1000, 4096}}) {
    candidates.push_back(vertical_slash(vertical, slash));
  }
  candidates.push_back({"minference", {{"pattern", std::string("block_sparse")}, {"blocks", int64_t{100}}}});
  return candidates;
}

std::vector<RecipeMethod> paper_candidates() {
  std::vector<RecipeMethod> candidates = {{"minference", {{"pattern", std::string("a_shape")}, {"init", int64_t{1024}}, {"local", int64_t{4096}}}}};
  for (const auto& [vertical, slash] : {std::pair{30, 2048}, std::pair{100, 1800}, std::pair{500, 1500}, std::pair{3000, 200}}) {
    candidates.push_back(vertical_slash(vertical, slash));
  }
  candidates.push_back({"minference", {{"pattern", std::string("block_sparse")}, {"blocks", int64_t{100}}}});
  return candidates;
}

HeadSearchResult search_heads(const Model& model, const HeadSearch& search, Context& context) {
  study::check_search(search);
  HeadSearchResult result;
  study::for_layers(model, search.text, search.progress, context, [&](const Problem& problem) {
    for (HeadPick& pick : study::search_layer(problem, search, context)) result.picks.push_back(std::move(pick));
  });
  result.recipe = study::recipe_of(model.config(), result.picks, {"minference", {}});
  study::Json candidates = study::Json::array(), scores = study::Json::array();
  for (const RecipeMethod& candidate : search.candidates) candidates.push_back(study::label_of(candidate));
  for (const HeadPick& pick : result.picks) {
    if (pick.head == 0) scores.push_back(study::Json::array());
    scores.back().push_back(pick.scores);
  }
  const study::Json calibration = {{"search", "heads"},
                                   {"objective", search.objective == HeadSearch::Objective::mass ? "mass" : "output"},
                                   {"text", search.text.name},
                                   {"length", search.text.tokens.size()},
                                   {"first_row", search.first_row},
                                   {"tolerance", search.tolerance},
                                   {"fit_init", search.fit_init},
                                   {"fit_local", search.fit_local},
                                   {"candidates", candidates},
                                   {"scores", scores}};
  result.recipe.calibration = calibration.dump(-1, ' ', false, study::Json::error_handler_t::replace);
  return result;
}

Recipe profile_map(const Model& model, const ProfileSearch& search, Context& context) {
  check(!search.texts.empty(), Error::Kind::value, "profile_map: there is no text; give at least one");
  std::vector<HeadPick> picks;
  study::Json texts = study::Json::array();
  for (size_t i = 0; i < search.texts.size(); ++i) {
    size_t next = 0;
    study::for_layers(model, search.texts[i], search.progress, context, [&](const Problem& problem) {
      const std::vector<double> thresholds = study::profile_layer(problem, search, context);
      for (size_t h = 0; h < thresholds.size(); ++h, ++next) {
        if (i == 0) picks.push_back({.layer = problem.layer, .head = static_cast<int>(h), .scores = {0}});
        picks[next].scores[0] = std::max(picks[next].scores[0], thresholds[h]);
      }
    });
    texts.push_back(search.texts[i].name);
  }
  const RecipeMethod otherwise{"xattention", {{"tile", int64_t{search.tile}}, {"stride", int64_t{search.stride}}}};
  for (HeadPick& pick : picks) {
    pick.use = otherwise;
    // Rounded up, so that what the profile says is covered.
    pick.use.options["threshold"] = std::min(1.0, std::ceil(pick.scores[0] * 1e4) / 1e4);
  }
  Recipe recipe = study::recipe_of(model.config(), picks, otherwise);
  recipe.calibration =
      study::Json{{"search", "profile_map"}, {"texts", texts}, {"length", search.texts[0].tokens.size()}, {"coverage", search.coverage}}.dump(
          -1, ' ', false, study::Json::error_handler_t::replace);
  return recipe;
}

TILEWISE_END_PUBLIC
