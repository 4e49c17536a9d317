// SPDX-License-Identifier: Apache-2.0
#include "tilewise/study/compare.h"
#include "tilewise/base/version.h"

#include <chrono>
#include <cmath>
#include <ctime>
#include <filesystem>
#include <iostream>
#include <limits>
#include <memory>

#include "app/command.h"
#include "app/interrupt.h"
#include "app/method_list.h"
#include "app/report/report.h"
#include "app/table.h"
#include "app/terminal.h"
#include "tilewise/base/file.h"
#include "tilewise/machine/cpu/target.h"
#include "tilewise/plan/file.h"

namespace tilewise::app {
namespace {

struct CompareOptions {
  std::string model, device = "cpu", report, json, recipe, save_plans;
  std::vector<std::string> texts, methods;
  int64_t length = 16384, needle = 0;
  double density = 0, max_bits = .005;
  int64_t seed = 0;
  int threads = 0;
  bool has_density = false;
};

std::string utc_now() {
  const std::time_t now = std::chrono::system_clock::to_time_t(std::chrono::system_clock::now());
  std::tm parts{};
  gmtime_r(&now, &parts);
  char text[32];
  std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &parts);
  return text;
}

/// The first `length` bytes of a file as tokens.
CompareText read_text(const std::string& path, int64_t length, InputFigures& input) {
  const MappedFile file(path);
  const auto bytes = file.bytes();
  const int64_t size = static_cast<int64_t>(bytes.size());
  check(size >= length, Error::Kind::value, path, " has ", size, " bytes, which is less than --length ", length, "; give a longer text or --length ",
        size);
  CompareText text;
  text.name = path;
  for (int64_t i = 0; i < length; ++i) text.tokens.push_back(static_cast<int32_t>(bytes[static_cast<size_t>(i)]));
  input.texts.push_back({path, size});
  return text;
}

void check_options(const CompareOptions& options) {
  if (options.device != "cpu") throw UsageError("--device " + options.device + " is not built here; this program runs on cpu");
  if (std::isnan(options.density)) throw UsageError("--density is not a number; takes 0 to 1");  // ranges let it pass
  if (std::isnan(options.max_bits)) throw UsageError("--max-bits is not a number; takes 0 to 1000");
  if (!options.report.empty() && options.report == options.json) throw UsageError("--report and --json name the same file, " + options.report);
  if (!options.report.empty()) check_writable(options.report);
  if (!options.json.empty()) check_writable(options.json);
}

void check_model(const Model& model, const CompareOptions& options) {
  const ModelConfig& config = model.config();
  check(config.reads_bytes, Error::Kind::unsupported, options.model, " has a vocabulary of ", config.vocab_size,
        " tokens, and --text reads bytes: it takes models with vocabulary 256 and no tokenizer.json");
  check(options.length <= config.max_positions, Error::Kind::value, "--length ", options.length, " is above the ", config.max_positions,
        " positions that ", options.model, " was made for");
}

void run_compare(const CompareOptions& options) {
  check_options(options);
  CompareRequest request;
  if (options.methods.empty() && options.recipe.empty()) {
    request.methods = demo_rows();
  } else {
    request.methods = usage([&] { return parse_method_list(options.methods); });
  }
  if (options.has_density) request.density = options.density;
  if (!options.recipe.empty()) {
    request.recipe = read_recipe(options.recipe);
    request.recipe_name = options.recipe;
  }
  request.max_bits = options.max_bits;
  request.seed = static_cast<uint64_t>(options.seed);

  // Everything that is quick to find out comes before the model, so that a slip in the last option costs no minutes.
  InputFigures input;
  input.model = options.model;
  for (const std::string& path : options.texts) request.texts.push_back(read_text(path, options.length, input));
  if (options.needle > 0) request.needles = load_needles(options.model, options.needle);

  Context context = make_context(options.threads);
  ProgressLine line;
  line.show("reading " + options.model);
  const Model model = Model::load(options.model, context);
  check_model(model, options);
  request.progress = [&](const CompareProgress& progress) { line.show(progress); };
  if (!options.save_plans.empty()) {
    std::filesystem::create_directories(options.save_plans);
    request.on_plan = [&](size_t row, const std::string& name, size_t text, int layer, const Plan& plan) {
      const WritingFiles guard;
      save_plan(plan, options.save_plans + "/" + std::to_string(row + 1) + "-" + name + "-text" + std::to_string(text + 1) + "-layer" +
                          std::to_string(layer) + ".safetensors");
    };
  }
  Comparison comparison = compare(model, request, context);
  line.clear();
  context.check_cancel();

  input.length = comparison.input.length;
  input.needle_length = comparison.input.needle_length;
  input.num_layers = comparison.input.num_layers;
  input.heads_q = comparison.input.heads_q;
  input.heads_kv = comparison.input.heads_kv;
  input.head_dim = comparison.input.head_dim;
  comparison.input = std::move(input);
  comparison.environment.version = version();
  comparison.environment.commit = commit();
  comparison.environment.threads = context.concurrency();
  comparison.environment.device = "cpu " + std::string(machine::cpu::name(machine::cpu::current_target())) + ", " + machine::cpu::processor_name();
  comparison.environment.command = command_line();
  comparison.environment.created = utc_now();

  std::cout << comparison_text(comparison) << std::flush;
  if (!options.json.empty()) write_whole(options.json, to_json(comparison));
  if (!options.report.empty()) write_whole(options.report, make_report(comparison));
  if (!options.report.empty()) std::cout << "report: " << std::filesystem::absolute(options.report).string() << "\n";
  if (!options.json.empty()) std::cout << "json:   " << std::filesystem::absolute(options.json).string() << "\n";
}

}  // namespace

void add_compare_command(CLI::App& app) {
  CLI::App* command = app.add_subcommand("compare", "run a model over your text with dense attention and with each method, and tell what each cost");
  const auto options = std::make_shared<CompareOptions>();
  command->add_option("--model", options->model, "folder of a Hugging Face Llama-family checkpoint")->required();
  command->add_option("--text", options->texts, "files to read; the bound must hold on every one")->required()->expected(1, 1000);
  command->add_option("--length", options->length, "bytes to read of each text (16384)")->check(CLI::Range(int64_t{2}, int64_t{1} << 24));
  command
      ->add_option("--methods", options->methods,
                   "all, or a list: name,name:option=value,option=value,... (by default the 8 rows of the demo; see tilewise methods)")
      ->expected(1, 1000);
  CLI::Option* density = command->add_option("--density", options->density, "sets the budget of every method that has the option density");
  density->check(CLI::Range(0.0, 1.0));
  command->add_option("--needle", options->needle, "also ask the needles of this many bytes, from needles.json beside the model")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 24));
  command->add_option("--max-bits", options->max_bits, "bits per byte that the recommended method may add to dense (0.005)")
      ->check(CLI::Range(0.0, 1000.0));
  command->add_option("--recipe", options->recipe, "a recipe file, run as one more row (docs/formats/recipe.md)");
  command->add_option("--seed", options->seed, "of methods that draw by chance (0)")
      ->check(CLI::Range(int64_t{0}, std::numeric_limits<int64_t>::max()));
  command->add_option("--device", options->device, "cpu");
  command->add_option("--report", options->report, "write one HTML file that needs no network");
  command->add_option("--json", options->json, "write the figures (docs/formats/compare.md)");
  command->add_option("--save-plans", options->save_plans, "write every plan to this folder (see tilewise plan)");
  add_threads_option(*command, options->threads);
  command->callback([options, density] {
    options->has_density = density->count() > 0;
    run_compare(*options);
  });
}

}  // namespace tilewise::app
