// SPDX-License-Identifier: Apache-2.0
#include "tilewise/infer/generate.h"

#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <memory>
#include <optional>

#include "app/command.h"
#include "app/method_list.h"
#include "app/terminal.h"
#include "tilewise/base/file.h"
#include "tilewise/infer/recipe.h"

namespace tilewise::app {
namespace {

struct GenerateCommand {
  std::string model, recipe, method, decode = "dense", tokens, dtype = "f32";
  std::vector<std::string> texts, prompts;
  int64_t length = 0, max_tokens = 128, chunk = 0, seed = 0, top_k = 0;
  double temperature = 0, top_p = 1;
  int threads = 0;
  bool ignores_stop_tokens = false;
};

/// An attention by its spelling on the command line: one method with options.
RecipeMethod method_of(const char* option, const std::string& text) {
  const std::vector<MethodChoice> choices = usage([&] { return parse_method_list({text}); });
  if (choices.size() != 1) throw UsageError(std::string(option) + " takes one method, got " + std::to_string(choices.size()));
  return {choices[0].name, choices[0].options};
}

/// Mean density of what a set of layers read.
struct Densities {
  double sum = 0;
  int layers = 0;
  LayerObserver observer() {
    return [this](const LayerReport& report) {
      sum += report.density;
      ++layers;
    };
  }
  double mean() const { return layers == 0 ? 1 : sum / layers; }
};

std::vector<int32_t> bytes_as_tokens(std::span<const std::byte> bytes) {
  std::vector<int32_t> tokens;
  for (const std::byte byte : bytes) tokens.push_back(static_cast<int32_t>(byte));
  return tokens;
}

/// What is read before anything is made, one list a turn. The first turn holds texts or token ids and the first prompt.
std::vector<std::vector<int32_t>> read_turns(const GenerateCommand& options) {
  std::vector<std::vector<int32_t>> turns(1);
  const auto append = [&](const std::vector<int32_t>& more) { turns.back().insert(turns.back().end(), more.begin(), more.end()); };
  for (const std::string& path : options.texts) {
    const MappedFile file(path);
    append(bytes_as_tokens(file.bytes()));
  }
  if (!options.tokens.empty()) {
    const MappedFile file(options.tokens);
    check(file.bytes().size() % sizeof(int32_t) == 0, Error::Kind::value, options.tokens, " has ", file.bytes().size(),
          " bytes; takes token ids of 4 bytes each, little endian");
    std::vector<int32_t> ids(file.bytes().size() / sizeof(int32_t));
    if (!ids.empty()) std::memcpy(ids.data(), file.bytes().data(), file.bytes().size());
    append(ids);
  }
  if (options.length > 0) {
    check(static_cast<int64_t>(turns[0].size()) >= options.length, Error::Kind::value, "--length ", options.length, " is more than the ",
          turns[0].size(), " tokens that were given");
    turns[0].resize(static_cast<size_t>(options.length));
  }
  for (size_t i = 0; i < options.prompts.size(); ++i) {
    if (i > 0) turns.emplace_back();
    append(bytes_as_tokens(std::as_bytes(std::span(options.prompts[i]))));
  }
  for (const auto& turn : turns) {
    if (turn.empty()) throw UsageError("there is nothing to continue: give --text, --tokens or --prompt, and no empty one");
  }
  return turns;
}

void check_options(const GenerateCommand& options) {
  if (options.texts.empty() && options.prompts.empty() && options.tokens.empty())
    throw UsageError("there is nothing to continue: give --text FILE, --prompt TEXT, or --tokens FILE");
  if (!options.tokens.empty() && !(options.texts.empty() && options.prompts.empty()))
    throw UsageError("--tokens gives ids, --text and --prompt give bytes; give one kind");
  if (!options.recipe.empty() && !options.method.empty()) throw UsageError("--recipe and --method both say how to read the prompt; give one");
  if (std::isnan(options.temperature) || std::isnan(options.top_p)) throw UsageError("--temperature and --top-p take numbers");
}

void run_generate(const GenerateCommand& options) {
  check_options(options);
  const auto turns = read_turns(options);
  std::optional<Recipe> recipe;
  if (!options.recipe.empty()) recipe = read_recipe(options.recipe);
  const RecipeMethod prefill = method_of("--method", options.method.empty() ? "dense" : options.method);
  const bool is_same = options.decode == "same";
  const RecipeMethod decode = is_same ? prefill : method_of("--decode", options.decode);

  Context context = make_context(options.threads);
  ProgressLine line;
  line.show("reading " + options.model);
  const Model model = Model::load(options.model, context, {.dtype = options.dtype == "bf16" ? Dtype::bf16 : Dtype::f32});
  const ModelConfig& config = model.config();
  check(config.reads_bytes || !options.tokens.empty(), Error::Kind::unsupported, options.model, " has a vocabulary of ", config.vocab_size,
        " tokens, and --text and --prompt are bytes: give ids with --tokens");
  if (recipe) check_recipe(*recipe, config);

  int64_t capacity = 0;
  for (const auto& turn : turns) capacity += static_cast<int64_t>(turn.size()) + options.max_tokens;
  check(capacity <= config.max_positions, Error::Kind::value, "prompts and --max-tokens together take ", capacity,
        " positions, the model was made for ", config.max_positions, "; give less, --length or a smaller --max-tokens");
  const auto cache = model.make_cache(capacity, context);

  Densities read, made;
  const auto attention = [&](const RecipeMethod& use, bool is_recipe, Densities& densities) {
    return is_recipe ? recipe_attention(*recipe, densities.observer()) : method_attention(use.method, use.options, densities.observer());
  };
  GenerateOptions generating;
  generating.max_tokens = options.max_tokens;
  generating.sampling = {options.temperature, options.top_k, options.top_p, static_cast<uint64_t>(options.seed)};
  if (!options.ignores_stop_tokens) generating.stop_tokens = config.stop_tokens;
  generating.prefill = attention(prefill, recipe.has_value(), read);
  generating.decode = attention(decode, recipe.has_value() && is_same, made);
  generating.chunk_tokens = options.chunk;
  generating.progress = [&](int done, int of) { line.show("prompt: layer " + std::to_string(done) + " of " + std::to_string(of)); };
  generating.on_token = [&](int32_t token) {
    line.clear();
    if (config.reads_bytes) {
      std::fputc(token, stdout);
    } else {
      std::fprintf(stdout, "%d\n", token);
    }
    return std::fflush(stdout) == 0;
  };

  std::vector<int32_t> carried;  // the last token of the turn before, which its cache does not hold
  for (size_t i = 0; i < turns.size(); ++i) {
    std::vector<int32_t> prompt = carried;
    prompt.insert(prompt.end(), turns[i].begin(), turns[i].end());
    read = made = {};
    const GenerateResult result = generate(model, prompt, *cache, generating, context);
    line.clear();
    check(result.end != GenerateResult::End::caller, Error::Kind::io, "cannot write to standard output");
    carried = {result.tokens.back()};
    if (config.reads_bytes) std::fputc('\n', stdout);
    std::fprintf(stderr, "prompt %zu: %lld tokens in %.2f s (attention %.2f s, density %.3f); %zu tokens at %.1f a second (density %.3f)%s\n", i + 1,
                 static_cast<long long>(result.prompt_tokens), result.prefill.total_ms / 1e3, result.prefill.attention_ms / 1e3, read.mean(),
                 result.tokens.size(), result.tokens_per_second(), made.mean(),
                 result.end == GenerateResult::End::stop_token ? ", ended by a stop token" : "");
  }
}

}  // namespace

void add_generate_command(CLI::App& app) {
  CLI::App* command =
      app.add_subcommand("generate", "continue a text: the prompt with any method, every new token dense or with a method of its own");
  const auto options = std::make_shared<GenerateCommand>();
  constexpr int64_t kMost = int64_t{1} << 30;
  command->add_option("--model", options->model, "folder of a Hugging Face Llama-family checkpoint")->required();
  command->add_option("--text", options->texts, "files to read, one behind the other")->expected(1, 1000);
  command->add_option("--tokens", options->tokens, "a file of token ids, 4 bytes each, for models that do not read bytes; ids are printed");
  command->add_option("--length", options->length, "read only so many tokens of --text or --tokens")->check(CLI::Range(int64_t{1}, kMost));
  command->add_option("--prompt", options->prompts, "text behind the files; each further --prompt is a turn of its own, behind the answer before it")
      ->expected(1)
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
  command->add_option("--method", options->method, "reads prompts: name:option=value,... (dense)");
  command->add_option("--recipe", options->recipe, "reads prompts: a method per layer and head (docs/formats/recipe.md)");
  command->add_option("--decode", options->decode, "makes tokens: dense, same (as prompts are read), or a method (dense)");
  command->add_option("--max-tokens", options->max_tokens, "so many tokens at most, per prompt (128)")->check(CLI::Range(int64_t{1}, kMost));
  command->add_option("--temperature", options->temperature, "0: the most likely token; above: draw (0)")->check(CLI::Range(0.0, 100.0));
  command->add_option("--top-k", options->top_k, "draw among the k most likely; 0: all (0)")->check(CLI::Range(int64_t{0}, kMost));
  command->add_option("--top-p", options->top_p, "draw among the fewest whose probabilities reach p (1)")->check(CLI::Range(0.0, 1.0));
  command->add_option("--seed", options->seed, "of the draws (0)")->check(CLI::Range(int64_t{0}, std::numeric_limits<int64_t>::max()));
  command->add_option("--chunk", options->chunk, "tokens of a prompt that are read together; less takes less memory; 0: all (0)")
      ->check(CLI::Range(int64_t{0}, kMost));
  command->add_option("--dtype", options->dtype, "f32 or bf16 (f32)")->check(CLI::IsMember({"f32", "bf16"}));
  command->add_flag("--ignore-stop", options->ignores_stop_tokens, "go on behind the tokens that end a text");
  add_threads_option(*command, options->threads);
  command->callback([options] { run_generate(*options); });
}

}  // namespace tilewise::app
