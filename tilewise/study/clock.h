// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <chrono>

namespace tilewise::study {

/// Wall time since it was made.
class Stopwatch {
 public:
  double ms() const { return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start_).count(); }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

}  // namespace tilewise::study
