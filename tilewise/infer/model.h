// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "tilewise/base/context.h"
#include "tilewise/base/dtype.h"
#include "tilewise/base/memory.h"

TILEWISE_BEGIN_PUBLIC

/// How a model reaches beyond the positions that it was trained on: `rope_scaling` (or `rope_parameters`) of config.json. Angles are made for each call
/// of forward; where they depend on the length (dynamic, longrope) it is that of the cache with the call's tokens, and cached keys stay as they are.
struct RopeScaling {
  enum class Kind : uint8_t { plain, linear, dynamic, llama3, yarn, longrope };
  Kind kind = Kind::plain;
  double factor = 1;  // how much longer
  int64_t original_positions = 0;  // trained on; dynamic, llama3, yarn, longrope
  double low_turns = 1;  // llama3 (low_freq_factor), yarn (beta_slow): pairs that turn less often over these positions are stretched whole,
  double high_turns = 4;  // llama3 (high_freq_factor), yarn (beta_fast): those that turn more often are left alone
  bool is_rounded = true;  // yarn (truncate): the ramp begins and ends at whole pairs
  std::vector<double> short_factors, long_factors;  // longrope, [D / 2]: up to original_positions, and beyond
  double attention_factor = 1;  // yarn, longrope: cosine and sine are multiplied by it
};

/// Shape of a Hugging Face Llama-family model, from config.json.
struct ModelConfig {
  std::string architecture;  // "LlamaForCausalLM"
  int num_layers = 0, hidden_size = 0, intermediate_size = 0;
  int heads_q = 0, heads_kv = 0, head_dim = 0, vocab_size = 0;
  int64_t max_positions = 0;
  float rms_norm_eps = 0, rope_theta = 0;
  RopeScaling rope = {};
  bool is_tied = false;
  bool has_qkv_bias = false, has_output_bias = false, has_mlp_bias = false;
  bool has_qk_norm = false;  // RMS norm over the channels of each head of q and k, before rotary
  std::vector<int32_t> stop_tokens = {};  // eos_token_id: what ends a text
  bool reads_bytes = false;  // vocabulary 256 and no tokenizer.json: a token is a byte
  std::string hash;  // of config.json, as recipes name it
};

/// K and V of every layer for the tokens read so far: tilewise/cache/contiguous.h.
class KvCache;

/// One layer's attention, as the model hands it out. q, k are after rotary; k and v hold all cached tokens.
struct LayerAttention {
  int layer = 0;
  TensorView q, k, v;  // [1, Hq, Sq, D], [1, Hkv, Sk, D], [1, Hkv, Sk, D] in the model's dtype; Sq <= Sk, causal bottom-right
  TensorView out;  // to be written, [1, Hq, Sq, D] in that dtype
};
/// Computes one layer's attention. Its time is counted as attention, everything else as the model's own.
using AttentionFunction = std::function<void(const LayerAttention&, Context&)>;

struct ForwardResult {
  Tensor logits;  // [rows, vocab] f32 of the last `rows` tokens, in host memory
  double bits = 0;  // sum over predictions of -log2 p(next token), where asked for
  int64_t predictions = 0;  // how many: tokens - 1
  double linear_ms = 0;  // wall time of linear layers and what is done on the way between them (norms, rotary, silu, residual)
  double attention_ms = 0;  // wall time within AttentionFunction
  double logits_ms = 0;  // last norm, head and bits
  double total_ms = 0;  // all of forward: the three above, embedding and memory
};

struct ForwardOptions {
  AttentionFunction attention = {};  // empty: dense
  int64_t logits_rows = 1;  // logits of this many last tokens are returned; 0 to all
  bool has_bits = false;  // also sum, in f64, the bits of predicting tokens[1..] from tokens[0..]
  int64_t chunk_tokens = 0;  // tokens that go through all layers together, at least 1; memory beside the cache grows with it. 0: all at once
  std::function<void(int done, int of)> progress = {};  // in the calling thread before each layer of each chunk, and with `of` at the end
};

/// Floating-point operations that a forward pass needs, a multiply-add counted as two.
struct ModelFlops {
  double linear = 0;  // all linear layers and the head, for the rows that it is asked for
  double attention = 0;  // the two products of causal attention, over the pairs that the mask allows
  double total() const { return linear + attention; }
};
/// Of `tokens` tokens behind `cached` ones, the head over `head_rows` of them (all of them where bits are asked for).
TILEWISE_API ModelFlops model_flops(const ModelConfig& config, int64_t tokens, int64_t cached, int64_t head_rows);

struct ModelOptions {
  Dtype dtype =
      Dtype::f32;  // f32; or bf16: weights, the operands of linear layers, q, k, v and the cache, while sums, norms and the residual stay f32
  std::optional<uint64_t> random_weights =
      {};  // a seed: the folder needs config.json alone, and weights are drawn, alike on every machine: matrices of
  // standard deviation 0.02, norms 1, biases 0. For what a shape costs, not for what a model says
};

/// A checkpoint in memory, ready to run. Weights are memory-mapped, then converted once to the model's dtype in the layout that oneDNN likes. Tokens
/// go through the linear layers in slices of 256 rows, each within one worker, so bits do not depend on the number of threads.
/// With a context on a GPU the model is there: weights in its memory, products by cuBLASLt (f32 is multiplied as f32, without TF32), q, k, v and the cache
/// on the device, and AttentionFunction gets device tensors. Equal calls give equal bits; other chunks or another GPU may give others.
/// Forward passes on different caches may run at once, each with a Context of its own.
class TILEWISE_API Model {
 public:
  /// Reads DIR/config.json and DIR/model.safetensors, or the files that DIR/model.safetensors.index.json names.
  /// Errors: io (missing or damaged file, tensor with a wrong shape), unsupported (an architecture or a feature of it, by name; bf16 where oneDNN has
  /// no such kernels; a GPU in a build without CUDA or where cuBLASLt is not found), device (no such GPU), dtype, memory, cuda, cancelled.
  static Model load(const std::string& directory, Context& context, const ModelOptions& options = {});
  Model(Model&&) noexcept;
  Model& operator=(Model&&) noexcept;
  ~Model();

  const ModelConfig& config() const;
  Dtype dtype() const;
  Device device() const;
  /// Errors: value (capacity below 0 or above max_positions), device (the context is not on the model's), memory.
  std::unique_ptr<KvCache> make_cache(int64_t capacity, Context& context) const;
  /// Runs tokens [n] behind what the cache holds and appends their K and V. A call that fails leaves the cache as it was.
  /// Errors: value (no token, a token outside the vocabulary, cache too small or of another model, logits_rows above n, chunk_tokens below 0), device (context or
  /// cache not on the model's), memory, cuda, cancelled.
  ForwardResult forward(std::span<const int32_t> tokens, KvCache& cache, const ForwardOptions& options, Context& context) const;

 private:
  struct Impl;
  explicit Model(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

TILEWISE_END_PUBLIC
