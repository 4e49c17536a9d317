// SPDX-License-Identifier: Apache-2.0
#include "tilewise/infer/cuda/forward.h"

#include <algorithm>
#include <chrono>
#include <vector>

#include "tilewise/cache/contiguous.h"
#include "tilewise/infer/layer.h"
#include "tilewise/infer/rope.h"
#include "tilewise/machine/device.h"
#include "tilewise/prepare/rotary.h"

namespace tilewise::infer::cuda {
namespace {

/// Rows that go through the linear layers together: enough to fill the GPU, few enough that the f32 sums of the feed-forward part stay below a gigabyte.
constexpr int64_t kRows = 4096;
/// Logits that are held at a time, at most (512 MiB), whatever the vocabulary.
constexpr int64_t kMostLogits = int64_t{1} << 27;

/// One forward pass, chunk by chunk; rows below count within the chunk.
class Pass {
 public:
  Pass(const ModelConfig& config, const DeviceWeights& weights, Dtype dtype, std::span<const int32_t> tokens, KvCache& cache,
       const ForwardOptions& options, Queue& queue, Context& context)
      : config_(config),
        weights_(weights),
        dtype_(dtype),
        tokens_(tokens),
        cache_(cache),
        options_(options),
        queue_(queue),
        context_(context),
        num_tokens_(static_cast<int64_t>(tokens.size())),
        chunk_(options.chunk_tokens == 0 ? num_tokens_ : std::min(options.chunk_tokens, num_tokens_)) {}

  ForwardResult run() {
    const Watch total(queue_);
    const AttentionFunction attention = options_.attention ? options_.attention : dense_attention();
    const int64_t hidden = config_.hidden_size, rows = std::min(kRows, chunk_), vocab = config_.vocab_size;
    residual_ = tensor(Dtype::f32, {chunk_, hidden});
    q_ = tensor(dtype_, {chunk_, config_.heads_q, config_.head_dim});
    out_ = tensor(dtype_, {chunk_, config_.heads_q, config_.head_dim});
    normed_ = tensor(dtype_, {rows, hidden});
    // One after the other in the same memory: q, k, v; gate and up.
    sums_ = tensor(Dtype::f32, {rows, std::max(weights_.layers.front().qkv.out(), weights_.layers.front().gate_up.out())});
    up_ = tensor(dtype_, {rows, config_.intermediate_size});
    ids_ = tensor(Dtype::i32, {chunk_});
    angles_ = tensor(Dtype::f32, {chunk_, config_.head_dim});
    const std::vector<double> frequencies = rope_frequencies(config_, cache_.length() + num_tokens_);

    ForwardResult result;
    result.logits = Tensor(host_memory(), Dtype::f32, {options_.logits_rows, vocab});
    for (begin_ = 0; begin_ < num_tokens_; begin_ += chunk_) {
      rows_ = std::min(chunk_, num_tokens_ - begin_);
      run_chunk(frequencies, attention, result);
    }
    cache_.advance(num_tokens_);
    if (options_.has_bits) result.predictions = num_tokens_ - 1;
    result.total_ms = total.ms();
    return result;
  }

 private:
  /// Wall time since it was made, of which the device's work is a part.
  class Watch {
   public:
    explicit Watch(Queue& queue) : queue_(queue) {}
    double ms() const {
      queue_.wait();
      return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start_).count();
    }

   private:
    Queue& queue_;
    std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
  };

  Tensor tensor(Dtype dtype, const Shape& shape) const { return machine::make_tensor(context_, dtype, shape); }

  void run_chunk(const std::vector<double>& frequencies, const AttentionFunction& attention, ForwardResult& result) {
    const int64_t seen = cache_.length() + begin_;
    const int layers = config_.num_layers, chunks = static_cast<int>((num_tokens_ + chunk_ - 1) / chunk_);
    const int done = static_cast<int>(begin_ / chunk_) * layers;
    {
      Context host = machine::on_cpu(context_);
      const prepare::RotaryTable angles(frequencies, config_.rope.attention_factor, seen, rows_, host);
      queue_.upload(angles_.view.raw(), angles.row(seen), static_cast<size_t>(rows_ * config_.head_dim) * sizeof(float));
    }
    for (int layer = 0; layer <= layers; ++layer) {
      if (options_.progress && (layer < layers || begin_ + rows_ == num_tokens_)) options_.progress(done + layer, chunks * layers);
      const Watch linear(queue_);
      if (layer == 0) embed();
      for (int64_t first = 0; first < rows_; first += kRows) {
        const int64_t rows = std::min(kRows, rows_ - first);
        if (layer > 0) finish_layer(layer - 1, first, rows);
        if (layer < layers) begin_layer(layer, seen, first, rows);
      }
      result.linear_ms += linear.ms();
      if (layer == layers) break;
      const Watch attend(queue_);
      context_.check_cancel();
      attention({.layer = layer, .q = by_head(q_), .k = cache_.k(layer, seen + rows_), .v = cache_.v(layer, seen + rows_), .out = by_head(out_)},
                context_);
      result.attention_ms += attend.ms();
    }
    const Watch head(queue_);
    read_logits(result);
    result.logits_ms += head.ms();
  }

  /// The chunk's rows of [n, H, D] as [1, H, rows, D], without a copy.
  TensorView by_head(const Tensor& tensor) const {
    const TensorView& view = tensor.view;
    return TensorView(view.raw(), view.dtype(), {1, view.dim(1), rows_, view.dim(2)}, {view.numel(), view.stride(1), view.stride(0), 1, 0},
                      view.device());
  }

  float* residual(int64_t row) const { return static_cast<float*>(residual_.view.raw()) + row * config_.hidden_size; }
  static void* place(const TensorView& view, int64_t element) {
    return static_cast<std::byte*>(view.raw()) + element * static_cast<int64_t>(size_of(view.dtype()));
  }
  Output output(const TensorView& view, int64_t element = 0) const { return {place(view, element), dtype_ == Dtype::bf16}; }
  static const float* floats(const Tensor& tensor) { return static_cast<const float*>(tensor.view.raw()); }
  static const float* floats_or_null(const Tensor& tensor) { return tensor.view.has_value() ? floats(tensor) : nullptr; }

  void embed() {
    queue_.upload(ids_.view.raw(), tokens_.data() + begin_, static_cast<size_t>(rows_) * sizeof(int32_t));
    queue_.run(EmbedArgs{.embedding = floats(weights_.embedding),
                         .tokens = static_cast<const int32_t*>(ids_.view.raw()),
                         .residual = residual(0),
                         .rows = rows_,
                         .width = config_.hidden_size});
  }

  /// A step of linear work; between steps a request to stop is heard.
  void apply(const DeviceLinear& linear, const void* x, int64_t rows, float* y, bool adds = false) {
    context_.check_cancel();
    queue_.multiply(
        {.x = x, .weights = linear.weights.view.raw(), .y = y, .rows = rows, .out = linear.out(), .in = linear.in(), .dtype = dtype_, .adds = adds});
    if (adds && linear.bias.view.has_value()) queue_.run(BiasArgs{.bias = floats(linear.bias), .y = y, .rows = rows, .width = linear.out()});
  }

  void norm(const Tensor& weight, int64_t first, int64_t rows) {
    queue_.run(NormArgs{.x = residual(first),
                        .weight = floats(weight),
                        .y = output(normed_.view),
                        .rows = rows,
                        .width = config_.hidden_size,
                        .eps = config_.rms_norm_eps});
  }

  /// Norm, q k v, norm of heads, rotary; q to its buffer, k and v to the cache.
  void begin_layer(int layer, int64_t seen, int64_t first, int64_t rows) {
    const DeviceLayer& weights = weights_.layers[static_cast<size_t>(layer)];
    norm(weights.attention_norm, first, rows);
    float* const qkv = static_cast<float*>(sums_.view.raw());
    apply(weights.qkv, normed_.view.raw(), rows, qkv);
    const TensorView k = cache_.k(layer, cache_.capacity()), v = cache_.v(layer, cache_.capacity());
    queue_.run(TurnArgs{.qkv = qkv,
                        .bias = weights.qkv.bias_or_null(),
                        .q_norm = floats_or_null(weights.q_norm),
                        .k_norm = floats_or_null(weights.k_norm),
                        .angles = floats(angles_) + first * config_.head_dim,
                        .q = output(q_.view, q_.view.offset(first)),
                        .k = output(k, (seen + first) * k.stride(2)),
                        .v = output(v, (seen + first) * v.stride(2)),
                        .rows = rows,
                        .heads_q = config_.heads_q,
                        .heads_kv = config_.heads_kv,
                        .head_dim = config_.head_dim,
                        .stride_head = k.stride(1),
                        .eps = config_.rms_norm_eps});
  }

  /// Output projection and feed-forward part, both added to the residual.
  void finish_layer(int layer, int64_t first, int64_t rows) {
    const DeviceLayer& weights = weights_.layers[static_cast<size_t>(layer)];
    apply(weights.output, place(out_.view, out_.view.offset(first)), rows, residual(first), true);
    norm(weights.mlp_norm, first, rows);
    float* const gate_up = static_cast<float*>(sums_.view.raw());
    apply(weights.gate_up, normed_.view.raw(), rows, gate_up);
    queue_.run(SiluArgs{
        .gate_up = gate_up, .bias = weights.gate_up.bias_or_null(), .y = output(up_.view), .rows = rows, .width = config_.intermediate_size});
    apply(weights.down, up_.view.raw(), rows, residual(first), true);
  }

  /// Last norm, head, and what is asked of the logits. Bits are summed over the rows in order.
  void read_logits(ForwardResult& result) {
    const int64_t vocab = config_.vocab_size;
    const int64_t first_kept = num_tokens_ - options_.logits_rows - begin_;  // below 0: kept from the chunk's first row on
    const int64_t first_needed = options_.has_bits ? 0 : std::max<int64_t>(first_kept, 0);
    if (first_needed >= rows_) return;
    const int64_t step = std::clamp<int64_t>(kMostLogits / vocab, 1, std::min(kRows, chunk_));
    const Tensor logits = tensor(Dtype::f32, {std::min(step, rows_ - first_needed), vocab});
    std::vector<int32_t> targets;
    Tensor bits;
    if (options_.has_bits) {
      for (int64_t row = 0; row < rows_; ++row) {
        targets.push_back(begin_ + row + 1 < num_tokens_ ? tokens_[static_cast<size_t>(begin_ + row + 1)] : -1);
      }
      queue_.upload(ids_.view.raw(), targets.data(), targets.size() * sizeof(int32_t));
      bits = tensor(Dtype::f64, {rows_});
    }
    float* const values = static_cast<float*>(logits.view.raw());
    for (int64_t first = first_needed; first < rows_; first += step) {
      const int64_t count = std::min(step, rows_ - first);
      norm(weights_.final_norm, first, count);
      apply(weights_.head, normed_.view.raw(), count, values);
      if (options_.has_bits) {
        queue_.run(BitsArgs{.logits = values,
                            .targets = static_cast<const int32_t*>(ids_.view.raw()) + first,
                            .bits = static_cast<double*>(bits.view.raw()) + first,
                            .rows = count,
                            .width = vocab});
      }
      const int64_t kept = std::max(first, first_kept);
      if (kept < first + count) {
        queue_.download(&result.logits.view.at<float>(kept - first_kept, 0), values + (kept - first) * vocab,
                        static_cast<size_t>((first + count - kept) * vocab) * sizeof(float));
      }
    }
    if (!options_.has_bits) return;
    std::vector<double> of_rows(targets.size());
    queue_.download(of_rows.data(), bits.view.raw(), of_rows.size() * sizeof(double));
    for (size_t row = 0; row < of_rows.size(); ++row) {
      if (targets[row] >= 0) result.bits += of_rows[row];
    }
  }

  const ModelConfig& config_;
  const DeviceWeights& weights_;
  Dtype dtype_;
  std::span<const int32_t> tokens_;
  KvCache& cache_;
  const ForwardOptions& options_;
  Queue& queue_;
  Context& context_;
  int64_t num_tokens_, chunk_;
  int64_t begin_ = 0, rows_ = 0;  // of the chunk
  Tensor residual_, q_, out_, normed_, sums_, up_, ids_, angles_;
};

}  // namespace

ForwardResult forward(const ModelConfig& config, const DeviceWeights& weights, Dtype dtype, std::span<const int32_t> tokens, KvCache& cache,
                      const ForwardOptions& options, Queue& queue, Context& context) {
  return Pass(config, weights, dtype, tokens, cache, options, queue, context).run();
}

}  // namespace tilewise::infer::cuda
