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

  static std::string shown(const Json& value) {
    const std::string text = value.dump(-1, ' ', true, Json::error_handler_t::replace);
    return text.size() <= 80 ? text : text.substr(0, 77) + "...";
  }

 private:
  const Json& object_;
  std::string path_, prefix_;
};

/// theta, from where the file's generation keeps it; any scaling of positions is refused.
double read_rope(const Fields& fields, const Json& object, const std::string& path) {
  constexpr const char* kWhy =
      "only plain rotary positions are computed; scaled variants (linear, dynamic, yarn, longrope, llama3) come in a later release";
  double theta = fields.number("rope_theta", 1, 1e12, 10'000.0);
  for (const char* name : {"rope_scaling", "rope_parameters"}) {
    if (fields.find(name) == nullptr) continue;
    check(object[name].is_object(), Error::Kind::io, path, ": ", name, " is ", Fields::shown(object[name]), "; takes an object or null");
    const Fields rope(object[name], path, std::string(name) + ".");
    rope.refuse_unless("rope_type", {"default"}, kWhy);
    rope.refuse_unless("type", {"default"}, kWhy);
    rope.refuse_unless("partial_rotary_factor", {1, 1.0}, "a head is rotated whole");
    theta = rope.number("rope_theta", 1, 1e12, theta);
  }
  return theta;
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
  check(config.architecture == "LlamaForCausalLM" || config.architecture == "MistralForCausalLM", Error::Kind::unsupported, path, ": architecture ",
        Fields::shown((*architectures)[0]), " is not known; known are LlamaForCausalLM and MistralForCausalLM");
  fields.refuse_unless("hidden_act", {"silu"}, "the feed-forward part is computed with silu only");
  fields.refuse_unless("attention_bias", {false}, "linear layers have no bias here");
  fields.refuse_unless("mlp_bias", {false}, "linear layers have no bias here");
  fields.refuse_unless("sliding_window", {}, "a window is a method here, not a part of the model: set it to null and use a_shape");
  fields.refuse_unless("layer_types", {Json::array()}, "layers of several kinds are not known");
  fields.refuse_unless("quantization_config", {}, "weights must be f32, bf16 or f16");
  fields.refuse_unless("pretraining_tp", {1}, "slices of a tensor-parallel pretraining are not computed apart");
  fields.refuse_unless("partial_rotary_factor", {1, 1.0}, "a head is rotated whole");

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
  config.rope_theta = static_cast<float>(read_rope(fields, object, path));
  config.is_tied = fields.boolean("tie_word_embeddings", false);
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

void refuse_missing_weights(const std::string& directory) {
  std::error_code ignored;
  const auto has = [&](const char* name) { return std::filesystem::exists(directory + "/" + name, ignored); };
  check(!has("model.safetensors.index.json"), Error::Kind::unsupported, directory,
        ": the checkpoint is in several files (model.safetensors.index.json); only one model.safetensors is read, merge them into it");
  check(!has("pytorch_model.bin") && !has("pytorch_model.bin.index.json"), Error::Kind::unsupported, directory,
        ": the weights are a pickle (pytorch_model.bin), which can run code; save the model as safetensors");
  fail(Error::Kind::io, directory, ": there is no model.safetensors in it");
}

}  // namespace tilewise::infer
