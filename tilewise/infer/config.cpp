// SPDX-License-Identifier: Apache-2.0
#include "tilewise/infer/config.h"

#include <cmath>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>

#include "tilewise/base/error.h"
#include "tilewise/base/file.h"
#include "tilewise/base/hash.h"

namespace tilewise::infer {
namespace {

using Json = nlohmann::json;

constexpr size_t kMaxConfigBytes = 1 << 20;

/// 16 hexadecimal digits over the text. It tells files apart; it is no defence against one made to collide.
std::string hash_of(const std::string& text) {
  uint64_t state = splitmix64(text.size());
  for (const char c : text) state = splitmix64(state ^ static_cast<unsigned char>(c));
  std::string digits(16, '0');
  for (size_t i = 0; i < 16; ++i) digits[i] = "0123456789abcdef"[(state >> (60 - 4 * i)) & 15];
  return digits;
}

/// Reads fields of one object; every message names file and field.
class Fields {
 public:
  Fields(const Json& object, std::string path, std::string prefix = "") : object_(object), path_(std::move(path)), prefix_(std::move(prefix)) {}

  /// The field, or null when it is absent or null.
  const Json* find(const char* name) const {
    const auto found = object_.find(name);
    return found == object_.end() || found->is_null() ? nullptr : &*found;
  }

  int64_t integer(const char* name, int64_t low, int64_t high, std::optional<int64_t> otherwise = {}) const {
    const Json* field = find(name);
    if (field == nullptr && otherwise) return *otherwise;
    check(field != nullptr, Error::Kind::io, path_, ": ", prefix_, name, " is missing; takes a whole number from ", low, " to ", high);
    const bool is_small = field->is_number_integer() && (!field->is_number_unsigned() || field->get<uint64_t>() <= static_cast<uint64_t>(INT64_MAX));
    check(is_small && field->get<int64_t>() >= low && field->get<int64_t>() <= high, Error::Kind::io, path_, ": ", prefix_, name, " is ",
          shown(*field), "; takes a whole number from ", low, " to ", high);
    return field->get<int64_t>();
  }

  double number(const char* name, double low, double high, std::optional<double> otherwise = {}) const {
    const Json* field = find(name);
    if (field == nullptr && otherwise) return *otherwise;
    check(field != nullptr, Error::Kind::io, path_, ": ", prefix_, name, " is missing; takes a number from ", low, " to ", high);
    check(field->is_number() && field->get<double>() >= low && field->get<double>() <= high, Error::Kind::io, path_, ": ", prefix_, name, " is ",
          shown(*field), "; takes a number from ", low, " to ", high);
    return field->get<double>();
  }

  bool boolean(const char* name, bool otherwise) const {
    const Json* field = find(name);
    if (field == nullptr) return otherwise;
    check(field->is_boolean(), Error::Kind::io, path_, ": ", prefix_, name, " is ", shown(*field), "; takes true or false");
    return field->get<bool>();
  }

  std::string string(const char* name, const std::string& otherwise) const {
    const Json* field = find(name);
    if (field == nullptr) return otherwise;
    check(field->is_string(), Error::Kind::io, path_, ": ", prefix_, name, " is ", shown(*field), "; takes a string");
    return field->get<std::string>();
  }

  /// Refuses a feature: `name` must be absent, null or one of the harmless values.
  void refuse_unless(const char* name, std::initializer_list<Json> harmless, const char* why) const {
    const Json* field = find(name);
    if (field == nullptr) return;
    for (const Json& value : harmless) {
      if (*field == value) return;
    }
    fail(Error::Kind::unsupported, path_, ": ", prefix_, name, " is ", shown(*field), ": ", why);
  }

  const std::string& prefix() const { return prefix_; }

  static std::string shown(const Json& value) {
    const std::string text = value.dump(-1, ' ', true, Json::error_handler_t::replace);
    return text.size() <= 80 ? text : text.substr(0, 77) + "...";
  }

 private:
  const Json& object_;
  std::string path_, prefix_;
};

constexpr const char* kPartial = "a head is rotated whole";

/// Factors per channel pair.
std::vector<double> read_factors(const Fields& rope, const char* name, int head_dim, const std::string& path) {
  const Json* field = rope.find(name);
  check(field != nullptr && field->is_array() && field->size() == static_cast<size_t>(head_dim / 2), Error::Kind::io, path, ": ", rope.prefix(), name,
        field == nullptr ? " is missing" : " is " + Fields::shown(*field), "; takes ", head_dim / 2, " numbers, half of head_dim");
  std::vector<double> factors;
  for (const Json& factor : *field) {
    check(factor.is_number() && factor.get<double>() > 0 && factor.get<double>() <= 1e6, Error::Kind::io, path, ": ", rope.prefix(), name, " holds ",
          Fields::shown(factor), "; takes numbers above 0, at most 1e6");
    factors.push_back(factor.get<double>());
  }
  return factors;
}

/// What cosine and sine are multiplied by under yarn, where config.json does not say.
double yarn_attention_factor(const Fields& rope, double factor) {
  const auto scale = [&](double weight) { return factor <= 1 ? 1.0 : .1 * weight * std::log(factor) + 1; };
  const double one = rope.number("mscale", 0, 100, 0.0), all = rope.number("mscale_all_dim", 0, 100, 0.0);
  return one != 0 && all != 0 ? scale(one) / scale(all) : scale(1);
}

RopeScaling read_scaling(const Fields& rope, const Fields& fields, const std::string& kind, const ModelConfig& config, const std::string& path) {
  using Kind = RopeScaling::Kind;
  RopeScaling scaling;
  if (kind == "default") return scaling;
  const int64_t positions_above = fields.integer("original_max_position_embeddings", 1, int64_t{1} << 40, config.max_positions);
  scaling.original_positions = rope.integer("original_max_position_embeddings", 1, int64_t{1} << 40, positions_above);
  if (kind == "longrope" || kind == "su") {
    scaling.kind = Kind::longrope;
    const double reach = static_cast<double>(config.max_positions) / static_cast<double>(scaling.original_positions);
    scaling.factor = rope.number("factor", 1, 1e6, std::max(reach, 1.0));
    scaling.short_factors = read_factors(rope, "short_factor", config.head_dim, path);
    scaling.long_factors = read_factors(rope, "long_factor", config.head_dim, path);
    const double natural =
        scaling.factor <= 1 ? 1 : std::sqrt(1 + std::log(scaling.factor) / std::log(std::max(2.0, static_cast<double>(scaling.original_positions))));
    scaling.attention_factor = rope.number("attention_factor", 1e-6, 1e6, natural);
    return scaling;
  }
  scaling.factor = rope.number("factor", 1, 1e6);
  if (kind == "linear") {
    scaling.kind = Kind::linear;
  } else if (kind == "dynamic") {
    scaling.kind = Kind::dynamic;
    scaling.original_positions = rope.integer("original_max_position_embeddings", 1, int64_t{1} << 40, config.max_positions);
    check(config.head_dim > 2, Error::Kind::io, path, ": head_dim ", config.head_dim,
          " has one pair of channels, which dynamic scaling cannot stretch");
  } else if (kind == "llama3") {
    scaling.kind = Kind::llama3;
    scaling.low_turns = rope.number("low_freq_factor", 1e-6, 1e6);
    scaling.high_turns = rope.number("high_freq_factor", 1e-6, 1e6);
    check(scaling.low_turns < scaling.high_turns, Error::Kind::io, path, ": ", rope.prefix(), "low_freq_factor ", scaling.low_turns,
          " must lie below high_freq_factor ", scaling.high_turns);
  } else if (kind == "yarn") {
    scaling.kind = Kind::yarn;
    scaling.low_turns = rope.number("beta_slow", 1e-6, 1e6, 1.0);
    scaling.high_turns = rope.number("beta_fast", 1e-6, 1e6, 32.0);
    scaling.is_rounded = rope.boolean("truncate", true);
    scaling.attention_factor = rope.number("attention_factor", 1e-6, 1e6, yarn_attention_factor(rope, scaling.factor));
    check(config.rope_theta > 1, Error::Kind::io, path, ": yarn needs a rope_theta above 1, it is ", config.rope_theta);
  } else {
    fail(Error::Kind::unsupported, path, ": ", rope.prefix(), "rope_type \"", kind,
         "\" is not known; known are default, linear, dynamic, llama3, yarn and longrope");
  }
  return scaling;
}

/// theta and scaling, from where the file's generation keeps them.
void read_rope(const Fields& fields, const Json& object, const std::string& path, ModelConfig& config) {
  config.rope_theta = static_cast<float>(fields.number("rope_theta", 1, 1e12, 10'000.0));
  fields.refuse_unless("partial_rotary_factor", {1, 1.0}, kPartial);
  for (const char* name : {"rope_scaling", "rope_parameters"}) {
    if (fields.find(name) == nullptr) continue;
    check(object[name].is_object(), Error::Kind::io, path, ": ", name, " is ", Fields::shown(object[name]), "; takes an object or null");
    const Fields rope(object[name], path, std::string(name) + ".");
    rope.refuse_unless("partial_rotary_factor", {1, 1.0}, kPartial);
    for (const char* kind : {"full_attention", "sliding_attention"})
      rope.refuse_unless(kind, {}, "rotary positions that differ between layers are not known");
    config.rope_theta = static_cast<float>(rope.number("rope_theta", 1, 1e12, config.rope_theta));
    config.rope = read_scaling(rope, fields, rope.string("rope_type", rope.string("type", "default")), config, path);
  }
}

std::vector<int32_t> read_stop_tokens(const Fields& fields, const ModelConfig& config, const std::string& path) {
  const Json* field = fields.find("eos_token_id");
  if (field == nullptr) return {};
  std::vector<int32_t> tokens;
  for (const Json& token : field->is_array() ? *field : Json::array({*field})) {
    check(token.is_number_integer() && token >= 0 && token < config.vocab_size, Error::Kind::io, path, ": eos_token_id is ", Fields::shown(*field),
          "; takes a token below vocab_size, ", config.vocab_size, ", or a list of them");
    tokens.push_back(token.get<int32_t>());
  }
  return tokens;
}

/// What each architecture adds to Llama's layers.
void read_architecture(const Fields& fields, const std::string& path, ModelConfig& config) {
  const bool has_bias = fields.boolean("attention_bias", false);
  const auto refuse_windows = [&] {
    const Json* layers = fields.find("layer_types");
    if (layers == nullptr) return;
    check(layers->is_array(), Error::Kind::io, path, ": layer_types is ", Fields::shown(*layers), "; takes a list");
    for (const Json& layer : *layers) {
      check(layer == "full_attention", Error::Kind::unsupported, path, ": layer_types holds ", Fields::shown(layer),
            "; a window is a method here, not a part of the model: only full_attention is known");
    }
  };
  constexpr const char* kWindow = "a window is a method here, not a part of the model: set it to null and use a_shape";
  refuse_windows();
  if (config.architecture == "LlamaForCausalLM" || config.architecture == "MistralForCausalLM") {
    fields.refuse_unless("sliding_window", {}, kWindow);
    config.has_qkv_bias = config.has_output_bias = has_bias;
    config.has_mlp_bias = fields.boolean("mlp_bias", false);
  } else if (config.architecture == "Qwen2ForCausalLM") {
    fields.refuse_unless("use_sliding_window", {false}, kWindow);
    config.has_qkv_bias = true;
  } else if (config.architecture == "Qwen3ForCausalLM") {
    fields.refuse_unless("use_sliding_window", {false}, kWindow);
    config.has_qkv_bias = config.has_output_bias = has_bias;
    config.has_qk_norm = true;
  } else {
    fail(Error::Kind::unsupported, path, ": architecture \"", config.architecture,
         "\" is not known; known are LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM and Qwen3ForCausalLM");
  }
}

}  // namespace

ModelConfig parse_config(const std::string& text, const std::string& path) {
  Json object;
  try {
    object = Json::parse(text);
  } catch (const Json::exception& error) {
    fail(Error::Kind::io, path, " is not JSON: ", error.what());
  }
  check(object.is_object(), Error::Kind::io, path, " holds ", Fields::shown(object), "; takes an object");
  const Fields fields(object, path);

  ModelConfig config;
  const Json* architectures = fields.find("architectures");
  check(architectures != nullptr, Error::Kind::io, path, ": architectures is missing; takes a list of one name");
  check(architectures->is_array() && architectures->size() == 1 && (*architectures)[0].is_string(), Error::Kind::io, path, ": architectures is ",
        Fields::shown(*architectures), "; takes a list of one name");
  config.architecture = (*architectures)[0].get<std::string>();
  read_architecture(fields, path, config);
  fields.refuse_unless("hidden_act", {"silu"}, "the feed-forward part is computed with silu only");
  fields.refuse_unless("quantization_config", {}, "weights must be f32, bf16 or f16");
  fields.refuse_unless("pretraining_tp", {1}, "slices of a tensor-parallel pretraining are not computed apart");

  config.num_layers = static_cast<int>(fields.integer("num_hidden_layers", 1, 1024));
  config.hidden_size = static_cast<int>(fields.integer("hidden_size", 1, 1 << 16));
  config.intermediate_size = static_cast<int>(fields.integer("intermediate_size", 1, 1 << 20));
  config.heads_q = static_cast<int>(fields.integer("num_attention_heads", 1, 1024));
  config.heads_kv = static_cast<int>(fields.integer("num_key_value_heads", 1, 1024, config.heads_q));
  check(config.heads_q % config.heads_kv == 0, Error::Kind::io, path, ": num_key_value_heads ", config.heads_kv,
        " does not divide num_attention_heads ", config.heads_q);
  if (fields.find("head_dim") == nullptr) {
    check(config.hidden_size % config.heads_q == 0, Error::Kind::io, path, ": num_attention_heads ", config.heads_q, " does not divide hidden_size ",
          config.hidden_size, " and there is no head_dim");
  }
  config.head_dim = static_cast<int>(fields.integer("head_dim", 2, 1024, config.hidden_size / config.heads_q));
  check(config.head_dim >= 2 && config.head_dim % 2 == 0, Error::Kind::io, path, ": head_dim ", config.head_dim,
        " is odd; rotary positions turn pairs");
  config.vocab_size = static_cast<int>(fields.integer("vocab_size", 1, 1 << 22));
  config.max_positions = fields.integer("max_position_embeddings", 1, int64_t{1} << 40);
  config.rms_norm_eps = static_cast<float>(fields.number("rms_norm_eps", 1e-12, 1));
  read_rope(fields, object, path, config);
  config.is_tied = fields.boolean("tie_word_embeddings", false);
  config.stop_tokens = read_stop_tokens(fields, config, path);
  config.hash = hash_of(text);
  return config;
}

ModelConfig read_config(const std::string& directory) {
  const std::string path = directory + "/config.json";
  ModelConfig config = parse_config(read_file(path, kMaxConfigBytes), path);
  std::error_code ignored;
  config.reads_bytes = config.vocab_size == 256 && !std::filesystem::exists(directory + "/tokenizer.json", ignored);
  return config;
}

}  // namespace tilewise::infer
