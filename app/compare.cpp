// SPDX-License-Identifier: Apache-2.0
#include "tilewise/study/compare.h"

#include <cmath>
#include <filesystem>
#include <iostream>
#include <limits>
#include <memory>

#include "app/command.h"
#include "app/environment.h"
#include "app/interrupt.h"
#include "app/method_list.h"
#include "app/report/report.h"
#include "app/table.h"
#include "app/terminal.h"
#include "tilewise/base/file.h"
#include "tilewise/machine/device.h"
#include "tilewise/plan/file.h"

namespace tilewise::app {
namespace {

struct CompareOptions {
  std::string model, qkv, mask, device = "cpu", dtype, report, json, recipe, save_plans;
  std::vector<std::string> texts, methods;
  std::vector<int64_t> needles;
  int64_t length = 16384;
  double density = 0, max_bits = .005, max_error = .05;
  int64_t seed = 0, random_weights = 0;
  int threads = 0;
  bool has_density = false, has_tune = false, has_random_weights = false;
  bool has_length = false, has_max_bits = false, has_max_error = false;  // was given
};

/// The first `length` bytes of a file as tokens.
CompareText read_text(const std::string& path, int64_t length, InputFigures& input) {
  const MappedFile file(path);
  const auto bytes = file.bytes();
  const int64_t size = static_cast<int64_t>(bytes.size());
  check(size >= 2, Error::Kind::value, path, " has ", size, " byte", size == 1 ? "" : "s",
        "; bits per byte need at least 2, one to read and one to predict: give a longer text");
  check(size >= length, Error::Kind::value, path, " has ", size, " bytes, which is less than --length ", length, "; give a longer text or --length ",
        size);
  CompareText text;
  text.name = path;
  for (int64_t i = 0; i < length; ++i) text.tokens.push_back(static_cast<int32_t>(bytes[static_cast<size_t>(i)]));
  input.texts.push_back({path, size});
  return text;
}

/// What would be written over what.
void check_files(const CompareOptions& options) {
  const std::pair<const char*, const std::string&> outputs[] = {{"--report", options.report}, {"--json", options.json}};
  std::vector<std::string> inputs = options.texts;
  inputs.insert(inputs.end(), {options.qkv, options.recipe});
  for (const auto& [name, path] : outputs) {
    for (const std::string& input : inputs) {
      if (!path.empty() && !input.empty() && is_same_file(path, input))
        throw UsageError(std::string(name) + " " + path + " would write over a file that is read; name another");
    }
  }
  if (!options.report.empty() && !options.json.empty() && is_same_file(options.report, options.json))
    throw UsageError("--report and --json name the same file, " + options.report);
  if (!options.model.empty()) {
    std::error_code error;
    check(std::filesystem::is_directory(options.model, error), Error::Kind::io, "--model ", options.model,
          ": there is no such folder; give the one that holds config.json and model.safetensors");
  }
  if (!options.report.empty()) check_writable(options.report);
  if (!options.json.empty()) check_writable(options.json);
}

/// What one kind of input does not know is said by the option's name.
void check_options(const CompareOptions& options) {
  if (options.qkv.empty()) {
    if (options.model.empty()) throw UsageError("give --model DIR and --text FILE..., or --qkv FILE");
    if (options.texts.empty()) throw UsageError("--model needs --text FILE...");
    if (!options.mask.empty()) throw UsageError("--mask is for --qkv; a model has its own mask");
    if (options.has_max_error) throw UsageError("--max-error is for --qkv; of a model --max-bits bounds the bits per byte");
  } else {
    const std::pair<const char*, bool> of_models[] = {{"--model", !options.model.empty()},  {"--text", !options.texts.empty()},
                                                      {"--length", options.has_length},     {"--needle", !options.needles.empty()},
                                                      {"--max-bits", options.has_max_bits}, {"--recipe", !options.recipe.empty()},
                                                      {"--dtype", !options.dtype.empty()},  {"--random-weights", options.has_random_weights}};
    for (const auto& [name, is_given] : of_models) {
      if (is_given) throw UsageError(std::string("--qkv reads tensors, ") + name + " goes with a model; give one kind");
    }
  }
  if (parse_device(options.device).type == Device::Type::cuda && options.has_tune)
    throw UsageError("--tune counts CPU time, which says nothing of a GPU; tune with --device cpu and give the options that it finds");
  if (options.has_random_weights && !options.needles.empty())
    throw UsageError("--needle asks what a model has learnt, and --random-weights has learnt nothing; leave one away");
  if (std::isnan(options.density)) throw UsageError("--density is not a number; takes 0 to 1");  // ranges let it pass
  if (std::isnan(options.max_bits)) throw UsageError("--max-bits is not a number; takes 0 to 1000");
  if (std::isnan(options.max_error)) throw UsageError("--max-error is not a number; takes 0 to 1000");
  if (options.has_tune && options.has_density) throw UsageError("--tune looks for the density, and --density gives it; take one");
  check_files(options);
}

void check_model(const Model& model, const CompareOptions& options) {
  const ModelConfig& config = model.config();
  // Random weights say nothing anyhow: bytes are tokens for them whatever the vocabulary.
  const bool takes_bytes = options.has_random_weights ? config.vocab_size >= 256 : config.reads_bytes;
  check(takes_bytes, Error::Kind::unsupported, options.model, " has a vocabulary of ", config.vocab_size,
        " tokens, and --text reads bytes here: it takes models with vocabulary 256 and no tokenizer.json; the command of the Python package reads "
        "others "
        "through their tokenizer (docs/python.md)");
  check(options.length <= config.max_positions, Error::Kind::value, "--length ", options.length, " is above the ", config.max_positions,
        " positions that ", options.model, " was made for");
}

/// Methods that were asked for; else the demo's rows, or all where they are to be tuned.
std::vector<MethodChoice> choose_methods(const CompareOptions& options) {
  if (!options.methods.empty()) return usage([&] { return parse_method_list(options.methods); });
  if (!options.recipe.empty()) return {};
  return options.has_tune ? parse_method_list({"all"}) : demo_rows();
}

/// The folder of --save-plans. One that was made for a comparison that then failed goes away again, if no plan is in it.
class PlanFolder {
 public:
  PlanFolder(std::string path, bool has_texts) : path_(std::move(path)), has_texts_(has_texts) {
    if (path_.empty()) return;
    std::error_code error;
    is_new_ = std::filesystem::create_directories(path_, error);
    check(!error, Error::Kind::io, "--save-plans ", path_, ": ", error.message(), "; name a folder, or one that can be made");
    if (is_new_) remove_if_interrupted(path_);
  }
  PlanFolder(const PlanFolder&) = delete;
  PlanFolder& operator=(const PlanFolder&) = delete;
  ~PlanFolder() {
    std::error_code ignored;  // a folder that is not empty stays
    if (is_new_) std::filesystem::remove(path_, ignored);
  }

  /// Files are named by row, method, text (of a model) and layer.
  void receive(CompareRequest& request) const {
    if (path_.empty()) return;
    request.on_plan = [this](size_t row, const std::string& name, size_t text, int layer, const Plan& plan) {
      const WritingFiles guard;
      const std::string of_text = has_texts_ ? "-text" + std::to_string(text + 1) : "";
      save_plan(plan, path_ + "/" + std::to_string(row + 1) + "-" + name + of_text + "-layer" + std::to_string(layer) + ".safetensors");
    };
  }

 private:
  std::string path_;
  bool has_texts_ = true, is_new_ = false;
};

Comparison compare_texts(const CompareOptions& options, CompareRequest& request, ProgressLine& line, Context& context) {
  InputFigures input;
  input.model = options.model;
  for (const std::string& path : options.texts) request.texts.push_back(read_text(path, options.length, input));
  for (const int64_t length : options.needles) {
    const std::vector<NeedlePrompt> prompts = load_needles(options.model, length);
    request.needles.insert(request.needles.end(), prompts.begin(), prompts.end());
  }
  line.show("reading " + options.model);
  ModelOptions model_options;
  // The kernels of a GPU are made for 16-bit numbers.
  const bool is_bf16 = options.dtype.empty() ? context.device.type == Device::Type::cuda : options.dtype == "bf16";
  model_options.dtype = is_bf16 ? Dtype::bf16 : Dtype::f32;
  if (options.has_random_weights) model_options.random_weights = static_cast<uint64_t>(options.random_weights);
  const Model model = Model::load(options.model, context, model_options);
  check_model(model, options);
  Comparison comparison = compare(model, request, context);
  comparison.input.model = input.model;
  comparison.input.texts = input.texts;
  if (options.has_random_weights) {
    for (MethodFigures& row : comparison.methods)
      row.notes.push_back("weights are random: times are those of the shape, bits and errors say nothing of a trained model");
  }
  return comparison;
}

Comparison compare_tensors(const CompareOptions& options, CompareRequest& request, ProgressLine& line, Context& context) {
  line.show("reading " + options.qkv);
  const QkvMask mask = options.mask.empty() ? QkvMask::from_file : options.mask == "full" ? QkvMask::full : QkvMask::causal;
  Context host = machine::on_cpu(context);
  QkvTensors tensors = load_qkv(options.qkv, mask, host);
  if (context.device.type == Device::Type::cuda) tensors = copy_to_device(tensors, context);
  return compare(tensors, request, context);
}

void run_compare(const CompareOptions& options) {
  // Everything that is quick to find out comes before the model, so that a slip in the last option costs no minutes.
  check_options(options);
  CompareRequest request;
  request.methods = choose_methods(options);
  if (options.has_density) request.density = options.density;
  if (!options.recipe.empty()) {
    request.recipe = read_recipe(options.recipe);
    request.recipe_name = options.recipe;
  }
  request.max_bits = options.max_bits;
  request.max_error = options.max_error;
  request.has_tune = options.has_tune;
  request.has_maps = !options.report.empty();
  request.seed = static_cast<uint64_t>(options.seed);

  Context context = make_context(options.threads, parse_device(options.device));
  const PlanFolder folder(options.save_plans, options.qkv.empty());
  folder.receive(request);
  ProgressLine line;
  request.progress = [&](const CompareProgress& progress) { line.show(progress); };
  Comparison comparison = options.qkv.empty() ? compare_texts(options, request, line, context) : compare_tensors(options, request, line, context);
  line.clear();
  context.check_cancel();

  comparison.environment = environment_of(context, command_line());

  std::cout << comparison_text(comparison) << std::flush;
  if (!options.json.empty()) write_whole(options.json, to_json(comparison));
  if (!options.report.empty()) write_whole(options.report, make_report(comparison));
  if (!options.report.empty()) std::cout << "report: " << std::filesystem::absolute(options.report).string() << "\n";
  if (!options.json.empty()) std::cout << "json:   " << std::filesystem::absolute(options.json).string() << "\n";
}

}  // namespace

void add_compare_command(CLI::App& app) {
  CLI::App* command = app.add_subcommand(
      "compare", "run a model over your text, or saved tensors, with dense attention and with each method, and tell what each cost");
  const auto options = std::make_shared<CompareOptions>();
  command->add_option("--model", options->model, "folder of a Hugging Face Llama-family checkpoint");
  command->add_option("--text", options->texts, "files to read; the bound must hold on every one")->expected(1, 1000);
  command->add_option("--qkv", options->qkv,
                      "in place of model and text: a safetensors file with q, k, v [B, H, S, D] and perhaps mask (docs/formats/qkv.md)");
  command->add_option("--mask", options->mask, "of --qkv where its file does not say: causal or full (causal)")
      ->check(CLI::IsMember({"causal", "full"}));
  CLI::Option* length = command->add_option("--length", options->length, "bytes to read of each text (16384)");
  length->check(CLI::Range(int64_t{2}, int64_t{1} << 24));
  command
      ->add_option("--methods", options->methods,
                   "all, or a list: name,name:option=value,option=value,... (by default the 8 rows of the demo; see tilewise methods)")
      ->expected(1, 1000);
  CLI::Option* density = command->add_option("--density", options->density, "sets the budget of every method that has the option density");
  density->check(CLI::Range(0.0, 1.0));
  command
      ->add_option("--needle", options->needles,
                   "also ask the needles of so many bytes (several lengths may be given), from needles.json beside the model")
      ->expected(1, 100)
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 24));
  command->add_flag(
      "--tune", options->has_tune,
      "run each method with the fastest of its settings that holds the bound on the first text (all methods, unless --methods names them)");
  CLI::Option* max_bits = command->add_option("--max-bits", options->max_bits, "bits per byte that the recommended method may add to dense (0.005)");
  max_bits->check(CLI::Range(0.0, 1000.0));
  CLI::Option* max_error = command->add_option("--max-error", options->max_error,
                                               "of --qkv in place of --max-bits: output error that the recommended method may have (0.05)");
  max_error->check(CLI::Range(0.0, 1000.0));
  command->add_option("--recipe", options->recipe, "a recipe file, run as one more row (docs/formats/recipe.md)");
  command->add_option("--seed", options->seed, "of methods that draw by chance (0)")
      ->check(CLI::Range(int64_t{0}, std::numeric_limits<int64_t>::max()));
  command->add_option("--device", options->device, "cpu, or cuda or cuda:N: attention, plans and model on a GPU (cpu)");
  command->add_option("--dtype", options->dtype, "of the model: f32 or bf16 (f32; with --device cuda bf16)")->check(CLI::IsMember({"f32", "bf16"}));
  CLI::Option* random_weights = command->add_option("--random-weights", options->random_weights,
                                                    "a seed: --model is a folder with config.json alone, and weights are drawn, for what a shape "
                                                    "costs (models/llama-3.1-8b-shape); texts are bytes");
  random_weights->check(CLI::Range(int64_t{0}, std::numeric_limits<int64_t>::max()));
  command->add_option("--report", options->report, "write one HTML file that needs no network");
  command->add_option("--json", options->json, "write the figures (docs/formats/compare.md)");
  command->add_option("--save-plans", options->save_plans, "write every plan to this folder (see tilewise plan)");
  add_threads_option(*command, options->threads);
  command->callback([options, density, length, max_bits, max_error, random_weights] {
    options->has_random_weights = random_weights->count() > 0;
    options->has_density = density->count() > 0;
    options->has_length = length->count() > 0;
    options->has_max_bits = max_bits->count() > 0;
    options->has_max_error = max_error->count() > 0;
    run_compare(*options);
  });
}

}  // namespace tilewise::app
