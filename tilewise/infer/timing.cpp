// SPDX-License-Identifier: Apache-2.0
#include "tilewise/infer/timing.h"

#include "tilewise/base/error.h"
#include "tilewise/cache/contiguous.h"
#include "tilewise/infer/recipe.h"

TILEWISE_BEGIN_PUBLIC

ModelTiming time_model(const Model& model, std::span<const int32_t> tokens, int repeats, Context& context) {
  check(repeats >= 1, Error::Kind::value, "time_model: repeats is ", repeats, "; takes at least 1");
  check(tokens.size() >= 2, Error::Kind::value, "time_model: ", tokens.size(), " tokens; takes at least 2, a first one and one to predict");
  const auto num_tokens = static_cast<int64_t>(tokens.size());
  ModelTiming best;
  const auto cache = model.make_cache(num_tokens, context);
  for (int repeat = 0; repeat < repeats; ++repeat) {
    double plan_ms = 0;
    std::string backend;
    const auto observe = [&](const LayerReport& report) {
      plan_ms += report.plan_ms;
      backend = report.ran.target.empty() ? report.ran.backend : report.ran.backend + "/" + report.ran.target;
    };
    cache->truncate(0);
    const ForwardResult result = model.forward(tokens, *cache, {.attention = method_attention("dense", {}, observe), .has_bits = true}, context);
    if (repeat > 0 && result.total_ms >= best.total_ms) continue;
    best.total_ms = result.total_ms;
    best.linear_ms = result.linear_ms;
    best.attention_ms = result.attention_ms;
    best.logits_ms = result.logits_ms;
    best.plan_ms = plan_ms;
    best.bits_per_token = result.bits / static_cast<double>(result.predictions);
    best.backend = backend;
  }
  best.tokens = num_tokens;
  best.repeats = repeats;
  best.flops = model_flops(model.config(), num_tokens, 0, num_tokens);
  return best;
}

TILEWISE_END_PUBLIC
