// SPDX-License-Identifier: Apache-2.0
#include "tilewise/infer/generate.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "tilewise/base/error.h"
#include "tilewise/base/hash.h"

namespace tilewise::infer {
namespace {

void check_sampling(const char* function, const Sampling& sampling) {
  check(std::isfinite(sampling.temperature) && sampling.temperature >= 0, Error::Kind::value, function, ": temperature is ", sampling.temperature,
        "; takes 0 (the most likely token) or above");
  check(sampling.top_k >= 0, Error::Kind::value, function, ": top_k is ", sampling.top_k, "; takes a number of tokens, or 0 for all");
  check(sampling.top_p > 0 && sampling.top_p <= 1, Error::Kind::value, function, ": top_p is ", sampling.top_p, "; takes above 0, at most 1");
}

/// In [0, 1), with 53 random bits.
double uniform(uint64_t seed, uint64_t step) { return static_cast<double>(splitmix64(splitmix64(seed) ^ step) >> 11) * 0x1p-53; }

/// Puts the cache back to its length unless everything went well.
class Rollback {
 public:
  explicit Rollback(KvCache& cache) : cache_(cache), length_(cache.length()) {}
  Rollback(const Rollback&) = delete;
  Rollback& operator=(const Rollback&) = delete;
  ~Rollback() {
    if (!is_done_) cache_.truncate(length_);
  }
  void done() { is_done_ = true; }

 private:
  KvCache& cache_;
  int64_t length_;
  bool is_done_ = false;
};

}  // namespace
}  // namespace tilewise::infer

TILEWISE_BEGIN_PUBLIC

int32_t sample_token(std::span<const float> logits, const Sampling& sampling, uint64_t step) {
  infer::check_sampling("sample_token", sampling);
  check(!logits.empty(), Error::Kind::value, "sample_token: there is no logit");
  for (size_t i = 0; i < logits.size(); ++i) check(!std::isnan(logits[i]), Error::Kind::value, "sample_token: the logit of token ", i, " is NaN");
  const auto best = std::max_element(logits.begin(), logits.end());
  check(std::isfinite(*best), Error::Kind::value, "sample_token: the largest logit is ", *best, "; takes a finite one");
  if (sampling.temperature == 0 || sampling.top_k == 1) return static_cast<int32_t>(best - logits.begin());

  std::vector<int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  const auto is_likelier = [&](int32_t a, int32_t b) {
    const float x = logits[static_cast<size_t>(a)], y = logits[static_cast<size_t>(b)];
    return x != y ? x > y : a < b;
  };
  if (sampling.top_k > 0 && sampling.top_k < static_cast<int64_t>(order.size())) {
    std::nth_element(order.begin(), order.begin() + sampling.top_k, order.end(), is_likelier);
    order.resize(static_cast<size_t>(sampling.top_k));
  }
  std::sort(order.begin(), order.end(), is_likelier);
  std::vector<double> below(order.size());  // mass of a token and all likelier ones
  double total = 0;
  for (size_t i = 0; i < order.size(); ++i) {
    total += std::exp((double{logits[static_cast<size_t>(order[i])]} - double{*best}) / sampling.temperature);
    below[i] = total;
  }
  const auto last = std::lower_bound(below.begin(), below.end(), sampling.top_p * total);
  const size_t kept = std::min(static_cast<size_t>(last - below.begin()) + 1, below.size());
  const double drawn = infer::uniform(sampling.seed, step) * below[kept - 1];
  const auto at = std::upper_bound(below.begin(), below.begin() + static_cast<std::ptrdiff_t>(kept) - 1, drawn);
  return order[static_cast<size_t>(at - below.begin())];
}

GenerateResult generate(const Model& model, std::span<const int32_t> prompt, KvCache& cache, const GenerateOptions& options, Context& context) {
  infer::check_sampling("generate", options.sampling);
  check(options.max_tokens >= 1, Error::Kind::value, "generate: max_tokens is ", options.max_tokens, "; takes at least 1");
  for (const int32_t token : options.stop_tokens) {
    check(token >= 0 && token < model.config().vocab_size, Error::Kind::value, "generate: stop token ", token, " is not in [0, ",
          model.config().vocab_size, "), the vocabulary");
  }
  const auto prompt_tokens = static_cast<int64_t>(prompt.size());
  const int64_t room = cache.capacity() - cache.length();
  check(prompt_tokens <= room && options.max_tokens - 1 <= room - prompt_tokens, Error::Kind::value, "generate: a prompt of ", prompt_tokens,
        " tokens and max_tokens ", options.max_tokens, " behind ", cache.length(), " need a cache of ",
        cache.length() + prompt_tokens + options.max_tokens - 1, ", it takes ", cache.capacity(), "; make a larger one or ask for less");

  infer::Rollback rollback(cache);
  GenerateResult result;
  result.prompt_tokens = prompt_tokens;
  result.prefill =
      model.forward(prompt, cache, {.attention = options.prefill, .chunk_tokens = options.chunk_tokens, .progress = options.progress}, context);
  const auto is_over = [&] {
    const int32_t token = result.tokens.back();
    if (options.on_token && !options.on_token(token)) {
      result.end = GenerateResult::End::caller;
      return true;
    }
    if (std::find(options.stop_tokens.begin(), options.stop_tokens.end(), token) != options.stop_tokens.end()) {
      result.end = GenerateResult::End::stop_token;
      return true;
    }
    return static_cast<int64_t>(result.tokens.size()) == options.max_tokens;
  };
  const auto draw = [&](const Tensor& logits) {
    const std::span<const float> row(logits.view.data<float>(), static_cast<size_t>(model.config().vocab_size));
    result.tokens.push_back(sample_token(row, options.sampling, result.tokens.size()));
  };
  draw(result.prefill.logits);
  while (!is_over()) {
    const ForwardResult step = model.forward(std::span(&result.tokens.back(), 1), cache, {.attention = options.decode}, context);
    result.decode_ms += step.total_ms;
    draw(step.logits);
  }
  rollback.done();
  return result;
}

TILEWISE_END_PUBLIC
