// SPDX-License-Identifier: Apache-2.0
#include <iostream>
#include <map>
#include <memory>

#include "app/command.h"
#include "app/table.h"
#include "app/terminal.h"
#include "tilewise/base/file.h"
#include "tilewise/methods/registry.h"
#include "tilewise/study/head_search.h"

namespace tilewise::app {
namespace {

struct SearchOptions {
  std::string method, model, out, objective = "output", candidates = "released";
  std::vector<std::string> texts;
  int64_t length = 16384;
  int threads = 0, tile = 128, stride = 16;
  double coverage = .9;
  bool fits_cost = false, becomes_vertical_slash = false;
};

CompareText first_bytes(const std::string& path, int64_t length) {
  const MappedFile file(path);
  const auto bytes = file.bytes();
  check(static_cast<int64_t>(bytes.size()) >= length, Error::Kind::value, path, " has ", bytes.size(), " bytes, which is less than --length ", length,
        "; give a longer text or --length ", bytes.size());
  CompareText text{path, {}};
  for (int64_t i = 0; i < length; ++i) text.tokens.push_back(static_cast<int32_t>(bytes[static_cast<size_t>(i)]));
  return text;
}

HeadSearch head_search_of(const SearchOptions& options) {
  HeadSearch search;
  const bool is_mass = options.objective == "mass";
  search.objective = is_mass ? HeadSearch::Objective::mass : HeadSearch::Objective::output;
  if (is_mass) search.first_row = 2500;
  if (options.candidates == "paper") {
    search.candidates = paper_candidates();
  } else if (is_mass) {
    search.candidates = released_mass_candidates(options.length);
  } else {
    search.candidates = released_output_candidates();
    search.tolerance = 5e-3;
  }
  if (options.fits_cost) {
    search.fit_init = 1024;
    search.fit_local = 4096;
  }
  search.becomes_vertical_slash = options.becomes_vertical_slash;
  return search;
}

void print_picks(const HeadSearchResult& result, const HeadSearch& search) {
  std::map<size_t, int> heads;
  std::map<size_t, double> costs;
  for (const HeadPick& pick : result.picks) {
    ++heads[pick.candidate];
    costs[pick.candidate] += pick.costs[pick.candidate];
  }
  Table table;
  table.add({{"heads", Style::bold}, {"density", Style::bold}, {"candidate", Style::bold}});
  for (const auto& [candidate, count] : heads) {
    const RecipeMethod& use = search.candidates[candidate];
    table.add({{std::to_string(count)}, {number("%.3f", costs[candidate] / count)}, {use.method + " " + format_options(use.method, use.options)}});
  }
  std::cout << table.text();
}

void run_search(const SearchOptions& options) {
  check_writable(options.out);
  std::vector<CompareText> texts;
  for (const std::string& path : options.texts) texts.push_back(first_bytes(path, options.length));
  Context context = make_context(options.threads);
  ProgressLine line;
  line.show("reading " + options.model);
  const Model model = Model::load(options.model, context);
  check(model.config().reads_bytes, Error::Kind::unsupported, options.model, " has a vocabulary of ", model.config().vocab_size,
        " tokens, and --text reads bytes: it takes models with vocabulary 256 and no tokenizer.json");
  check(options.length <= model.config().max_positions, Error::Kind::value, "--length ", options.length, " is above the ",
        model.config().max_positions, " positions that ", options.model, " was made for");
  const auto progress = [&](int layer, int num_layers) { line.show("layer " + std::to_string(layer) + "/" + std::to_string(num_layers)); };
  if (options.method == "xattention") {
    const Recipe recipe = profile_map(
        model, {.texts = std::move(texts), .tile = options.tile, .stride = options.stride, .coverage = options.coverage, .progress = progress},
        context);
    line.clear();
    write_whole(options.out, format_recipe(recipe));
  } else {
    HeadSearch search = head_search_of(options);
    search.text = std::move(texts.front());
    search.progress = progress;
    const HeadSearchResult result = search_heads(model, search, context);
    line.clear();
    print_picks(result, search);
    write_whole(options.out, format_recipe(result.recipe));
  }
  std::cout << "recipe: " << options.out << "  (tilewise compare --recipe " << quote_for_shell(options.out) << " tells what it costs)\n";
}

}  // namespace

void add_search_command(CLI::App& app) {
  CLI::App* command =
      app.add_subcommand("search", "find a method's options for each head of a model on a calibration text, and write them as a recipe");
  const auto options = std::make_shared<SearchOptions>();
  command->add_option("method", options->method, "minference: the pattern that suits each head; xattention: the threshold of each head")
      ->required()
      ->check(CLI::IsMember({"minference", "xattention"}));
  command->add_option("--model", options->model, "folder of a Hugging Face Llama-family checkpoint")->required();
  command->add_option("--text", options->texts, "calibration text; xattention takes several")->required()->expected(1, 1000);
  command->add_option("--length", options->length, "bytes to read of each text")
      ->check(CLI::Range(int64_t{2}, int64_t{1} << 24))
      ->capture_default_str();
  command->add_option("--out", options->out, "recipe to write (docs/formats/recipe.md)")->required();
  command->add_option("--objective", options->objective, "minference: output (how far it moves) or mass (how much probability stays)")
      ->check(CLI::IsMember({"mass", "output"}))
      ->capture_default_str();
  command->add_option("--candidates", options->candidates, "minference: released or paper")
      ->check(CLI::IsMember({"released", "paper"}))
      ->capture_default_str();
  command->add_flag("--fit-cost", options->fits_cost, "minference: change every candidate's size until it reads as much as a_shape 1024/4096");
  command->add_flag("--vertical-slash", options->becomes_vertical_slash,
                    "minference: turn winners of other patterns into vertical_slash, as the released search by mass does");
  command->add_option("--tile", options->tile, "xattention: tokens per tile")->check(CLI::Range(16, 256))->capture_default_str();
  command->add_option("--stride", options->stride, "xattention: antidiagonal step")->check(CLI::Range(1, 64))->capture_default_str();
  command->add_option("--coverage", options->coverage, "xattention: share of the true mass of a row that kept tiles hold")
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str();
  add_threads_option(*command, options->threads);
  command->callback([options] {
    if (options->method == "minference" && options->texts.size() > 1) throw UsageError("search minference takes one --text");
    run_search(*options);
  });
}

}  // namespace tilewise::app
