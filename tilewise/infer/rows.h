// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>

namespace tilewise::infer {

/// y = x / sqrt(mean(x^2) + eps) * weight, one row of `size` numbers at a time; y is float or bf16 (rounded once), and may be x. Source: RMSNorm, arXiv
/// 1910.07467.
template <class To>
void rms_norm(const float* x, const float* weight, int64_t rows, int64_t size, float eps, To* y);

/// -log2 of the share that `target` has in softmax(logits), in f64.
double prediction_bits(const float* logits, int64_t size, int32_t target);

}  // namespace tilewise::infer
