// SPDX-License-Identifier: Apache-2.0
#include "tilewise/infer/layer.h"

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

}  // namespace

Ran attend_layer(const LayerAttention& layer, const Plan& plan, Context& context) {
  if (is_few(layer) && decodes(*plan)) {
    return attend_decode({.q = layer.q, .k = layer.k, .v = layer.v, .out = layer.out, .plan = plan}, context);
  }
  return attend_forward({.q = layer.q, .k = layer.k, .v = layer.v, .out = layer.out, .plan = plan}, context);
}

}  // namespace tilewise::infer

TILEWISE_BEGIN_PUBLIC

AttentionFunction dense_attention() {
  return [](const LayerAttention& layer, Context& context) {
    if (infer::is_few(layer)) {
      attend_decode({.q = layer.q, .k = layer.k, .v = layer.v, .out = layer.out, .dense_band = Mask::Band{.left = Mask::kAll, .right = 0, .sink = 0}},
                    context);
      return;
    }
    Problem problem;
    problem.q = layer.q;
    problem.k = layer.k;
    infer::attend_layer(layer, plan_with("dense", problem, {}, context).plan, context);
  };
}

TILEWISE_END_PUBLIC
