// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cmath>
#include <cstdint>

namespace tilewise::attend::reference {

inline double dot(const double* a, const double* b, int64_t length) {
  double sum = 0;
  for (int64_t i = 0; i < length; ++i) sum += a[i] * b[i];
  return sum;
}

/// softcap * tanh(s / softcap); 0: s as it is.
inline double cap(double scaled, double softcap) { return softcap == 0 ? scaled : softcap * std::tanh(scaled / softcap); }

/// Derivative of cap, from its value: 1 - tanh^2.
inline double cap_slope(double capped, double softcap) { return softcap == 0 ? 1 : 1 - (capped / softcap) * (capped / softcap); }

}  // namespace tilewise::attend::reference
