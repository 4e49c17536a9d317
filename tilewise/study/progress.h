// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstddef>
#include <functional>
#include <string>
#include <vector>

#include "tilewise/study/clock.h"
#include "tilewise/study/compare.h"

namespace tilewise::study {

/// Adds up how much work is known to come, stage by stage, and tells the caller where it stands and how long it will take. The unit of work is free:
/// only shares of the whole are told.
class ProgressMeter {
 public:
  explicit ProgressMeter(std::function<void(const CompareProgress&)> tell) : tell_(std::move(tell)) {}

  /// One more stage, behind those that there are. Returns its number.
  size_t add(double work);
  /// `stage` begins; those before it are over, however much of them was done.
  void begin(size_t stage, std::string name);
  /// `done` of the current stage's work is behind us; `part` is about to be worked on.
  void part(const std::string& part, double done);
  /// Nothing more is to come of this stage, and what it was to be does not count.
  void drop(size_t stage);

 private:
  std::function<void(const CompareProgress&)> tell_;
  std::vector<double> work_;
  Stopwatch watch_;
  std::string name_;
  size_t stage_ = 0;
  double last_ = 0;  // shares never fall, though work may be added
};

}  // namespace tilewise::study
