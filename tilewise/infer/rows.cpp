// SPDX-License-Identifier: Apache-2.0
#include "tilewise/infer/rows.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "tilewise/base/dtype.h"

namespace tilewise::infer {
namespace {

/// Sums in 16 lanes, so that any vector width of the compiler keeps the order of additions.
float sum_of_squares(const float* x, int64_t size) {
  float lanes[16] = {};
  int64_t i = 0;
  for (; i + 16 <= size; i += 16) {
    for (int j = 0; j < 16; ++j) lanes[j] += x[i + j] * x[i + j];
  }
  for (int j = 0; i < size; ++i, ++j) lanes[j] += x[i] * x[i];
  float total = 0;
  for (const float lane : lanes) total += lane;
  return total;
}

}  // namespace

template <class To>
void rms_norm(const float* x, const float* weight, int64_t rows, int64_t size, float eps, To* y) {
  for (int64_t row = 0; row < rows; ++row, x += size, y += size) {
    const float scale = 1.0f / std::sqrt(sum_of_squares(x, size) / static_cast<float>(size) + eps);
    for (int64_t i = 0; i < size; ++i) y[i] = static_cast<To>(x[i] * scale * weight[i]);
  }
}
template void rms_norm(const float*, const float*, int64_t, int64_t, float, float*);
template void rms_norm(const float*, const float*, int64_t, int64_t, float, bf16*);

double prediction_bits(const float* logits, int64_t size, int32_t target) {
  const float largest = *std::max_element(logits, logits + size);
  double sum = 0;
  for (int64_t i = 0; i < size; ++i) sum += std::exp(static_cast<double>(logits[i]) - static_cast<double>(largest));
  return (std::log(sum) + static_cast<double>(largest) - static_cast<double>(logits[target])) * std::numbers::log2e;
}

}  // namespace tilewise::infer
