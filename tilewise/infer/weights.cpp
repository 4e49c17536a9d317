// SPDX-License-Identifier: Apache-2.0
#include "tilewise/infer/weights.h"

#include <cstring>
#include <filesystem>
#include <map>
#include <utility>

#include "tilewise/base/error.h"
#include "tilewise/base/safetensors.h"
#include "tilewise/infer/config.h"

namespace tilewise::infer {
namespace {

/// What a checkpoint of this architecture must hold: shapes by name.
std::map<std::string, std::vector<int64_t>> expected_tensors(const ModelConfig& c) {
  const int64_t hidden = c.hidden_size, inner = c.intermediate_size;
  const int64_t q = int64_t{c.heads_q} * c.head_dim, kv = int64_t{c.heads_kv} * c.head_dim;
  std::map<std::string, std::vector<int64_t>> expected = {{"model.embed_tokens.weight", {c.vocab_size, hidden}}, {"model.norm.weight", {hidden}}};
  if (!c.is_tied) expected["lm_head.weight"] = {c.vocab_size, hidden};
  for (int layer = 0; layer < c.num_layers; ++layer) {
    const std::string prefix = "model.layers." + std::to_string(layer) + ".";
    expected[prefix + "input_layernorm.weight"] = {hidden};
    expected[prefix + "post_attention_layernorm.weight"] = {hidden};
    expected[prefix + "self_attn.q_proj.weight"] = {q, hidden};
    expected[prefix + "self_attn.k_proj.weight"] = {kv, hidden};
    expected[prefix + "self_attn.v_proj.weight"] = {kv, hidden};
    expected[prefix + "self_attn.o_proj.weight"] = {hidden, q};
    expected[prefix + "mlp.gate_proj.weight"] = {inner, hidden};
    expected[prefix + "mlp.up_proj.weight"] = {inner, hidden};
    expected[prefix + "mlp.down_proj.weight"] = {hidden, inner};
  }
  return expected;
}

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i > 0 ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

void check_tensors(const SafetensorsFile& file, const ModelConfig& config) {
  const auto expected = expected_tensors(config);
  for (const auto& [name, shape] : expected) {
    const SafetensorsEntry* entry = file.find(name);
    check(entry != nullptr, Error::Kind::io, file.path(), ": tensor ", name, " is missing; config.json asks for ", shape_text(shape));
    check(entry->shape == shape, Error::Kind::io, file.path(), ": tensor ", name, " is ", shape_text(entry->shape), ", config.json asks for ",
          shape_text(shape));
    check(entry->dtype == "F32" || entry->dtype == "BF16" || entry->dtype == "F16", Error::Kind::unsupported, file.path(), ": tensor ", name, " is ",
          entry->dtype, "; weights must be F32, BF16 or F16");
  }
  for (const SafetensorsEntry& entry : file.entries()) {
    // Old checkpoints carry the rotary frequencies; a tied head may be stored beside the embedding that it equals.
    const bool is_known =
        expected.contains(entry.name) || entry.name.ends_with("rotary_emb.inv_freq") || (config.is_tied && entry.name == "lm_head.weight");
    check(is_known, Error::Kind::unsupported, file.path(), ": tensor ", entry.name, " is no part of a ", config.architecture, " of ",
          config.num_layers, " layers without biases; it would be left out of the result");
  }
}

/// Reads tensors as f32. Bytes are copied out one by one, so they may lie anywhere in the file.
class Reader {
 public:
  Reader(const SafetensorsFile& file, Context& context) : file_(file), context_(context) {}

  Tensor tensor(const std::string& name, const Shape& shape) const {
    Tensor result(context_.memory, Dtype::f32, shape);
    convert(name, result.view.data<float>());
    return result;
  }

  /// Tensors [out_i, in] one below the other.
  Linear linear(const std::vector<std::string>& names, int64_t in, Epilogue epilogue) const {
    context_.check_cancel();
    int64_t out = 0;
    for (const std::string& name : names) out += file_.find(name)->shape[0];
    const Tensor rows(context_.memory, Dtype::f32, Shape{out, in});
    float* to = rows.view.data<float>();
    for (const std::string& name : names) {
      convert(name, to);
      to += file_.find(name)->shape[0] * in;
    }
    return Linear(rows.view.data<float>(), out, in, epilogue, context_.memory);
  }

 private:
  void convert(const std::string& name, float* to) const {
    const Tensor source = file_.load(name, context_.memory);
    const int64_t numel = source.view.numel();
    if (source.view.dtype() == Dtype::f32) {
      std::memcpy(to, source.view.raw(), static_cast<size_t>(numel) * sizeof(float));
    } else if (source.view.dtype() == Dtype::bf16) {
      const bf16* from = source.view.data<bf16>();
      for (int64_t i = 0; i < numel; ++i) to[i] = static_cast<float>(from[i]);
    } else {
      const f16* from = source.view.data<f16>();
      for (int64_t i = 0; i < numel; ++i) to[i] = static_cast<float>(from[i]);
    }
  }

  const SafetensorsFile& file_;
  Context& context_;
};

}  // namespace

Weights read_weights(const std::string& directory, const ModelConfig& config, Context& context) {
  const std::string path = directory + "/model.safetensors";
  std::error_code ignored;
  if (!std::filesystem::exists(path, ignored)) refuse_missing_weights(directory);
  const SafetensorsFile file(path);
  check_tensors(file, config);

  const Reader reader(file, context);
  const int64_t hidden = config.hidden_size;
  Weights weights;
  weights.embedding = reader.tensor("model.embed_tokens.weight", {config.vocab_size, hidden});
  weights.final_norm = reader.tensor("model.norm.weight", {hidden});
  weights.head = reader.linear({config.is_tied ? "model.embed_tokens.weight" : "lm_head.weight"}, hidden, Epilogue::store);
  for (int layer = 0; layer < config.num_layers; ++layer) {
    const std::string prefix = "model.layers." + std::to_string(layer) + ".";
    LayerWeights part;
    part.attention_norm = reader.tensor(prefix + "input_layernorm.weight", {hidden});
    part.mlp_norm = reader.tensor(prefix + "post_attention_layernorm.weight", {hidden});
    part.qkv = reader.linear({prefix + "self_attn.q_proj.weight", prefix + "self_attn.k_proj.weight", prefix + "self_attn.v_proj.weight"}, hidden,
                             Epilogue::store);
    part.output = reader.linear({prefix + "self_attn.o_proj.weight"}, int64_t{config.heads_q} * config.head_dim, Epilogue::add);
    part.gate = reader.linear({prefix + "mlp.gate_proj.weight"}, hidden, Epilogue::silu);
    part.up = reader.linear({prefix + "mlp.up_proj.weight"}, hidden, Epilogue::multiply);
    part.down = reader.linear({prefix + "mlp.down_proj.weight"}, config.intermediate_size, Epilogue::add);
    weights.layers.push_back(std::move(part));
  }
  return weights;
}

}  // namespace tilewise::infer
