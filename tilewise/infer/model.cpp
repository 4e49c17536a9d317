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
#include "tilewise/infer/cuda/forward.h"
#include "tilewise/infer/layer.h"
#include "tilewise/infer/rope.h"
#include "tilewise/infer/rows.h"
#include "tilewise/infer/weights.h"
#include "tilewise/prepare/rotary.h"

TILEWISE_BEGIN_PUBLIC

struct Model::Impl {
  /// Of a model on a GPU.
  struct OnDevice {
    infer::cuda::QueueMaker queues;
    infer::cuda::DeviceWeights weights;
  };
  ModelConfig config;
  Dtype dtype = Dtype::f32;
  Device device = {};
  infer::Weights weights;  // on the CPU
  std::unique_ptr<OnDevice> on_device;
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

/// One forward pass, chunk by chunk. The residual of a chunk's tokens lies in `residual_`; between two attentions a slice of rows goes through everything
/// at once: the second half of a layer and the first half of the next, so that it stays in its core's cache.
class Pass {
 public:
  Pass(const ModelConfig& config, const Weights& weights, Dtype dtype, std::span<const int32_t> tokens, KvCache& cache, const ForwardOptions& options,
       Context& context)
      : config_(config),
        weights_(weights),
        dtype_(dtype),
        tokens_(tokens),
        cache_(cache),
        options_(options),
        context_(context),
        num_tokens_(static_cast<int64_t>(tokens.size())),
        chunk_(options.chunk_tokens == 0 ? num_tokens_ : std::min(options.chunk_tokens, num_tokens_)),
        width_q_(int64_t{config.heads_q} * config.head_dim),
        width_qkv_(width_q_ + 2 * int64_t{config.heads_kv} * config.head_dim) {}

  ForwardResult run() {
    const Stopwatch total;
    attention_ = options_.attention ? options_.attention : dense_attention();
    residual_ = Tensor(context_.memory, Dtype::f32, {chunk_, config_.hidden_size});
    q_ = Tensor(context_.memory, dtype_, {chunk_, config_.heads_q, config_.head_dim});
    out_ = Tensor(context_.memory, dtype_, {chunk_, config_.heads_q, config_.head_dim});
    for (int worker = 0; worker < context_.concurrency(); ++worker)
      scratch_.push_back(std::make_unique<Scratch>(*this, std::min(kSliceRows, chunk_)));
    frequencies_ = rope_frequencies(config_, cache_.length() + num_tokens_);

    ForwardResult result;
    result.logits = Tensor(context_.memory, Dtype::f32, {options_.logits_rows, config_.vocab_size});
    for (begin_ = 0; begin_ < num_tokens_; begin_ += chunk_) {
      rows_ = std::min(chunk_, num_tokens_ - begin_);
      run_chunk(result);
    }
    cache_.advance(num_tokens_);
    if (options_.has_bits) result.predictions = num_tokens_ - 1;
    result.total_ms = total.ms();
    return result;
  }

 private:
  /// What one worker needs for a slice.
  struct Scratch {
    Scratch(const Pass& pass, int64_t rows)
        : normed(pass.context_.memory, pass.dtype_, {rows, pass.config_.hidden_size}),
          qkv(pass.context_.memory, Dtype::f32, {rows, pass.width_qkv_}),
          gate(pass.context_.memory, Dtype::f32, {rows, pass.config_.intermediate_size}),
          up(pass.context_.memory, pass.dtype_, {rows, pass.config_.intermediate_size}),
          linear(pass.context_.memory) {}
    Tensor normed, qkv, gate, up;
    Tensor logits = {};  // made where logits are read
    LinearScratch linear;
  };

  /// Tokens [begin_, begin_ + rows_) through all layers. Rows below count within the chunk.
  void run_chunk(ForwardResult& result) {
    const int64_t seen = cache_.length() + begin_;
    const prepare::RotaryTable angles(frequencies_, config_.rope.attention_factor, seen, rows_, context_);
    angles_ = &angles;
    const int layers = config_.num_layers, chunks = static_cast<int>((num_tokens_ + chunk_ - 1) / chunk_);
    const int done = static_cast<int>(begin_ / chunk_) * layers;
    for (int layer = 0; layer <= layers; ++layer) {
      if (options_.progress && (layer < layers || begin_ + rows_ == num_tokens_)) options_.progress(done + layer, chunks * layers);
      const Stopwatch linear;
      for_slices([&](int64_t first, int64_t rows, Scratch& scratch) {
        if (layer == 0) {
          embed(first, rows);
        } else {
          finish_layer(layer - 1, first, rows, scratch);
        }
        if (layer < layers) begin_layer(layer, first, rows, scratch);
      });
      result.linear_ms += linear.ms();
      if (layer == layers) break;
      const Stopwatch attend;
      attention_({.layer = layer, .q = by_head(q_), .k = cache_.k(layer, seen + rows_), .v = cache_.v(layer, seen + rows_), .out = by_head(out_)},
                 context_);
      result.attention_ms += attend.ms();
    }
    const Stopwatch head;
    read_logits(result);
    result.logits_ms += head.ms();
  }

  template <class Body>
  void for_slices(Body&& body) {
    context_.parallel_for((rows_ + kSliceRows - 1) / kSliceRows, [&](int64_t slice, int worker) {
      const int64_t first = slice * kSliceRows;
      body(first, std::min(kSliceRows, rows_ - first), *scratch_[static_cast<size_t>(worker)]);
    });
  }

  /// The chunk's rows of [n, H, D] as [1, H, rows, D], without a copy.
  TensorView by_head(const Tensor& tensor) const {
    const TensorView& view = tensor.view;
    return TensorView(view.raw(), view.dtype(), {1, view.dim(1), rows_, view.dim(2)}, {view.numel(), view.stride(1), view.stride(0), 1, 0});
  }

  float* residual(int64_t row) const { return &residual_.view.at<float>(row, 0); }
  int32_t token(int64_t row) const { return tokens_[static_cast<size_t>(begin_ + row)]; }
  static std::byte* place(const TensorView& view, int64_t offset) {
    return static_cast<std::byte*>(view.raw()) + offset * static_cast<int64_t>(size_of(view.dtype()));
  }

  void embed(int64_t first, int64_t rows) const {
    const size_t bytes = static_cast<size_t>(config_.hidden_size) * sizeof(float);
    for (int64_t row = first; row < first + rows; ++row) std::memcpy(residual(row), &weights_.embedding.view.at<float>(token(row), 0), bytes);
  }

  /// A step of linear work; between steps a request to stop is heard.
  void apply(const Linear& linear, const void* x, int64_t rows, void* y, Scratch& scratch, const float* other = nullptr) const {
    context_.check_cancel();
    linear.run(x, rows, y, scratch.linear, other);
  }

  void norm(const Tensor& weight, int64_t first, int64_t rows, Scratch& scratch) const {
    const auto run = [&](auto* to) { rms_norm(residual(first), weight.view.data<float>(), rows, config_.hidden_size, config_.rms_norm_eps, to); };
    if (dtype_ == Dtype::f32) {
      run(scratch.normed.view.data<float>());
    } else {
      run(scratch.normed.view.data<bf16>());
    }
  }

  /// Norms and turns one head of q or k, in place.
  void turn(float* head, const Tensor& norm, const float* angles) const {
    if (norm.view.has_value()) rms_norm(head, norm.view.data<float>(), 1, config_.head_dim, config_.rms_norm_eps, head);
    prepare::rotate_half(head, angles, config_.head_dim, head);
  }

  /// Norm, q k v, norm of heads, rotary; q to its buffer, k and v to the cache.
  void begin_layer(int layer, int64_t first, int64_t rows, Scratch& scratch) {
    const LayerWeights& weights = weights_.layers[static_cast<size_t>(layer)];
    norm(weights.attention_norm, first, rows, scratch);
    float* qkv = scratch.qkv.view.data<float>();
    apply(weights.qkv, scratch.normed.view.raw(), rows, qkv, scratch);
    const int64_t head_dim = config_.head_dim;
    for (int64_t row = 0; row < rows; ++row) {
      float* q = qkv + row * width_qkv_;
      const float* angles = angles_->row(angles_->first() + first + row);
      for (int head = 0; head < config_.heads_q; ++head) turn(q + head * head_dim, weights.q_norm, angles);
      for (int head = 0; head < config_.heads_kv; ++head) turn(q + width_q_ + head * head_dim, weights.k_norm, angles);
      std::byte* const to = place(q_.view, q_.view.offset(first + row));
      if (dtype_ == Dtype::f32) {
        std::memcpy(to, q, static_cast<size_t>(width_q_) * sizeof(float));
      } else {
        for (int64_t i = 0; i < width_q_; ++i) reinterpret_cast<bf16*>(to)[i] = bf16(q[i]);
      }
    }
    const auto side = [&](float* data) {
      return TensorView(data, Dtype::f32, {1, config_.heads_kv, rows, head_dim}, {0, head_dim, width_qkv_, 1, 0});
    };
    cache_.write(layer, cache_.length() + begin_ + first, side(qkv + width_q_), side(qkv + (width_q_ + width_qkv_) / 2));
  }

  /// Output projection and feed-forward part, both added to the residual.
  void finish_layer(int layer, int64_t first, int64_t rows, Scratch& scratch) {
    const LayerWeights& weights = weights_.layers[static_cast<size_t>(layer)];
    apply(weights.output, place(out_.view, out_.view.offset(first)), rows, residual(first), scratch);
    norm(weights.mlp_norm, first, rows, scratch);
    float* gate = scratch.gate.view.data<float>();
    void* up = scratch.up.view.raw();
    apply(weights.gate, scratch.normed.view.raw(), rows, gate, scratch);
    apply(weights.up, scratch.normed.view.raw(), rows, up, scratch, gate);
    apply(weights.down, up, rows, residual(first), scratch);
  }

  /// Last norm, head, and what is asked of the logits. Bits are summed per slice, then over slices in order.
  void read_logits(ForwardResult& result) {
    const int64_t vocab = config_.vocab_size;
    const int64_t first_kept = num_tokens_ - options_.logits_rows - begin_;  // below 0: kept from the chunk's first row on
    const int64_t first_needed = options_.has_bits ? 0 : std::max<int64_t>(first_kept, 0);
    if (first_needed >= rows_) return;
    const int64_t step = std::clamp<int64_t>(kMaxLogits / vocab, 1, std::min(kSliceRows, chunk_));
    std::vector<double> bits(static_cast<size_t>((rows_ + kSliceRows - 1) / kSliceRows), 0.0);
    for_slices([&](int64_t slice_first, int64_t rows, Scratch& scratch) {
      if (!scratch.logits.view.has_value()) scratch.logits = Tensor(context_.memory, Dtype::f32, {step, vocab});
      for (int64_t first = std::max(slice_first, first_needed); first < slice_first + rows; first += step) {
        const int64_t count = std::min(step, slice_first + rows - first);
        norm(weights_.final_norm, first, count, scratch);
        float* values = scratch.logits.view.data<float>();
        apply(weights_.head, scratch.normed.view.raw(), count, values, scratch);
        for (int64_t row = first; row < first + count; ++row, values += vocab) {
          if (options_.has_bits && begin_ + row + 1 < num_tokens_) {
            bits[static_cast<size_t>(slice_first / kSliceRows)] += prediction_bits(values, vocab, token(row + 1));
          }
          if (row >= first_kept) std::memcpy(&result.logits.view.at<float>(row - first_kept, 0), values, static_cast<size_t>(vocab) * sizeof(float));
        }
      }
    });
    for (const double part : bits) result.bits += part;
  }

  const ModelConfig& config_;
  const Weights& weights_;
  Dtype dtype_;
  std::span<const int32_t> tokens_;
  KvCache& cache_;
  const ForwardOptions& options_;
  Context& context_;
  int64_t num_tokens_, chunk_, width_q_, width_qkv_;
  int64_t begin_ = 0, rows_ = 0;  // of the chunk
  AttentionFunction attention_;
  Tensor residual_, q_, out_;
  std::vector<std::unique_ptr<Scratch>> scratch_;
  std::vector<double> frequencies_;
  const prepare::RotaryTable* angles_ = nullptr;
};

}  // namespace
}  // namespace tilewise::infer

TILEWISE_BEGIN_PUBLIC

Model::Model(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Model::Model(Model&&) noexcept = default;
Model& Model::operator=(Model&&) noexcept = default;
Model::~Model() = default;

Model Model::load(const std::string& directory, Context& context, const ModelOptions& options) {
  check(options.dtype == Dtype::f32 || options.dtype == Dtype::bf16, Error::Kind::dtype, "Model::load: a model runs in f32 or bf16, got ",
        options.dtype);
  auto impl = std::make_unique<Impl>();
  impl->dtype = options.dtype;
  impl->device = context.device;
  impl->config = infer::read_config(directory);
  const bool is_on_cpu = context.device.type == Device::Type::cpu;
  infer::cuda::QueueMaker queues;
  if (!is_on_cpu) queues = infer::cuda::gpu_queues(context);
  const infer::WeightSource source(directory, impl->config, options.random_weights);
  if (is_on_cpu) {
    impl->weights = infer::read_weights(source, impl->config, options.dtype, context);
  } else {
    const auto queue = queues(context);
    impl->on_device = std::make_unique<Impl::OnDevice>();
    impl->on_device->weights = infer::cuda::make_weights(source, impl->config, options.dtype, *queue, context);
    impl->on_device->queues = std::move(queues);
  }
  return Model(std::move(impl));
}

const ModelConfig& Model::config() const { return impl_->config; }
Dtype Model::dtype() const { return impl_->dtype; }
Device Model::device() const { return impl_->device; }

std::unique_ptr<KvCache> Model::make_cache(int64_t capacity, Context& context) const {
  const ModelConfig& config = impl_->config;
  check(capacity >= 0 && capacity <= config.max_positions, Error::Kind::value, "Model::make_cache: a capacity of ", capacity,
        " tokens; takes 0 to the model's max_position_embeddings, ", config.max_positions);
  check(context.device == device(), Error::Kind::device, "Model::make_cache: the context is on ", context.device, ", the model on ", device());
  return std::make_unique<KvCache>(config.num_layers, config.heads_kv, capacity, config.head_dim, context.memory, impl_->dtype, device());
}

ForwardResult Model::forward(std::span<const int32_t> tokens, KvCache& cache, const ForwardOptions& options, Context& context) const {
  const ModelConfig& config = impl_->config;
  const auto num_tokens = static_cast<int64_t>(tokens.size());
  check(num_tokens > 0, Error::Kind::value, "Model::forward: there is no token; give at least one");
  check(context.device == device() && cache.device() == device(), Error::Kind::device, "Model::forward: the context is on ", context.device,
        ", the cache on ", cache.device(), ", the model on ", device());
  check(cache.num_layers() == config.num_layers && cache.heads_kv() == config.heads_kv && cache.head_dim() == config.head_dim, Error::Kind::value,
        "Model::forward: the cache is of another model: ", cache.num_layers(), " layers of ", cache.heads_kv(), " x ", cache.head_dim(),
        ", the model has ", config.num_layers, " of ", config.heads_kv, " x ", config.head_dim, "; take it from make_cache");
  check(cache.dtype() == dtype(), Error::Kind::dtype, "Model::forward: the cache keeps ", cache.dtype(), ", the model runs in ", dtype(),
        "; take it from make_cache");
  check(num_tokens <= cache.capacity() - cache.length(), Error::Kind::value, "Model::forward: ", num_tokens, " tokens behind ", cache.length(),
        ", the cache takes ", cache.capacity(), "; make a larger one or truncate it");
  check(options.logits_rows >= 0 && options.logits_rows <= num_tokens, Error::Kind::value, "Model::forward: logits_rows is ", options.logits_rows,
        "; takes 0 to the number of tokens, ", num_tokens);
  check(options.chunk_tokens >= 0, Error::Kind::value, "Model::forward: chunk_tokens is ", options.chunk_tokens,
        "; takes the tokens of a chunk, or 0 for all at once");
  for (int64_t i = 0; i < num_tokens; ++i) {
    const int32_t token = tokens[static_cast<size_t>(i)];
    check(token >= 0 && token < config.vocab_size, Error::Kind::value, "Model::forward: token ", token, " at place ", i, " is not in [0, ",
          config.vocab_size, "), the vocabulary");
  }
  context.check_cancel();
  if (impl_->on_device != nullptr) {
    const auto queue = impl_->on_device->queues(context);
    return infer::cuda::forward(config, impl_->on_device->weights, impl_->dtype, tokens, cache, options, *queue, context);
  }
  return infer::Pass(config, impl_->weights, impl_->dtype, tokens, cache, options, context).run();
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
