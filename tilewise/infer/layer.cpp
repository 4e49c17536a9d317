// SPDX-License-Identifier: Apache-2.0
#include "tilewise/infer/layer.h"

#include <optional>

#include "tilewise/attend/attend.h"
#include "tilewise/attend/decode.h"
#include "tilewise/methods/registry.h"

namespace tilewise::infer {
namespace {

constexpr int64_t kMostNewTokens = 8;  // of attend_decode

bool is_few(const LayerAttention& layer) { return layer.q.dim(2) <= kMostNewTokens; }

// Decode has neither slots nor masks that are no band.
bool decodes(const PlanData& plan) {
  return !plan.order_q.token.has_value() && !plan.order_k.token.has_value() && plan.pools.empty() && !plan.mask.bands.empty();
}

/// Decode where a backend has it. A GPU whose backends have none for the problem (f32, or no Hopper) runs forward over the same keys: nothing is returned.
std::optional<Ran> try_decode(const DecodeParams& params, Context& context) {
  try {
    return attend_decode(params, context);
  } catch (const Error& error) {
    if (context.device.type == Device::Type::cpu || error.kind() != Error::Kind::unsupported) throw;
    return std::nullopt;
  }
}

}  // namespace

Ran attend_layer(const LayerAttention& layer, const Plan& plan, Context& context) {
  if (is_few(layer) && decodes(*plan)) {
    if (const auto ran = try_decode({.q = layer.q, .k = layer.k, .v = layer.v, .out = layer.out, .plan = plan}, context)) return *ran;
  }
  return attend_forward({.q = layer.q, .k = layer.k, .v = layer.v, .out = layer.out, .plan = plan}, context);
}

}  // namespace tilewise::infer

TILEWISE_BEGIN_PUBLIC

AttentionFunction dense_attention() {
  return [](const LayerAttention& layer, Context& context) {
    if (infer::is_few(layer)) {
      const Mask::Band causal{.left = Mask::kAll, .right = 0, .sink = 0};
      if (infer::try_decode({.q = layer.q, .k = layer.k, .v = layer.v, .out = layer.out, .dense_band = causal}, context)) return;
    }
    Problem problem;
    problem.q = layer.q;
    problem.k = layer.k;
    const Plan plan = plan_with("dense", problem, {}, context).plan;
    attend_forward({.q = layer.q, .k = layer.k, .v = layer.v, .out = layer.out, .plan = plan}, context);
  };
}

TILEWISE_END_PUBLIC
