// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <span>
#include <string>

#include "tilewise/infer/model.h"

TILEWISE_BEGIN_PUBLIC

/// The fastest of several dense forward passes and where its time went.
struct ModelTiming {
  int64_t tokens = 0;
  int repeats = 0;
  double total_ms = 0, linear_ms = 0, attention_ms = 0, logits_ms = 0;  // as ForwardResult
  double plan_ms = 0;                                                   // the part of attention_ms that makes plans
  double bits_per_token = 0;                                            // per prediction
  ModelFlops flops;                                                     // needed: the head counted for every token
  std::string backend;                                                  // "cpu/avx512": what ran attention
  double gflops() const { return flops.total() / total_ms / 1e6; }
  double linear_gflops() const { return flops.linear / (linear_ms + logits_ms) / 1e6; }
  double attention_gflops() const { return flops.attention / attention_ms / 1e6; }
};

/// Runs tokens [n], n >= 2, through the model `repeats` times, dense, with bits, each time into an empty cache (made before the clock starts).
/// What `tilewise bench` holds against the peak: gflops() over the rate of the machine's FMA.
/// Errors: value (repeats below 1, one token), as Model::forward.
TILEWISE_API ModelTiming time_model(const Model& model, std::span<const int32_t> tokens, int repeats, Context& context);

TILEWISE_END_PUBLIC
