// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>

namespace tilewise {

/// The output function of the SplitMix64 generator (Steele, Lea, Flood 2014), used as an integer hash.
constexpr uint64_t splitmix64(uint64_t x) {
  x += 0x9e3779b97f4a7c15ull;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

}  // namespace tilewise
