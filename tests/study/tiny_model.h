// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "tests/base/temporary_folder.h"
#include "tilewise/base/hash.h"
#include "tilewise/base/safetensors.h"

namespace tilewise::study {

/// A byte-level Llama with drawn weights, and its forward pass in plain loops and f64: what compare's figures are held against.
class TinyModel {
 public:
  static constexpr int kLayers = 2, kHidden = 32, kHeadsQ = 4, kHeadsKv = 2, kHeadDim = 16, kInner = 48, kVocab = 256;
  static constexpr double kTheta = 10000, kEps = 1e-5;

  /// Which keys a query of a head reads; dense where it returns true for all.
  using Reads = std::function<bool(int layer, int head, int64_t query, int64_t key)>;

  struct Head {
    double recall = 0, error_square = 0, dense_square = 0;
  };
  struct Result {
    std::vector<std::vector<double>> logits;  // [tokens][vocab]
    std::vector<Head> heads;                  // by layer, then head
    double bits_per_byte = 0;
  };

  TinyModel() {
    draw("model.embed_tokens.weight", kVocab, kHidden, 1.0);
    draw("lm_head.weight", kVocab, kHidden, .5);
    draw("model.norm.weight", kHidden, 0, 1.0);
    for (int layer = 0; layer < kLayers; ++layer) {
      const std::string at = "model.layers." + std::to_string(layer) + ".";
      draw(at + "input_layernorm.weight", kHidden, 0, 1.0);
      draw(at + "post_attention_layernorm.weight", kHidden, 0, 1.0);
      draw(at + "self_attn.q_proj.weight", kHeadsQ * kHeadDim, kHidden, .5);
      draw(at + "self_attn.k_proj.weight", kHeadsKv * kHeadDim, kHidden, .5);
      draw(at + "self_attn.v_proj.weight", kHeadsKv * kHeadDim, kHidden, .3);
      draw(at + "self_attn.o_proj.weight", kHidden, kHeadsQ * kHeadDim, .3);
      draw(at + "mlp.gate_proj.weight", kInner, kHidden, .2);
      draw(at + "mlp.up_proj.weight", kInner, kHidden, .2);
      draw(at + "mlp.down_proj.weight", kHidden, kInner, .2);
    }
  }

  void save(const std::string& folder) const {
    std::vector<NamedTensor> tensors;
    for (const auto& [name, tensor] : weights_) {
      const Shape shape = tensor.columns > 0 ? Shape{tensor.rows, tensor.columns} : Shape{tensor.rows};
      tensors.push_back({name, TensorView::of(tensor.values.data(), shape)});
    }
    write_safetensors(folder + "/model.safetensors", tensors);
    TemporaryFolder::write(
        folder + "/config.json",
        R"({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 256, "hidden_size": 32, "intermediate_size": 48,
 "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "rms_norm_eps": 1e-05, "rope_theta": 10000.0,
 "max_position_embeddings": 4096, "hidden_act": "silu", "attention_bias": false, "mlp_bias": false, "tie_word_embeddings": false, "torch_dtype": "bfloat16"})");
  }

  Result forward(const std::vector<int32_t>& tokens, const Reads& reads) const {
    const size_t n = tokens.size();
    Result result;
    Rows x(n);
    for (size_t i = 0; i < n; ++i) x[i] = row("model.embed_tokens.weight", tokens[i]);
    for (int layer = 0; layer < kLayers; ++layer) {
      const std::string at = "model.layers." + std::to_string(layer) + ".";
      Rows q(n), k(n), v(n);
      for (size_t i = 0; i < n; ++i) {
        const Row y = norm(x[i], at + "input_layernorm.weight");
        q[i] = rotate(times(at + "self_attn.q_proj.weight", y), static_cast<double>(i));
        k[i] = rotate(times(at + "self_attn.k_proj.weight", y), static_cast<double>(i));
        v[i] = times(at + "self_attn.v_proj.weight", y);
      }
      const Rows mixed = attention(layer, q, k, v, reads, result.heads);
      for (size_t i = 0; i < n; ++i) {
        add(x[i], times(at + "self_attn.o_proj.weight", mixed[i]));
        const Row y = norm(x[i], at + "post_attention_layernorm.weight");
        Row gate = times(at + "mlp.gate_proj.weight", y);
        const Row up = times(at + "mlp.up_proj.weight", y);
        for (size_t j = 0; j < gate.size(); ++j) gate[j] = gate[j] / (1 + std::exp(-gate[j])) * up[j];
        add(x[i], times(at + "mlp.down_proj.weight", gate));
      }
    }
    double bits = 0;
    for (size_t i = 0; i < n; ++i) {
      result.logits.push_back(times("lm_head.weight", norm(x[i], "model.norm.weight")));
      if (i + 1 == n) break;
      const Row& logits = result.logits.back();
      const double most = *std::max_element(logits.begin(), logits.end());
      double total = 0;
      for (const double logit : logits) total += std::exp(logit - most);
      bits -= (logits[static_cast<size_t>(tokens[i + 1])] - most - std::log(total)) / std::log(2.0);
    }
    result.bits_per_byte = bits / static_cast<double>(n - 1);
    return result;
  }

 private:
  using Row = std::vector<double>;
  using Rows = std::vector<Row>;
  struct Weight {
    int64_t rows = 0, columns = 0;
    std::vector<bf16> values;
  };

  void draw(const std::string& name, int64_t rows, int64_t columns, double scale) {
    Weight weight{rows, columns, {}};
    const int64_t count = rows * std::max<int64_t>(1, columns);
    for (int64_t i = 0; i < count; ++i) {
      const uint64_t bits = splitmix64(static_cast<uint64_t>(std::hash<std::string>{}(name)) + static_cast<uint64_t>(i));
      const double unit = static_cast<double>(bits >> 11) / 9007199254740992.0 * 2 - 1;
      // Norms stay near one, so that no channel is lost.
      weight.values.push_back(bf16(static_cast<float>(columns > 0 ? scale * unit : 1 + .2 * unit)));
    }
    weights_[name] = std::move(weight);
  }
  double at(const Weight& weight, int64_t i) const { return static_cast<double>(static_cast<float>(weight.values[static_cast<size_t>(i)])); }
  Row row(const std::string& name, int64_t index) const {
    const Weight& weight = weights_.at(name);
    Row out;
    for (int64_t i = 0; i < weight.columns; ++i) out.push_back(at(weight, index * weight.columns + i));
    return out;
  }
  Row times(const std::string& name, const Row& x) const {
    const Weight& weight = weights_.at(name);
    Row out(static_cast<size_t>(weight.rows));
    for (int64_t r = 0; r < weight.rows; ++r) {
      for (int64_t c = 0; c < weight.columns; ++c) out[static_cast<size_t>(r)] += at(weight, r * weight.columns + c) * x[static_cast<size_t>(c)];
    }
    return out;
  }
  Row norm(const Row& x, const std::string& name) const {
    double square = 0;
    for (const double value : x) square += value * value;
    const double scale = 1 / std::sqrt(square / static_cast<double>(x.size()) + kEps);
    Row out(x);
    for (size_t i = 0; i < x.size(); ++i) out[i] *= scale * at(weights_.at(name), static_cast<int64_t>(i));
    return out;
  }
  static void add(Row& x, const Row& y) {
    for (size_t i = 0; i < x.size(); ++i) x[i] += y[i];
  }
  static Row rotate(Row x, double position) {
    for (size_t head = 0; head < x.size() / kHeadDim; ++head) {
      for (size_t i = 0; i < kHeadDim / 2; ++i) {
        const double angle = position * std::pow(kTheta, -2.0 * static_cast<double>(i) / kHeadDim);
        double& a = x[head * kHeadDim + i];
        double& b = x[head * kHeadDim + i + kHeadDim / 2];
        const double a0 = a, b0 = b;
        a = a0 * std::cos(angle) - b0 * std::sin(angle);
        b = b0 * std::cos(angle) + a0 * std::sin(angle);
      }
    }
    return x;
  }

  /// What goes on is the sparse output; the dense one is for the figures alone.
  static Rows attention(int layer, const Rows& q, const Rows& k, const Rows& v, const Reads& reads, std::vector<Head>& heads) {
    const size_t n = q.size();
    Rows out(n, Row(size_t{kHeadsQ} * kHeadDim));
    for (size_t h = 0; h < kHeadsQ; ++h) {
      const size_t kv = h * kHeadsKv / kHeadsQ;
      Head figures;
      for (size_t i = 0; i < n; ++i) {
        double all = 0, kept = 0;
        Row dense(kHeadDim), sparse(kHeadDim);
        for (size_t j = 0; j <= i; ++j) {
          double dot = 0;
          for (size_t d = 0; d < kHeadDim; ++d) dot += q[i][h * kHeadDim + d] * k[j][kv * kHeadDim + d];
          const double weight = std::exp(dot / std::sqrt(double{kHeadDim}));
          const bool is_read = reads(layer, static_cast<int>(h), static_cast<int64_t>(i), static_cast<int64_t>(j));
          all += weight;
          if (is_read) kept += weight;
          for (size_t d = 0; d < kHeadDim; ++d) {
            dense[d] += weight * v[j][kv * kHeadDim + d];
            if (is_read) sparse[d] += weight * v[j][kv * kHeadDim + d];
          }
        }
        figures.recall += kept / all / static_cast<double>(n);
        for (size_t d = 0; d < kHeadDim; ++d) {
          const double theirs = dense[d] / all, ours = kept > 0 ? sparse[d] / kept : 0;
          figures.error_square += (ours - theirs) * (ours - theirs);
          figures.dense_square += theirs * theirs;
          out[i][h * kHeadDim + d] = ours;
        }
      }
      heads.push_back(figures);
    }
    return out;
  }

  std::map<std::string, Weight> weights_;
};

}  // namespace tilewise::study
