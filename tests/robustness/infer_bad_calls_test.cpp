// SPDX-License-Identifier: Apache-2.0
// Bad calls of infer/ and study/, as bad_calls_test.cpp has those of the library below.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "tests/infer/tiny_checkpoint.h"
#include "tests/robustness/bad_call.h"
#include "tilewise/infer/generate.h"
#include "tilewise/infer/recipe.h"
#include "tilewise/infer/timing.h"
#include "tilewise/study/compare.h"
#include "tilewise/study/head_search.h"
#include "tilewise/study/thresholds.h"

namespace tilewise::testing {
namespace {

using Kind = Error::Kind;

/// A model of 2 layers, 6 heads on 2, 50 tokens in its vocabulary, 4,096 positions.
struct Tiny {
  TemporaryFolder folder;
  TinyCheckpoint checkpoint;
  Context context;

  Tiny() {
    checkpoint.make(1);
    checkpoint.write(folder.path());
  }
};
Tiny& tiny() {
  static Tiny one;
  return one;
}
const Model& model() {
  static const Model loaded = Model::load(tiny().folder.path(), tiny().context);
  return loaded;
}
KvCache cache_of(int64_t capacity) {
  const ModelConfig& c = model().config();
  return {c.num_layers, c.heads_kv, capacity, c.head_dim, host_memory()};
}
std::vector<int32_t> tokens(int64_t count, int32_t token = 3) { return std::vector<int32_t>(static_cast<size_t>(count), token); }

std::vector<BadCall> of_model() {
  const auto forward = [](int64_t count, int32_t token, const std::function<void(ForwardOptions&)>& spoil = {}, int64_t capacity = 20) {
    return [=] {
      KvCache cache = cache_of(capacity);
      ForwardOptions options;
      if (spoil) spoil(options);
      model().forward(tokens(count, token), cache, options, tiny().context);
    };
  };
  // A checkpoint with one thing changed after it was written.
  const auto load = [](const std::function<void(TinyCheckpoint&)>& spoil, const std::function<void(const TemporaryFolder&)>& damage = {}) {
    return [=] {
      const TemporaryFolder folder;
      TinyCheckpoint checkpoint;
      spoil(checkpoint);
      checkpoint.make(1);
      checkpoint.write(folder.path());
      if (damage) damage(folder);
      Model::load(folder.path(), tiny().context);
    };
  };
  const auto file = [load](const char* name, const std::string& bytes) {
    return load([](TinyCheckpoint&) {}, [=](const TemporaryFolder& folder) { TemporaryFolder::write(folder.file(name), bytes); });
  };
  const auto config = [load](const std::string& field) { return load([=](TinyCheckpoint& c) { c.more_config = field; }); };
  return {
      {"Model: no folder", Kind::io, {"/nowhere"}, [] { Model::load("/nowhere", tiny().context); }},
      {"Model: dtype", Kind::dtype, {"f16"}, [] { Model::load(tiny().folder.path(), tiny().context, {.dtype = Dtype::f16}); }},
      {"Model: architecture", Kind::unsupported, {"GPT2LMHeadModel"}, load([](TinyCheckpoint& c) { c.architecture = "GPT2LMHeadModel"; })},
      {"Model: config is empty", Kind::io, {"config.json"}, file("config.json", "")},
      {"Model: config is no JSON", Kind::io, {"config.json"}, file("config.json", "{\"a\"")},
      {"Model: config is a list", Kind::io, {"config.json"}, file("config.json", "[]")},
      {"Model: config of an unknown scaling", Kind::unsupported, {"rope"}, config(R"("rope_scaling": {"rope_type": "spiral", "factor": 2},)")},
      {"Model: config of a scaling without factor", Kind::io, {"factor"}, config(R"("rope_scaling": {"rope_type": "linear"},)")},
      {"Model: tensors are no file", Kind::io, {"model.safetensors"}, file("model.safetensors", "short")},
      {"Model: tensors of another model",
       Kind::io,
       {"model.safetensors"},
       load([](TinyCheckpoint&) {},
            [](const TemporaryFolder& folder) {
              const Tensor one(host_memory(), Dtype::f32, {1});
              one.fill_zero();
              const NamedTensor named[] = {{"other", one.view}};
              write_safetensors(folder.file("model.safetensors"), named);
            })},
      {"Model: forward without a token", Kind::value, {"forward"}, forward(0, 3)},
      {"Model: forward of a token outside", Kind::value, {"50"}, forward(4, 50)},
      {"Model: forward of a token below 0", Kind::value, {"-1"}, forward(4, -1)},
      {"Model: forward past the cache", Kind::value, {"cache"}, forward(21, 3)},
      {"Model: forward with more logits than tokens", Kind::value, {"logits_rows"}, forward(4, 3, [](ForwardOptions& o) { o.logits_rows = 5; })},
      {"Model: forward with logits below 0", Kind::value, {"logits_rows"}, forward(4, 3, [](ForwardOptions& o) { o.logits_rows = -1; })},
      {"Model: forward in chunks below 0", Kind::value, {"chunk_tokens"}, forward(4, 3, [](ForwardOptions& o) { o.chunk_tokens = -2; })},
      {"Model: a cache of another model",
       Kind::value,
       {"cache"},
       [] {
         KvCache cache(3, 2, 20, 8, host_memory());
         model().forward(tokens(4), cache, {}, tiny().context);
       }},
      {"Model: a cache below 0", Kind::value, {"capacity"}, [] { model().make_cache(-1, tiny().context); }},
      {"Model: a cache beyond its positions", Kind::value, {"capacity"}, [] { model().make_cache(int64_t{1} << 40, tiny().context); }},
      {"model_flops: head beyond the tokens", Kind::value, {"model_flops"}, [] { model_flops(model().config(), 5, 0, 6); }},
      {"time_model: repeats", Kind::value, {"time_model", "0"}, [] { time_model(model(), tokens(4), 0, tiny().context); }},
      {"time_model: one token", Kind::value, {"time_model"}, [] { time_model(model(), tokens(1), 1, tiny().context); }},
  };
}

std::vector<BadCall> of_generate() {
  constexpr float kNaN = std::numeric_limits<float>::quiet_NaN(), kInfinity = std::numeric_limits<float>::infinity();
  const auto sample = [](const std::vector<float>& logits, const Sampling& sampling) { return [=] { sample_token(logits, sampling, 0); }; };
  const auto run = [](const std::function<void(GenerateOptions&)>& spoil, int64_t capacity = 20) {
    return [=] {
      KvCache cache = cache_of(capacity);
      GenerateOptions options{.max_tokens = 4};
      spoil(options);
      generate(model(), tokens(5), cache, options, tiny().context);
    };
  };
  return {
      {"sample_token: no logit", Kind::value, {"sample_token", "no logit"}, sample({}, {})},
      {"sample_token: NaN", Kind::value, {"sample_token", "token 1 is NaN"}, sample({0, kNaN}, {})},
      {"sample_token: none finite", Kind::value, {"sample_token", "-inf"}, sample({-kInfinity, -kInfinity}, {})},
      {"sample_token: infinite", Kind::value, {"sample_token", "inf"}, sample({0, kInfinity}, {})},
      {"sample_token: temperature", Kind::value, {"temperature is -1"}, sample({0, 1}, {.temperature = -1})},
      {"sample_token: temperature NaN", Kind::value, {"temperature is nan"}, sample({0, 1}, {.temperature = NAN})},
      {"sample_token: top_k", Kind::value, {"top_k is -1"}, sample({0, 1}, {.top_k = -1})},
      {"sample_token: top_p", Kind::value, {"top_p is 0"}, sample({0, 1}, {.top_p = 0})},
      {"sample_token: top_p above", Kind::value, {"top_p is 1.5"}, sample({0, 1}, {.top_p = 1.5})},
      {"sample_token: top_p NaN", Kind::value, {"top_p is nan"}, sample({0, 1}, {.top_p = NAN})},
      {"generate: max_tokens", Kind::value, {"generate", "max_tokens is 0"}, run([](GenerateOptions& o) { o.max_tokens = 0; })},
      {"generate: a stop token outside", Kind::value, {"generate", "stop token 50"}, run([](GenerateOptions& o) { o.stop_tokens = {50}; })},
      {"generate: a cache too small", Kind::value, {"generate", "need a cache of 8", "takes 7"}, run([](GenerateOptions&) {}, 7)},
      {"generate: sampling", Kind::value, {"generate", "top_p"}, run([](GenerateOptions& o) { o.sampling.top_p = -1; })},
      {"generate: chunk_tokens", Kind::value, {"chunk_tokens"}, run([](GenerateOptions& o) { o.chunk_tokens = -1; })},
  };
}

std::vector<BadCall> of_recipes() {
  static const Recipe good = uniform_recipe(model().config(), {"a_shape", {}});
  const auto changed = [](const std::function<void(Recipe&)>& change) {
    Recipe recipe = good;
    change(recipe);
    return recipe;
  };
  const auto parse = [](const std::string& what, Kind kind, std::vector<std::string> says, const std::string& text) {
    says.emplace_back("recipe.json");
    return BadCall{"parse_recipe: " + what, kind, std::move(says), [text] { parse_recipe(text, "recipe.json"); }};
  };
  const auto with_layers = [](const std::string& layers) {
    return R"({"schema":1,"model":{"layers":2,"heads_q":4,"heads_kv":2,"head_dim":8},"default":{"method":"dense"},"layers":)" + layers + "}";
  };
  static const Tensor q = [] {
    Tensor zeros(host_memory(), Dtype::f32, {1, 6, 40, 8});
    zeros.fill_zero();
    return zeros;
  }();
  static const std::string nowhere = tiny().folder.file("no/folder/recipe.json");
  const auto plan = [](const Recipe& recipe, const TensorView& k, int layer) {
    return [=] { plan_recipe(recipe, {.q = q.view, .k = k, .v = k, .layer = layer}, tiny().context); };
  };
  return {
      {"of: layer", Kind::value, {"layer 9"}, [] { good.of(9, 0); }},
      {"of: head", Kind::value, {"head 6"}, [] { good.of(0, 6); }},
      {"uniform_recipe: method", Kind::value, {"nothing"}, [] { format_recipe(uniform_recipe(model().config(), {"nothing", {}})); }},
      {"read_recipe: missing", Kind::io, {nowhere}, [] { read_recipe(nowhere); }},
      {"read_recipe: a folder", Kind::io, {tiny().folder.path()}, [] { read_recipe(tiny().folder.path()); }},
      {"write_recipe: nowhere", Kind::io, {nowhere}, [] { write_recipe(nowhere, good); }},
      parse("empty", Kind::io, {}, ""),
      parse("no JSON", Kind::io, {}, "{\"schema\": 1"),
      parse("a list", Kind::io, {}, "[]"),
      parse("no schema", Kind::io, {"schema"}, "{}"),
      parse("another schema", Kind::io, {"schema"},
            R"({"schema":2,"model":{"layers":1,"heads_q":1,"heads_kv":1,"head_dim":8},"default":{"method":"dense"}})"),
      parse("an unknown field", Kind::io, {"more"},
            R"({"schema":1,"more":1,"model":{"layers":1,"heads_q":1,"heads_kv":1,"head_dim":8},"default":{"method":"dense"}})"),
      parse("no layers", Kind::value, {"layers"},
            R"({"schema":1,"model":{"layers":0,"heads_q":1,"heads_kv":1,"head_dim":8},"default":{"method":"dense"}})"),
      parse("heads that do not divide", Kind::value, {"heads_kv"},
            R"({"schema":1,"model":{"layers":1,"heads_q":3,"heads_kv":2,"head_dim":8},"default":{"method":"dense"}})"),
      parse("a method that is not there", Kind::value, {"nothing"},
            R"({"schema":1,"model":{"layers":1,"heads_q":1,"heads_kv":1,"head_dim":8},"default":{"method":"nothing"}})"),
      parse("an option out of range", Kind::value, {"tile"},
            R"({"schema":1,"model":{"layers":1,"heads_q":1,"heads_kv":1,"head_dim":8},"default":{"method":"dense","options":{"tile":3}}})"),
      parse("a layer that is not there", Kind::value, {"layers[0]"}, with_layers(R"([{"layer":2,"heads":[]}])")),
      parse("a layer twice", Kind::value, {"layers[1]"}, with_layers(R"([{"layer":1,"heads":[]},{"layer":1,"heads":[]}])")),
      parse("a head that is not there", Kind::value, {"4"}, with_layers(R"([{"layer":1,"heads":[{"heads":[4],"method":"dense"}]}])")),
      parse("a head twice", Kind::value, {"head 1"},
            with_layers(R"([{"layer":1,"heads":[{"heads":[1],"method":"dense"},{"heads":[0,1],"method":"dense"}]}])")),
      parse("no head", Kind::value, {"heads"}, with_layers(R"([{"layer":1,"heads":[{"heads":[],"method":"dense"}]}])")),
      {"format_recipe: what cannot be read", Kind::value, {"heads"}, [=] { format_recipe(changed([](Recipe& r) { r.heads_q = 0; })); }},
      {"check_recipe: layers", Kind::value, {"layers"}, [=] { check_recipe(changed([](Recipe& r) { r.num_layers = 3; }), model().config()); }},
      {"check_recipe: head_dim",
       Kind::value,
       {"another model", "heads of 16"},
       [=] { check_recipe(changed([](Recipe& r) { r.head_dim = 16; }), model().config()); }},
      {"check_recipe: hash",
       Kind::value,
       {"0000000000000000"},
       [=] { check_recipe(changed([](Recipe& r) { r.config_hash = "0000000000000000"; }), model().config()); }},
      {"plan_recipe: layer", Kind::value, {"layer 2"}, plan(good, q.view.slice(1, 0, 2), 2)},
      {"plan_recipe: no k", Kind::shape, {"k"}, plan(good, {}, 0)},
      {"plan_recipe: heads", Kind::shape, {"6", "4"}, plan(changed([](Recipe& r) { r.heads_q = 4; }), q.view.slice(1, 0, 2), 0)},
      {"recipe_attention: heads of the layer",
       Kind::shape,
       {"4"},
       [=] {
         const AttentionFunction attention = recipe_attention(changed([](Recipe& r) { r.heads_q = 4; }));
         attention({.layer = 0, .q = q.view, .k = q.view.slice(1, 0, 2), .v = q.view.slice(1, 0, 2), .out = q.view}, tiny().context);
       }},
      {"method_attention: method", Kind::value, {"nothing"}, [] { method_attention("nothing", {}); }},
      {"method_attention: option", Kind::value, {"nothing"}, [] { method_attention("dense", {{"nothing", true}}); }},
      {"method_attention: range", Kind::value, {"tile"}, [] { method_attention("dense", {{"tile", int64_t{1}}}); }},
  };
}

std::vector<BadCall> of_study() {
  const CompareText text{.name = "text", .tokens = tokens(40)}, short_text{.name = "short", .tokens = tokens(39)};
  const auto bad = [=](const char* what, Kind kind, std::vector<std::string> says, const std::function<void(CompareRequest&)>& spoil) {
    return BadCall{std::string("compare: ") + what, kind, std::move(says), [=] {
                     CompareRequest request{.methods = {{"a_shape", {}}}, .texts = {text}};
                     spoil(request);
                     compare(model(), request, tiny().context);
                   }};
  };
  const auto search = [=](const std::function<void(HeadSearch&)>& spoil) {
    return [=] {
      HeadSearch wanted{.text = text, .candidates = {{"a_shape", {}}}};
      spoil(wanted);
      search_heads(model(), wanted, tiny().context);
    };
  };
  const auto profile = [=](const std::function<void(ProfileSearch&)>& spoil) {
    return [=] {
      ProfileSearch wanted{.texts = {text}, .tile = 16, .stride = 8};
      spoil(wanted);
      profile_map(model(), wanted, tiny().context);
    };
  };
  const StepTable table{.loss = {0, 1}, .save = {0, 2}}, uneven{.loss = {0, 1}, .save = {0}}, endless{.loss = {0, INFINITY}, .save = {0, 2}};
  const auto knapsack = [](const std::vector<StepTable>& heads, int64_t saving) { return [=] { dp_knapsack(heads, saving); }; };
  static const std::string missing = tiny().folder.file("nothing.safetensors"), damaged = tiny().folder.file("damaged.safetensors");
  TemporaryFolder::write(damaged, "12345678{}");
  const auto tensors = [](const std::vector<std::pair<const char*, Shape>>& named, const SafetensorsMetadata& metadata = {}) {
    static int number = 0;
    const std::string path = tiny().folder.file("qkv" + std::to_string(number++));
    std::vector<Tensor> owned;
    std::vector<NamedTensor> list;
    for (const auto& [name, shape] : named) {
      owned.emplace_back(host_memory(), Dtype::f32, shape);
      owned.back().fill_zero();
      list.push_back({name, owned.back().view});
    }
    write_safetensors(path, list, metadata);
    return path;
  };
  const auto qkv = [=](const char* what, Kind kind, std::vector<std::string> says, const std::string& path, QkvMask mask = QkvMask::from_file) {
    return BadCall{std::string("load_qkv: ") + what, kind, std::move(says), [=] { load_qkv(path, mask, tiny().context); }};
  };
  const Shape four{1, 4, 10, 8}, two{1, 2, 10, 8};
  return {
      bad("no text", Kind::value, {"text"}, [](CompareRequest& r) { r.texts.clear(); }),
      bad("texts of two lengths", Kind::value, {"length"}, [=](CompareRequest& r) { r.texts.push_back(short_text); }),
      bad("a text of one token", Kind::value, {"token"}, [](CompareRequest& r) { r.texts = {{.name = "one", .tokens = tokens(1)}}; }),
      bad("a token outside", Kind::value, {"50"}, [](CompareRequest& r) { r.texts[0].tokens[7] = 50; }),
      bad("no such method", Kind::value, {"nothing"}, [](CompareRequest& r) { r.methods = {{"nothing", {}}}; }),
      bad("no such option", Kind::value, {"nothing"}, [](CompareRequest& r) { r.methods = {{"dense", {{"nothing", true}}}}; }),
      bad("density", Kind::value, {"density"}, [](CompareRequest& r) { r.density = 1.5; }),
      bad("density NaN", Kind::value, {"density"}, [](CompareRequest& r) { r.density = NAN; }),
      bad("a recipe of another model", Kind::value, {"layers"},
          [](CompareRequest& r) { r.recipe = uniform_recipe(model().config(), {"dense", {}}), r.recipe->num_layers = 7; }),
      {"copy_to_device: a context on the CPU", Kind::device, {"copy_to_device", "cpu"}, [] { copy_to_device(QkvTensors{}, tiny().context); }},
      {"search_heads: no text", Kind::value, {"text"}, search([](HeadSearch& s) { s.text = {}; })},
      {"search_heads: no candidate", Kind::value, {"candidate"}, search([](HeadSearch& s) { s.candidates.clear(); })},
      {"search_heads: method", Kind::value, {"nothing"}, search([](HeadSearch& s) { s.candidates = {{"nothing", {}}}; })},
      {"search_heads: option", Kind::value, {"local"}, search([](HeadSearch& s) { s.candidates = {{"a_shape", {{"local", int64_t{0}}}}}; })},
      {"search_heads: tolerance", Kind::value, {"tolerance"}, search([](HeadSearch& s) { s.tolerance = -1; })},
      {"profile_map: no text", Kind::value, {"text"}, profile([](ProfileSearch& s) { s.texts.clear(); })},
      {"profile_map: tile", Kind::value, {"stride"}, profile([](ProfileSearch& s) { s.stride = 5; })},
      {"profile_map: coverage", Kind::value, {"coverage"}, profile([](ProfileSearch& s) { s.coverage = 1.5; })},
      {"dp_knapsack: no head", Kind::value, {"dp_knapsack"}, knapsack({}, 1)},
      {"dp_knapsack: uneven tables", Kind::value, {"dp_knapsack"}, knapsack({uneven}, 1)},
      {"dp_knapsack: a loss that is not finite", Kind::value, {"dp_knapsack", "inf"}, knapsack({endless}, 1)},
      {"dp_knapsack: more than there is", Kind::value, {"dp_knapsack", "5"}, knapsack({table, table}, 5)},
      {"dp_knapsack: below 0", Kind::value, {"dp_knapsack", "-1"}, knapsack({table}, -1)},
      {"dp_knapsack_within: no head", Kind::value, {"dp_knapsack"}, [] { dp_knapsack_within({}, 1); }},
      {"dp_knapsack_within: epsilon", Kind::value, {"dp_knapsack_within", "-1"}, [=] { dp_knapsack_within(std::vector{table}, -1); }},
      {"dp_adjustments: more than there are", Kind::value, {"dp_", "9"}, [] { dp_adjustments(std::vector<std::vector<double>>{{0, 1}}, 9); }},
      {"dp_literal: no callback", Kind::value, {"dp_literal"}, [] { dp_literal({.heads = 2, .evaluate = {}}); }},
      {"dp_literal: no head",
       Kind::value,
       {"dp_literal"},
       [] { dp_literal({.heads = 0, .evaluate = [](std::span<const int>) { return StepEvaluation{}; }}); }},
      {"profile_threshold: sizes", Kind::value, {"profile_threshold"}, [] { profile_threshold(std::vector<float>(6), std::vector<float>(4), 2); }},
      {"profile_threshold: coverage",
       Kind::value,
       {"profile_threshold", "2"},
       [] { profile_threshold(std::vector<float>(4), std::vector<float>(4), 2, 2); }},
      {"read_comparison: missing", Kind::io, {"/nowhere"}, [] { read_comparison("/nowhere"); }},
      {"parse_comparison: not JSON", Kind::io, {"out.json", "is not JSON"}, [] { parse_comparison("{", "out.json"); }},
      {"parse_comparison: schema", Kind::io, {"out.json", "schema 7", "reads 1"}, [] { parse_comparison(R"({"schema": 7})", "out.json"); }},
      {"load_needles: no folder", Kind::io, {"/nowhere"}, [] { load_needles("/nowhere", 100); }},
      {"load_needles: length", Kind::value, {"123"}, [] { load_needles("models/reference-lm", 123); }},
      {"copy_to_device: no such GPU",
       Kind::device,
       {"cuda:999"},
       [] {
         Context context = tiny().context;
         context.device = {Device::Type::cuda, 999};
         const float number = 0;
         QkvTensors of_one;
         of_one.q.view = TensorView::of(&number, {1, 1, 1, 1});
         copy_to_device(of_one, context);
       }},
      qkv("missing", Kind::io, {missing}, missing),
      qkv("damaged", Kind::io, {damaged}, damaged),
      qkv("no v", Kind::io, {"v"}, tensors({{"q", four}, {"k", two}})),
      qkv("rank of q", Kind::shape, {"q"}, tensors({{"q", {4, 10, 8}}, {"k", two}, {"v", two}})),
      qkv("heads that do not divide", Kind::shape, {"k"}, tensors({{"q", four}, {"k", {1, 3, 10, 8}}, {"v", {1, 3, 10, 8}}})),
      qkv("lengths of k and v", Kind::shape, {"v"}, tensors({{"q", four}, {"k", two}, {"v", {1, 2, 9, 8}}})),
      qkv("a mask of numbers", Kind::dtype, {"mask"}, tensors({{"q", four}, {"k", two}, {"v", two}, {"mask", {10, 10}}})),
      qkv("is_causal", Kind::value, {"is_causal"}, tensors({{"q", four}, {"k", two}, {"v", two}}, {{"is_causal", "maybe"}})),
      qkv("softmax_scale", Kind::value, {"softmax_scale"}, tensors({{"q", four}, {"k", two}, {"v", two}}, {{"softmax_scale", "-1"}})),
  };
}

TEST(BadCalls, EachOfInferAndStudyNamesWhatIsWrong) {
  expect_bad_calls({{"models", of_model()}, {"generation", of_generate()}, {"recipes", of_recipes()}, {"study", of_study()}}, {"infer", "study"},
                   {"dense_attention", "demo_rows", "released_mass_candidates", "released_output_candidates", "paper_candidates",  // lists
                    "verdict_of", "to_json", "unit", "stepped_threshold"},  // of any figures
                   100);
}

}  // namespace
}  // namespace tilewise::testing
