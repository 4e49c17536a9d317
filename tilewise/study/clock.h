// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <algorithm>
#include <chrono>
#include <vector>

#include "tilewise/machine/device.h"

namespace tilewise::study {

/// Wall time since it was made. With a context its device's work is waited for at both ends, so that the time is that of the work given between them.
class Stopwatch {
 public:
  Stopwatch() = default;
  explicit Stopwatch(const Context& context) : context_(&context) {
    machine::wait(context);
    start_ = std::chrono::steady_clock::now();
  }
  double ms() const {
    if (context_ != nullptr) machine::wait(*context_);
    return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start_).count();
  }

 private:
  const Context* context_ = nullptr;
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

/// The middle of at least one time (the larger of two).
inline double median(std::vector<double> times) {
  const auto middle = times.begin() + static_cast<std::ptrdiff_t>(times.size() / 2);
  std::nth_element(times.begin(), middle, times.end());
  return *middle;
}

}  // namespace tilewise::study
