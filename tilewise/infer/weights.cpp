// SPDX-License-Identifier: Apache-2.0
#include "tilewise/infer/weights.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <utility>

#include "tilewise/base/error.h"
#include "tilewise/infer/checkpoint.h"
#include "tilewise/infer/drawn_weight.h"

namespace tilewise::infer {
namespace {

constexpr float kDeviation = .02f;          // initializer_range of Llama's configurations
constexpr int64_t kDrawnPerItem = 1 << 16;  // a fraction of a millisecond

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

/// The same tensor of the same seed, whatever else the model holds.
uint64_t key_of(uint64_t seed, const std::string& name) {
  uint64_t key = splitmix64(seed);
  for (const char c : name) key = splitmix64(key ^ static_cast<unsigned char>(c));
  return key;
}

template <class From>
void widen(const TensorView& from, float* to) {
  for (int64_t i = 0; i < from.numel(); ++i) to[i] = static_cast<float>(from.data<From>()[i]);
}

/// Makes the tensors and layers of the CPU.
class Reader {
 public:
  Reader(const WeightSource& source, Dtype compute, Context& context) : source_(source), compute_(compute), context_(context) {}

  Tensor vector(const std::string& name) const { return tensors({name}, Shape{source_.numel(name)}); }
  Tensor matrix(const std::string& name) const { return tensors({name}, Shape{source_.shape(name)[0], source_.shape(name)[1]}); }

  Linear linear(const LinearNames& names, Epilogue epilogue) const {
    context_.check_cancel();
    std::vector<std::string> weights, biases;
    int64_t out = 0, in = 0;
    for (const std::string& name : names.parts) {
      weights.push_back(name + ".weight");
      biases.push_back(name + ".bias");
      out += source_.shape(weights.back())[0];
      in = source_.shape(weights.back())[1];
    }
    const Tensor rows = tensors(weights, Shape{out, in});
    const Tensor bias = names.has_bias ? tensors(biases, Shape{out}) : Tensor();
    return Linear({.weights = rows.view.data<float>(),
                   .bias = names.has_bias ? bias.view.data<float>() : nullptr,
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
    for (const std::string& name : names) to += source_.read(name, to, context_);
    return result;
  }

  const WeightSource& source_;
  Dtype compute_;
  Context& context_;
};

}  // namespace

LayerNames names_of_layer(const ModelConfig& config, int layer) {
  const std::string prefix = "model.layers." + std::to_string(layer) + ".", attention = prefix + "self_attn.", mlp = prefix + "mlp.";
  LayerNames names;
  names.attention_norm = prefix + "input_layernorm.weight";
  names.mlp_norm = prefix + "post_attention_layernorm.weight";
  if (config.has_qk_norm) {
    names.q_norm = attention + "q_norm.weight";
    names.k_norm = attention + "k_norm.weight";
  }
  names.qkv = {{attention + "q_proj", attention + "k_proj", attention + "v_proj"}, config.has_qkv_bias};
  names.output = {{attention + "o_proj"}, config.has_output_bias};
  names.gate = {{mlp + "gate_proj"}, config.has_mlp_bias};
  names.up = {{mlp + "up_proj"}, config.has_mlp_bias};
  names.down = {{mlp + "down_proj"}, config.has_mlp_bias};
  return names;
}

LinearNames names_of_head(const ModelConfig& config) { return {{config.is_tied ? "model.embed_tokens" : "lm_head"}, false}; }

WeightSource::WeightSource(const std::string& directory, const ModelConfig& config, std::optional<uint64_t> random_seed)
    : shapes_(expected_tensors(config)), seed_(random_seed) {
  if (seed_) return;
  checkpoint_ = std::make_unique<Checkpoint>(directory);
  check_tensors(*checkpoint_, config);
}

WeightSource::~WeightSource() = default;

int64_t WeightSource::numel(const std::string& name) const {
  int64_t product = 1;
  for (const int64_t size : shape(name)) product *= size;
  return product;
}

std::optional<DrawnTensor> WeightSource::drawn(const std::string& name) const {
  if (!seed_ || shape(name).size() < 2) return {};
  return DrawnTensor{key_of(*seed_, name), kDeviation};
}

int64_t WeightSource::read(const std::string& name, float* to, const Context& context) const {
  const int64_t count = numel(name);
  if (const auto draw = drawn(name)) {
    context.parallel_for((count + kDrawnPerItem - 1) / kDrawnPerItem, [&](int64_t item, int) {
      const int64_t last = std::min(count, (item + 1) * kDrawnPerItem);
      for (int64_t i = item * kDrawnPerItem; i < last; ++i) to[i] = drawn_weight(draw->key, i, draw->deviation);
    });
    return count;
  }
  if (seed_) {
    std::fill_n(to, count, name.ends_with(".bias") ? 0.0f : 1.0f);
    return count;
  }
  // Bytes are copied out one by one, so they may lie anywhere in the file.
  const Tensor source = checkpoint_->find(name).file->load(name, context.memory);
  if (source.view.dtype() == Dtype::f32) {
    std::memcpy(to, source.view.raw(), static_cast<size_t>(count) * sizeof(float));
  } else if (source.view.dtype() == Dtype::bf16) {
    widen<bf16>(source.view, to);
  } else {
    widen<f16>(source.view, to);
  }
  return count;
}

Weights read_weights(const WeightSource& source, const ModelConfig& config, Dtype compute, Context& context) {
  const Reader reader(source, compute, context);
  Weights weights;
  weights.embedding = reader.matrix(kEmbeddingName);
  weights.final_norm = reader.vector(kFinalNormName);
  weights.head = reader.linear(names_of_head(config), Epilogue::store);
  for (int layer = 0; layer < config.num_layers; ++layer) {
    const LayerNames names = names_of_layer(config, layer);
    LayerWeights part;
    part.attention_norm = reader.vector(names.attention_norm);
    part.mlp_norm = reader.vector(names.mlp_norm);
    if (config.has_qk_norm) {
      part.q_norm = reader.vector(names.q_norm);
      part.k_norm = reader.vector(names.k_norm);
    }
    part.qkv = reader.linear(names.qkv, Epilogue::store);
    part.output = reader.linear(names.output, Epilogue::add);
    part.gate = reader.linear(names.gate, Epilogue::silu);
    part.up = reader.linear(names.up, Epilogue::multiply);
    part.down = reader.linear(names.down, Epilogue::add);
    weights.layers.push_back(std::move(part));
  }
  return weights;
}

}  // namespace tilewise::infer
