// SPDX-License-Identifier: Apache-2.0
#include "tilewise/infer/weights.h"

#include <cstring>
#include <map>
#include <utility>

#include "tilewise/base/error.h"
#include "tilewise/infer/checkpoint.h"

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
    if (c.has_qkv_bias) {
      expected[prefix + "self_attn.q_proj.bias"] = {q};
      expected[prefix + "self_attn.k_proj.bias"] = {kv};
      expected[prefix + "self_attn.v_proj.bias"] = {kv};
    }
    if (c.has_output_bias) expected[prefix + "self_attn.o_proj.bias"] = {hidden};
    if (c.has_mlp_bias) {
      expected[prefix + "mlp.gate_proj.bias"] = {inner};
      expected[prefix + "mlp.up_proj.bias"] = {inner};
      expected[prefix + "mlp.down_proj.bias"] = {hidden};
    }
    if (c.has_qk_norm) {
      expected[prefix + "self_attn.q_norm.weight"] = {c.head_dim};
      expected[prefix + "self_attn.k_norm.weight"] = {c.head_dim};
    }
  }
  return expected;
}

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i > 0 ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

void check_tensors(const Checkpoint& checkpoint, const ModelConfig& config) {
  const auto expected = expected_tensors(config);
  for (const auto& [name, shape] : expected) {
    const auto [file, entry] = checkpoint.find(name);
    check(entry != nullptr, Error::Kind::io, checkpoint.path(), ": tensor ", name, " is missing; config.json asks for ", shape_text(shape));
    check(entry->shape == shape, Error::Kind::io, file->path(), ": tensor ", name, " is ", shape_text(entry->shape), ", config.json asks for ",
          shape_text(shape));
    check(entry->dtype == "F32" || entry->dtype == "BF16" || entry->dtype == "F16", Error::Kind::unsupported, file->path(), ": tensor ", name, " is ",
          entry->dtype, "; weights must be F32, BF16 or F16");
  }
  for (const auto& [name, place] : checkpoint.tensors()) {
    // Old checkpoints carry the rotary frequencies; a tied head may be stored beside the embedding that it equals.
    const bool is_known = expected.contains(name) || name.ends_with("rotary_emb.inv_freq") || (config.is_tied && name == "lm_head.weight");
    check(is_known, Error::Kind::unsupported, place.file->path(), ": tensor ", name, " is no part of a ", config.architecture, " of ",
          config.num_layers, " layers with this config.json; it would be left out of the result");
  }
}

/// Reads tensors as f32. Bytes are copied out one by one, so they may lie anywhere in the file.
class Reader {
 public:
  Reader(const Checkpoint& checkpoint, Dtype compute, Context& context) : checkpoint_(checkpoint), compute_(compute), context_(context) {}

  Tensor vector(const std::string& name) const { return tensors({name}, Shape{checkpoint_.find(name).entry->shape[0]}); }
  Tensor matrix(const std::string& name) const {
    const auto& shape = checkpoint_.find(name).entry->shape;
    return tensors({name}, Shape{shape[0], shape[1]});
  }

  /// Weights [out_i, in] one below the other, and their biases behind one another. `names` end before ".weight".
  Linear linear(const std::vector<std::string>& names, bool has_bias, Epilogue epilogue) const {
    context_.check_cancel();
    std::vector<std::string> weights, biases;
    int64_t out = 0, in = 0;
    for (const std::string& name : names) {
      weights.push_back(name + ".weight");
      biases.push_back(name + ".bias");
      const auto& shape = checkpoint_.find(weights.back()).entry->shape;
      out += shape[0];
      in = shape[1];
    }
    const Tensor rows = tensors(weights, Shape{out, in});
    const Tensor bias = has_bias ? tensors(biases, Shape{out}) : Tensor();
    return Linear({.weights = rows.view.data<float>(),
                   .bias = has_bias ? bias.view.data<float>() : nullptr,
                   .out = out,
                   .in = in,
                   .epilogue = epilogue,
                   .compute = compute_},
                  context_.memory);
  }

 private:
  Tensor tensors(const std::vector<std::string>& names, const Shape& shape) const {
    Tensor result(context_.memory, Dtype::f32, shape);
    float* to = result.view.data<float>();
    for (const std::string& name : names) to += convert(name, to);
    return result;
  }

  /// Returns how many numbers it wrote.
  int64_t convert(const std::string& name, float* to) const {
    const Tensor source = checkpoint_.find(name).file->load(name, context_.memory);
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
    return numel;
  }

  const Checkpoint& checkpoint_;
  Dtype compute_;
  Context& context_;
};

}  // namespace

Weights read_weights(const std::string& directory, const ModelConfig& config, Dtype compute, Context& context) {
  const Checkpoint checkpoint(directory);
  check_tensors(checkpoint, config);

  const Reader reader(checkpoint, compute, context);
  Weights weights;
  weights.embedding = reader.matrix("model.embed_tokens.weight");
  weights.final_norm = reader.vector("model.norm.weight");
  weights.head = reader.linear({config.is_tied ? "model.embed_tokens" : "lm_head"}, false, Epilogue::store);
  for (int layer = 0; layer < config.num_layers; ++layer) {
    const std::string prefix = "model.layers." + std::to_string(layer) + ".", attention = prefix + "self_attn.", mlp = prefix + "mlp.";
    LayerWeights part;
    part.attention_norm = reader.vector(prefix + "input_layernorm.weight");
    part.mlp_norm = reader.vector(prefix + "post_attention_layernorm.weight");
    if (config.has_qk_norm) {
      part.q_norm = reader.vector(attention + "q_norm.weight");
      part.k_norm = reader.vector(attention + "k_norm.weight");
    }
    part.qkv = reader.linear({attention + "q_proj", attention + "k_proj", attention + "v_proj"}, config.has_qkv_bias, Epilogue::store);
    part.output = reader.linear({attention + "o_proj"}, config.has_output_bias, Epilogue::add);
    part.gate = reader.linear({mlp + "gate_proj"}, config.has_mlp_bias, Epilogue::silu);
    part.up = reader.linear({mlp + "up_proj"}, config.has_mlp_bias, Epilogue::multiply);
    part.down = reader.linear({mlp + "down_proj"}, config.has_mlp_bias, Epilogue::add);
    weights.layers.push_back(std::move(part));
  }
  return weights;
}

}  // namespace tilewise::infer
