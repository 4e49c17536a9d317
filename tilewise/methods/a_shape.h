// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "tilewise/methods/options.h"

namespace tilewise::method {

struct AShapeOptions {
  int init = 64, local = 2048, dense_last = 0, tile = 64;
  static void each_field(auto& self, auto&& field) {
    field("init", self.init, range(0, 1 << 30), grid(64, 128, 1024), "first tokens that every query reads");
    field("local", self.local, range(1, 1 << 30), grid(1024, 2048, 4096), "last tokens that a query reads, itself among them");
    field("dense_last", self.dense_last, range(0, 1 << 30), no_grid(), "last queries that read everything (tri-shape)");
    field("tile", self.tile, range(16, 256), no_grid(), "query tokens per row of the plan");
  }
};

/// Key k is read by query token t iff 0 <= t - k < local, or k < init and k <= t; the last `dense_last` queries of q read every k <= t. The same in every
/// head, from lengths alone: q [B, Hq, Sq, D] and k [B, Hkv, Sk, D], f32, bf16 or f16, are asked for their shapes only; t = query + Sk - Sq.
/// Edges   dense_last 0 is a band. From 1 on the mask is one of spans, [1, 1, Sq, 4] i32; at least Sq of them is the dense plan.
/// Errors  value (an option outside its range); unsupported (a mask that is not plainly causal); shape, dtype, device (q and k that do not fit); memory.
/// Source  MInference, arXiv 2407.02490, A-shape heads (StreamingLLM's sink and window); dense_last: tri-shape of its later code and of TriangleMix.
TILEWISE_API Planned a_shape(const Problem& problem, const AShapeOptions& options, Context& context);

}  // namespace tilewise::method
