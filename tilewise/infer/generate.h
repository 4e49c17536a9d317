// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "tilewise/cache/contiguous.h"
#include "tilewise/infer/model.h"

TILEWISE_BEGIN_PUBLIC

/// How the next token is chosen from logits.
struct Sampling {
  double temperature = 0;  // 0: the largest logit, ties to the smaller token; else logits are divided by it
  int64_t top_k = 0;       // only the k most likely tokens; 0: all
  double top_p = 1;        // only the fewest most likely tokens whose probabilities reach p, after top_k
  uint64_t seed = 0;       // equal seeds draw equal tokens, whatever the number of threads
};

/// Chooses a token. `step` numbers the draws of one seed. Errors: value (no logit, none finite, a NaN, an option out of its range).
TILEWISE_API int32_t sample_token(std::span<const float> logits, const Sampling& sampling, uint64_t step);

struct GenerateOptions {
  int64_t max_tokens = 128;                      // at most so many are made
  std::vector<int32_t> stop_tokens = {};         // one of them ends the text; it is the last token of the result
  Sampling sampling = {};
  AttentionFunction prefill = {}, decode = {};   // of the prompt, and of each new token; empty: dense
  int64_t chunk_tokens = 0;                      // of the prefill, as ForwardOptions
  std::function<bool(int32_t token)> on_token = {};              // called with each token as it comes; false ends the text
  std::function<void(int done, int of)> progress = {};  // of the prefill, as ForwardOptions
};

struct GenerateResult {
  enum class End : uint8_t { length, stop_token, caller };
  std::vector<int32_t> tokens;
  End end = End::length;
  int64_t prompt_tokens = 0;
  ForwardResult prefill;  // its times; the logits behind the prompt
  double decode_ms = 0;   // of all tokens but the first, which comes with the prefill
  double tokens_per_second() const { return tokens.size() < 2 ? 0 : 1e3 * static_cast<double>(tokens.size() - 1) / decode_ms; }
};

/// Reads a prompt [n], n >= 1, behind what the cache holds and continues it. Afterwards the cache holds the prompt and every new token but the last: a
/// later call goes on from there with a prompt that begins with that token, and its own prefill and decode.
/// Errors  value (max_tokens below 1, a cache without room for prompt and max_tokens - 1, a stop token outside the vocabulary, sampling options), as
///         Model::forward. A call that fails or is cancelled leaves the cache with what it held before.
TILEWISE_API GenerateResult generate(const Model& model, std::span<const int32_t> prompt, KvCache& cache, const GenerateOptions& options,
                                     Context& context);

TILEWISE_END_PUBLIC
