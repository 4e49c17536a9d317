// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <algorithm>
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
  std::string architecture = "LlamaForCausalLM";
  bool has_qkv_bias = false, has_output_bias = false, has_mlp_bias = false, has_qk_norm = false;
  int files = 1;                      // above 1: written in several, with an index
  std::string more_config;            // fields, each followed by a comma
  std::vector<double> frequencies;    // [head_dim / 2] angle per position; empty: theta^(-2 i / head_dim)
  double attention_factor = 1;        // of cosine and sine
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
      if (has_qkv_bias) shapes[p + "self_attn.q_proj.bias"] = {q}, shapes[p + "self_attn.k_proj.bias"] = shapes[p + "self_attn.v_proj.bias"] = {kv};
      if (has_output_bias) shapes[p + "self_attn.o_proj.bias"] = {hidden};
      if (has_mlp_bias) shapes[p + "mlp.gate_proj.bias"] = shapes[p + "mlp.up_proj.bias"] = {inner}, shapes[p + "mlp.down_proj.bias"] = {hidden};
      if (has_qk_norm) shapes[p + "self_attn.q_norm.weight"] = shapes[p + "self_attn.k_norm.weight"] = {head_dim};
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
    return "{\"architectures\": [\"" + architecture + "\"], \"hidden_act\": \"silu\", " + more_config + field("vocab_size", vocab) +
           field("hidden_size", hidden) + field("intermediate_size", inner) + field("num_hidden_layers", layers) +
           field("num_attention_heads", heads_q) + field("num_key_value_heads", heads_kv) + field("head_dim", head_dim) +
           field("max_position_embeddings", 4096) +
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
    if (files == 1) {
      write_safetensors(directory + "/model.safetensors", named, {{"format", "pt"}});
      return;
    }
    std::vector<std::vector<NamedTensor>> parts(static_cast<size_t>(files));
    std::string map;
    for (size_t i = 0; i < named.size(); ++i) {
      const size_t part = i % parts.size();
      parts[part].push_back(named[i]);
      map += (map.empty() ? "\"" : ", \"") + named[i].name + "\": \"" + part_name(static_cast<int>(part)) + "\"";
    }
    for (int part = 0; part < files; ++part)
      write_safetensors(directory + "/" + part_name(part), parts[static_cast<size_t>(part)], {{"format", "pt"}});
    TemporaryFolder::write(directory + "/model.safetensors.index.json", "{\"metadata\": {\"total_size\": 1}, \"weight_map\": {" + map + "}}");
  }
  std::string part_name(int part) const { return "model-0000" + std::to_string(part + 1) + "-of-0000" + std::to_string(files) + ".safetensors"; }

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
        q[t] = rotated(head_norm(linear(normed, p + "self_attn.q_proj"), p + "self_attn.q_norm.weight"), t);
        k[t] = rotated(head_norm(linear(normed, p + "self_attn.k_proj"), p + "self_attn.k_norm.weight"), t);
        v[t] = linear(normed, p + "self_attn.v_proj");
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
        add(x[t], linear(out, p + "self_attn.o_proj"));
        const auto normed = norm(x[t], p + "post_attention_layernorm.weight");
        auto gate = linear(normed, p + "mlp.gate_proj");
        const auto up = linear(normed, p + "mlp.up_proj");
        for (size_t i = 0; i < gate.size(); ++i) gate[i] = gate[i] / (1 + std::exp(-gate[i])) * up[i];
        add(x[t], linear(gate, p + "mlp.down_proj"));
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
  std::vector<double> linear(const std::vector<double>& x, const std::string& name) const {
    std::vector<double> result = times(x, name + ".weight");
    if (const auto bias = values.find(name + ".bias"); bias != values.end()) {
      for (size_t i = 0; i < result.size(); ++i) result[i] += static_cast<double>(bias->second[i]);
    }
    return result;
  }
  std::vector<double> head_norm(std::vector<double> x, const std::string& weight) const {
    if (!has_qk_norm) return x;
    const auto d = static_cast<std::ptrdiff_t>(head_dim);
    for (auto head = x.begin(); head != x.end(); head += d) {
      const auto normed = norm(std::vector<double>(head, head + d), weight);
      std::copy(normed.begin(), normed.end(), head);
    }
    return x;
  }
  std::vector<double> rotated(std::vector<double> x, size_t position) const {
    const size_t d = static_cast<size_t>(head_dim), half = d / 2;
    for (size_t head = 0; head < x.size() / d; ++head) {
      for (size_t i = 0; i < half; ++i) {
        const double plain = std::pow(theta, -2.0 * static_cast<double>(i) / static_cast<double>(d));
        const double angle = static_cast<double>(position) * (frequencies.empty() ? plain : frequencies[i]);
        const double c = std::cos(angle) * attention_factor, s = std::sin(angle) * attention_factor;
        double &a = x[head * d + i], &b = x[head * d + i + half];
        const double turned = a * c - b * s;
        b = b * c + a * s;
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
