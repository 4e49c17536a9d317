// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>

#include "tilewise/base/hash.h"
#include "tilewise/machine/cuda/block.h"

namespace tilewise::infer {

/// The weight at place `index` of a drawn tensor: the sum of four uniform numbers of 16 bits, which is near to normal, of mean 0 and standard deviation
/// `deviation`. Whole numbers but for one product, so that every machine draws the same.
TILEWISE_HOST_DEVICE inline float drawn_weight(uint64_t key, int64_t index, float deviation) {
  const uint64_t bits = splitmix64(key ^ splitmix64(static_cast<uint64_t>(index)));
  const int sum = static_cast<int>((bits & 0xffffU) + ((bits >> 16) & 0xffffU) + ((bits >> 32) & 0xffffU) + (bits >> 48));
  constexpr float kUnit = 1 / 37837.227f;  // 2^16 / sqrt(3): the deviation of the sum, whose mean is 131070
  return static_cast<float>(sum - 131070) * (kUnit * deviation);
}

}  // namespace tilewise::infer
