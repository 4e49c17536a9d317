// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cmath>
#include <cstring>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "../base/temporary_folder.h"
#include "tilewise/base/safetensors.h"
#include "tilewise/infer/model.h"

namespace tilewise {

/// A small random checkpoint, written as Hugging Face writes it, and the same model in plain f64 loops.
struct TinyCheckpoint {
  int layers = 2, hidden = 24, inner = 40, heads_q = 6, heads_kv = 2, head_dim = 8, vocab = 50;
  bool is_tied = false;
  Dtype dtype = Dtype::f32;
  double eps = 1e-5, theta = 10'000;
  std::map<std::string, std::vector<int64_t>> shapes;
  std::map<std::string, std::vector<float>> values;  // as stored, so exact in `dtype`

  void make(unsigned seed) {
    const int64_t q = heads_q * head_dim, kv = heads_kv * head_dim;
    shapes = {{"model.embed_tokens.weight", {vocab, hidden}}, {"model.norm.weight", {hidden}}};
    if (!is_tied) shapes["lm_head.weight"] = {vocab, hidden};
    for (int layer = 0; layer < layers; ++layer) {
      const std::string p = prefix(layer);
      shapes[p + "input_layernorm.weight"] = {hidden};
      shapes[p + "post_attention_layernorm.weight"] = {hidden};
      shapes[p + "self_attn.q_proj.weight"] = {q, hidden};
      shapes[p + "self_attn.k_proj.weight"] = {kv, hidden};
      shapes[p + "self_attn.v_proj.weight"] = {kv, hidden};
      shapes[p + "self_attn.o_proj.weight"] = {hidden, q};
      shapes[p + "mlp.gate_proj.weight"] = {inner, hidden};
      shapes[p + "mlp.up_proj.weight"] = {inner, hidden};
      shapes[p + "mlp.down_proj.weight"] = {hidden, inner};
    }
    std::mt19937 random(seed);
    std::normal_distribution<float> normal(0.0f, 0.35f);
    for (const auto& [name, shape] : shapes) {
      std::vector<float>& to = values[name];
      to.resize(static_cast<size_t>(numel(shape)));
      for (float& value : to) value = stored(shape.size() == 1 ? 1.0f + 0.3f * normal(random) : normal(random));
    }
  }

  std::string config() const {
    const auto field = [](const char* name, int value) { return std::string("\"") + name + "\": " + std::to_string(value) + ", "; };
    return "{\"architectures\": [\"LlamaForCausalLM\"], \"hidden_act\": \"silu\", " + field("vocab_size", vocab) + field("hidden_size", hidden) +
           field("intermediate_size", inner) + field("num_hidden_layers", layers) + field("num_attention_heads", heads_q) +
           field("num_key_value_heads", heads_kv) + field("head_dim", head_dim) + field("max_position_embeddings", 4096) +
           "\"rms_norm_eps\": 1e-5, \"rope_theta\": 10000.0, \"tie_word_embeddings\": " + (is_tied ? "true" : "false") + "}";
  }

  void write(const std::string& directory) const {
    TemporaryFolder::write(directory + "/config.json", config());
    std::vector<Tensor> tensors;
    std::vector<NamedTensor> named;
    for (const auto& [name, shape] : shapes) {
      const Shape as = shape.size() == 1 ? Shape{shape[0]} : Shape{shape[0], shape[1]};
      const Tensor& tensor = tensors.emplace_back(host_memory(), dtype, as);
      const std::vector<float>& from = values.at(name);
      for (size_t i = 0; i < from.size(); ++i) {
        if (dtype == Dtype::f32) static_cast<float*>(tensor.view.raw())[i] = from[i];
        if (dtype == Dtype::bf16) static_cast<bf16*>(tensor.view.raw())[i] = bf16(from[i]);
        if (dtype == Dtype::f16) static_cast<f16*>(tensor.view.raw())[i] = f16(from[i]);
      }
      named.push_back({name, tensor.view});
    }
    write_safetensors(directory + "/model.safetensors", named, {{"format", "pt"}});
  }

  /// Logits [tokens, vocab] of dense causal attention.
  std::vector<double> logits(const std::vector<int32_t>& tokens) const {
    const size_t n = tokens.size(), h = static_cast<size_t>(hidden), d = static_cast<size_t>(head_dim);
    std::vector<std::vector<double>> x(n);
    const std::vector<float>& embedding = values.at("model.embed_tokens.weight");
    for (size_t t = 0; t < n; ++t) x[t].assign(embedding.begin() + tokens[t] * hidden, embedding.begin() + (tokens[t] + 1) * hidden);
    for (int layer = 0; layer < layers; ++layer) {
      const std::string p = prefix(layer);
      std::vector<std::vector<double>> q(n), k(n), v(n);
      for (size_t t = 0; t < n; ++t) {
        const auto normed = norm(x[t], p + "input_layernorm.weight");
        q[t] = rotated(times(normed, p + "self_attn.q_proj.weight"), t);
        k[t] = rotated(times(normed, p + "self_attn.k_proj.weight"), t);
        v[t] = times(normed, p + "self_attn.v_proj.weight");
      }
      for (size_t t = 0; t < n; ++t) {
        std::vector<double> out(static_cast<size_t>(heads_q) * d, 0.0);
        for (size_t head = 0; head < static_cast<size_t>(heads_q); ++head) {
          const size_t from = head * static_cast<size_t>(heads_kv) / static_cast<size_t>(heads_q);
          double sum = 0;
          for (size_t s = 0; s <= t; ++s) {
            double score = 0;
            for (size_t i = 0; i < d; ++i) score += q[t][head * d + i] * k[s][from * d + i];
            const double weight = std::exp(score / std::sqrt(static_cast<double>(d)));
            sum += weight;
            for (size_t i = 0; i < d; ++i) out[head * d + i] += weight * v[s][from * d + i];
          }
          for (size_t i = 0; i < d; ++i) out[head * d + i] /= sum;
        }
        add(x[t], times(out, p + "self_attn.o_proj.weight"));
        const auto normed = norm(x[t], p + "post_attention_layernorm.weight");
        auto gate = times(normed, p + "mlp.gate_proj.weight");
        const auto up = times(normed, p + "mlp.up_proj.weight");
        for (size_t i = 0; i < gate.size(); ++i) gate[i] = gate[i] / (1 + std::exp(-gate[i])) * up[i];
        add(x[t], times(gate, p + "mlp.down_proj.weight"));
      }
    }
    std::vector<double> result;
    for (size_t t = 0; t < n; ++t) {
      const auto row = times(norm(x[t], "model.norm.weight"), is_tied ? "model.embed_tokens.weight" : "lm_head.weight");
      result.insert(result.end(), row.begin(), row.end());
    }
    EXPECT_EQ(h, x[0].size());
    return result;
  }

  static std::string prefix(int layer) { return "model.layers." + std::to_string(layer) + "."; }

 private:
  static int64_t numel(const std::vector<int64_t>& shape) {
    int64_t product = 1;
    for (const int64_t size : shape) product *= size;
    return product;
  }
  float stored(float value) const {
    return dtype == Dtype::bf16 ? static_cast<float>(bf16(value)) : dtype == Dtype::f16 ? static_cast<float>(f16(value)) : value;
  }
  std::vector<double> norm(const std::vector<double>& x, const std::string& weight) const {
    double squares = 0;
    for (const double value : x) squares += value * value;
    std::vector<double> result(x);
    for (size_t i = 0; i < x.size(); ++i)
      result[i] = x[i] / std::sqrt(squares / static_cast<double>(x.size()) + eps) * static_cast<double>(values.at(weight)[i]);
    return result;
  }
  std::vector<double> times(const std::vector<double>& x, const std::string& name) const {
    const std::vector<float>& weight = values.at(name);
    std::vector<double> result(weight.size() / x.size(), 0.0);
    for (size_t o = 0; o < result.size(); ++o) {
      for (size_t i = 0; i < x.size(); ++i) result[o] += static_cast<double>(weight[o * x.size() + i]) * x[i];
    }
    return result;
  }
  std::vector<double> rotated(std::vector<double> x, size_t position) const {
    const size_t d = static_cast<size_t>(head_dim), half = d / 2;
    for (size_t head = 0; head < x.size() / d; ++head) {
      for (size_t i = 0; i < half; ++i) {
        const double angle = static_cast<double>(position) * std::pow(theta, -2.0 * static_cast<double>(i) / static_cast<double>(d));
        double &a = x[head * d + i], &b = x[head * d + i + half];
        const double turned = a * std::cos(angle) - b * std::sin(angle);
        b = b * std::cos(angle) + a * std::sin(angle);
        a = turned;
      }
    }
    return x;
  }
  static void add(std::vector<double>& x, const std::vector<double>& more) {
    for (size_t i = 0; i < x.size(); ++i) x[i] += more[i];
  }
};

/// Dense causal attention by definition, for what the tests ask of the model alone.
inline void plain_attention(const LayerAttention& layer, Context& context) {
  const int64_t heads = layer.q.dim(1), seqlen_q = layer.q.dim(2), seqlen_k = layer.k.dim(2), head_dim = layer.q.dim(3);
  context.parallel_for(heads * seqlen_q, [&](int64_t item, int) {
    const int64_t head = item % heads, row = item / heads, from = head * layer.k.dim(1) / heads;
    std::vector<double> weights;
    double largest = -INFINITY, sum = 0;
    for (int64_t s = 0; s <= row + seqlen_k - seqlen_q; ++s) {
      double score = 0;
      for (int64_t i = 0; i < head_dim; ++i) score += double{layer.q.at<float>(0, head, row, i)} * double{layer.k.at<float>(0, from, s, i)};
      weights.push_back(score / std::sqrt(static_cast<double>(head_dim)));
      largest = std::max(largest, weights.back());
    }
    for (double& weight : weights) sum += weight = std::exp(weight - largest);
    for (int64_t i = 0; i < head_dim; ++i) {
      double total = 0;
      for (size_t s = 0; s < weights.size(); ++s) total += weights[s] * double{layer.v.at<float>(0, from, static_cast<int64_t>(s), i)};
      layer.out.at<float>(0, head, row, i) = static_cast<float>(total / sum);
    }
  });
}

template <class Call>
std::string error_of(Call&& call) {
  try {
    call();
  } catch (const Error& error) {
    return std::string(name(error.kind())) + ": " + error.what();
  }
  return "no error";
}

}  // namespace tilewise
