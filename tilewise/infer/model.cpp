// SPDX-License-Identifier: Apache-2.0
#include "tilewise/infer/model.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "tilewise/base/error.h"
#include "tilewise/cache/contiguous.h"
#include "tilewise/infer/config.h"
#include "tilewise/infer/recipe.h"
#include "tilewise/infer/rows.h"
#include "tilewise/infer/weights.h"
#include "tilewise/prepare/rotary.h"

TILEWISE_BEGIN_PUBLIC

struct Model::Impl {
  ModelConfig config;
  infer::Weights weights;
};

TILEWISE_END_PUBLIC

namespace tilewise::infer {
namespace {

/// Logits that one worker holds at a time, at most (4 MiB), whatever the vocabulary.
constexpr int64_t kMaxLogits = int64_t{1} << 20;

class Stopwatch {
 public:
  double ms() const { return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start_).count(); }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

/// One forward pass. The residual of all tokens lies in `residual_`; between two attentions a slice of rows goes through everything at once:
/// the second half of a layer and the first half of the next, so that it stays in its core's cache.
class Pass {
 public:
  Pass(const ModelConfig& config, const Weights& weights, std::span<const int32_t> tokens, KvCache& cache, const ForwardOptions& options,
       Context& context)
      : config_(config),
        weights_(weights),
        tokens_(tokens),
        cache_(cache),
        options_(options),
        context_(context),
        num_tokens_(static_cast<int64_t>(tokens.size())),
        width_q_(int64_t{config.heads_q} * config.head_dim),
        width_qkv_(width_q_ + 2 * int64_t{config.heads_kv} * config.head_dim) {}

  ForwardResult run() {
    const Stopwatch total;
    const AttentionFunction attention = options_.attention ? options_.attention : method_attention("dense", {});
    residual_ = Tensor(context_.memory, Dtype::f32, {num_tokens_, config_.hidden_size});
    q_ = Tensor(context_.memory, Dtype::f32, {num_tokens_, config_.heads_q, config_.head_dim});
    out_ = Tensor(context_.memory, Dtype::f32, {num_tokens_, config_.heads_q, config_.head_dim});
    for (int worker = 0; worker < context_.concurrency(); ++worker) scratch_.push_back(std::make_unique<Scratch>(*this));
    const prepare::RotaryTable angles(config_.head_dim, config_.rope_theta, cache_.length(), num_tokens_, context_);
    angles_ = &angles;

    ForwardResult result;
    for (int layer = 0; layer <= config_.num_layers; ++layer) {
      if (options_.progress) options_.progress(layer, config_.num_layers);
      const Stopwatch linear;
      for_slices([&](int64_t first, int64_t rows, Scratch& scratch) {
        if (layer == 0) {
          embed(first, rows);
        } else {
          finish_layer(layer - 1, first, rows, scratch);
        }
        if (layer < config_.num_layers) begin_layer(layer, first, rows, scratch);
      });
      result.linear_ms += linear.ms();
      if (layer == config_.num_layers) break;
      const Stopwatch attend;
      const int64_t seen = cache_.length() + num_tokens_;
      attention({.layer = layer, .q = by_head(q_), .k = cache_.k(layer, seen), .v = cache_.v(layer, seen), .out = by_head(out_)}, context_);
      result.attention_ms += attend.ms();
    }
    const Stopwatch head;
    read_logits(result);
    cache_.advance(num_tokens_);
    result.logits_ms = head.ms();
    result.total_ms = total.ms();
    return result;
  }

 private:
  /// What one worker needs for a slice.
  struct Scratch {
    explicit Scratch(const Pass& pass)
        : normed(pass.context_.memory, Dtype::f32, {kSliceRows, pass.config_.hidden_size}),
          qkv(pass.context_.memory, Dtype::f32, {kSliceRows, pass.width_qkv_}),
          gate(pass.context_.memory, Dtype::f32, {kSliceRows, pass.config_.intermediate_size}),
          up(pass.context_.memory, Dtype::f32, {kSliceRows, pass.config_.intermediate_size}),
          linear(pass.context_.memory) {}
    Tensor normed, qkv, gate, up;
    Tensor logits = {};  // made where logits are read
    LinearScratch linear;
  };

  template <class Body>
  void for_slices(Body&& body) {
    context_.parallel_for((num_tokens_ + kSliceRows - 1) / kSliceRows, [&](int64_t slice, int worker) {
      const int64_t first = slice * kSliceRows;
      body(first, std::min(kSliceRows, num_tokens_ - first), *scratch_[static_cast<size_t>(worker)]);
    });
  }

  /// [n, H, D] as [1, H, n, D], without a copy.
  static TensorView by_head(const Tensor& tensor) {
    const TensorView& view = tensor.view;
    return TensorView(view.raw(), Dtype::f32, {1, view.dim(1), view.dim(0), view.dim(2)}, {view.numel(), view.stride(1), view.stride(0), 1, 0});
  }

  float* residual(int64_t row) const { return &residual_.view.at<float>(row, 0); }

  void embed(int64_t first, int64_t rows) const {
    const size_t bytes = static_cast<size_t>(config_.hidden_size) * sizeof(float);
    for (int64_t row = first; row < first + rows; ++row)
      std::memcpy(residual(row), &weights_.embedding.view.at<float>(tokens_[static_cast<size_t>(row)], 0), bytes);
  }

  /// A step of linear work; between steps a request to stop is heard.
  void apply(const Linear& linear, const float* x, int64_t rows, float* y, Scratch& scratch, const float* other = nullptr) const {
    context_.check_cancel();
    linear.run(x, rows, y, scratch.linear, other);
  }

  void norm(const Tensor& weight, int64_t first, int64_t rows, Scratch& scratch) const {
    rms_norm(residual(first), weight.view.data<float>(), rows, config_.hidden_size, config_.rms_norm_eps, scratch.normed.view.data<float>());
  }

  /// Norm, q k v, rotary; q to its buffer, k and v to the cache.
  void begin_layer(int layer, int64_t first, int64_t rows, Scratch& scratch) {
    const LayerWeights& weights = weights_.layers[static_cast<size_t>(layer)];
    norm(weights.attention_norm, first, rows, scratch);
    float* qkv = scratch.qkv.view.data<float>();
    apply(weights.qkv, scratch.normed.view.data<float>(), rows, qkv, scratch);
    const int64_t head_dim = config_.head_dim;
    for (int64_t row = 0; row < rows; ++row) {
      float* from = qkv + row * width_qkv_;
      const float* angles = angles_->row(angles_->first() + first + row);
      for (int head = 0; head < config_.heads_q; ++head)
        prepare::rotate_half(from + head * head_dim, angles, head_dim, &q_.view.at<float>(first + row, head, 0));
      for (int head = 0; head < config_.heads_kv; ++head) {
        float* k = from + width_q_ + head * head_dim;
        prepare::rotate_half(k, angles, head_dim, k);
      }
    }
    const auto side = [&](float* data) {
      return TensorView(data, Dtype::f32, {1, config_.heads_kv, rows, head_dim}, {0, head_dim, width_qkv_, 1, 0});
    };
    cache_.write(layer, cache_.length() + first, side(qkv + width_q_), side(qkv + (width_q_ + width_qkv_) / 2));
  }

  /// Output projection and feed-forward part, both added to the residual.
  void finish_layer(int layer, int64_t first, int64_t rows, Scratch& scratch) {
    const LayerWeights& weights = weights_.layers[static_cast<size_t>(layer)];
    apply(weights.output, &out_.view.at<float>(first, 0, 0), rows, residual(first), scratch);
    norm(weights.mlp_norm, first, rows, scratch);
    const float* normed = scratch.normed.view.data<float>();
    float* gate = scratch.gate.view.data<float>();
    float* up = scratch.up.view.data<float>();
    apply(weights.gate, normed, rows, gate, scratch);
    apply(weights.up, normed, rows, up, scratch, gate);
    apply(weights.down, up, rows, residual(first), scratch);
  }

  /// Last norm, head, and what is asked of the logits. Bits are summed per slice, then over slices in order.
  void read_logits(ForwardResult& result) {
    const int64_t vocab = config_.vocab_size;
    const int64_t kept = options_.logits_rows, first_kept = num_tokens_ - kept;
    const int64_t first_needed = options_.has_bits ? 0 : first_kept;
    result.logits = Tensor(context_.memory, Dtype::f32, {kept, vocab});
    const int64_t chunk = std::clamp<int64_t>(kMaxLogits / vocab, 1, kSliceRows);
    std::vector<double> bits(static_cast<size_t>((num_tokens_ + kSliceRows - 1) / kSliceRows), 0.0);
    if (first_needed < num_tokens_) {
      for_slices([&](int64_t slice_first, int64_t rows, Scratch& scratch) {
        if (!scratch.logits.view.has_value()) scratch.logits = Tensor(context_.memory, Dtype::f32, {chunk, vocab});
        for (int64_t first = std::max(slice_first, first_needed); first < slice_first + rows; first += chunk) {
          const int64_t count = std::min(chunk, slice_first + rows - first);
          norm(weights_.final_norm, first, count, scratch);
          float* values = scratch.logits.view.data<float>();
          apply(weights_.head, scratch.normed.view.data<float>(), count, values, scratch);
          for (int64_t row = first; row < first + count; ++row, values += vocab) {
            if (options_.has_bits && row + 1 < num_tokens_) {
              bits[static_cast<size_t>(slice_first / kSliceRows)] += prediction_bits(values, vocab, tokens_[static_cast<size_t>(row + 1)]);
            }
            if (row >= first_kept)
              std::memcpy(&result.logits.view.at<float>(row - first_kept, 0), values, static_cast<size_t>(vocab) * sizeof(float));
          }
        }
      });
    }
    if (options_.has_bits) {
      for (const double part : bits) result.bits += part;
      result.predictions = num_tokens_ - 1;
    }
  }

  const ModelConfig& config_;
  const Weights& weights_;
  std::span<const int32_t> tokens_;
  KvCache& cache_;
  const ForwardOptions& options_;
  Context& context_;
  int64_t num_tokens_, width_q_, width_qkv_;
  Tensor residual_, q_, out_;
  std::vector<std::unique_ptr<Scratch>> scratch_;
  const prepare::RotaryTable* angles_ = nullptr;
};

}  // namespace
}  // namespace tilewise::infer

TILEWISE_BEGIN_PUBLIC

Model::Model(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Model::Model(Model&&) noexcept = default;
Model& Model::operator=(Model&&) noexcept = default;
Model::~Model() = default;

Model Model::load(const std::string& directory, Context& context) {
  auto impl = std::make_unique<Impl>();
  impl->config = infer::read_config(directory);
  impl->weights = infer::read_weights(directory, impl->config, context);
  return Model(std::move(impl));
}

const ModelConfig& Model::config() const { return impl_->config; }

std::unique_ptr<KvCache> Model::make_cache(int64_t capacity, Context& context) const {
  const ModelConfig& config = impl_->config;
  check(capacity >= 0 && capacity <= config.max_positions, Error::Kind::value, "Model::make_cache: a capacity of ", capacity,
        " tokens; takes 0 to the model's max_position_embeddings, ", config.max_positions);
  return std::make_unique<KvCache>(config.num_layers, config.heads_kv, capacity, config.head_dim, context.memory);
}

ForwardResult Model::forward(std::span<const int32_t> tokens, KvCache& cache, const ForwardOptions& options, Context& context) const {
  const ModelConfig& config = impl_->config;
  const auto num_tokens = static_cast<int64_t>(tokens.size());
  check(num_tokens > 0, Error::Kind::value, "Model::forward: there is no token; give at least one");
  check(context.device == Device{}, Error::Kind::device, "Model::forward: the context is on ", context.device, ", the model on the CPU");
  check(cache.num_layers() == config.num_layers && cache.heads_kv() == config.heads_kv && cache.head_dim() == config.head_dim, Error::Kind::value,
        "Model::forward: the cache is of another model: ", cache.num_layers(), " layers of ", cache.heads_kv(), " x ", cache.head_dim(),
        ", the model has ", config.num_layers, " of ", config.heads_kv, " x ", config.head_dim, "; take it from make_cache");
  check(num_tokens <= cache.capacity() - cache.length(), Error::Kind::value, "Model::forward: ", num_tokens, " tokens behind ", cache.length(),
        ", the cache takes ", cache.capacity(), "; make a larger one or truncate it");
  check(options.logits_rows >= 0 && options.logits_rows <= num_tokens, Error::Kind::value, "Model::forward: logits_rows is ", options.logits_rows,
        "; takes 0 to the number of tokens, ", num_tokens);
  for (int64_t i = 0; i < num_tokens; ++i) {
    const int32_t token = tokens[static_cast<size_t>(i)];
    check(token >= 0 && token < config.vocab_size, Error::Kind::value, "Model::forward: token ", token, " at place ", i, " is not in [0, ",
          config.vocab_size, "), the vocabulary");
  }
  context.check_cancel();
  return infer::Pass(config, impl_->weights, tokens, cache, options, context).run();
}

ModelFlops model_flops(const ModelConfig& config, int64_t tokens, int64_t cached, int64_t head_rows) {
  check(tokens >= 0 && cached >= 0 && head_rows >= 0 && head_rows <= tokens, Error::Kind::value, "model_flops: tokens ", tokens, ", cached ", cached,
        " and head_rows ", head_rows, " must be at least 0, and head_rows at most tokens");
  const double n = static_cast<double>(tokens), hidden = config.hidden_size, width_q = static_cast<double>(config.heads_q) * config.head_dim;
  const double width_kv = static_cast<double>(config.heads_kv) * config.head_dim;
  const double weights = hidden * (2 * width_q + 2 * width_kv + 3.0 * config.intermediate_size);
  const double pairs = n * (n + 1) / 2 + n * static_cast<double>(cached);
  return {.linear = 2 * (config.num_layers * n * weights + static_cast<double>(head_rows) * hidden * config.vocab_size),
          .attention = 4 * pairs * width_q * config.num_layers};
}

TILEWISE_END_PUBLIC
