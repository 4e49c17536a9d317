// SPDX-License-Identifier: Apache-2.0
#include "tilewise/study/progress.h"

#include <algorithm>
#include <numeric>

namespace tilewise::study {

size_t ProgressMeter::add(double work) {
  work_.push_back(work);
  return work_.size() - 1;
}

void ProgressMeter::begin(size_t stage, std::string name) {
  stage_ = stage;
  name_ = std::move(name);
}

void ProgressMeter::part(const std::string& part, double done) {
  if (!tell_ || stage_ >= work_.size()) return;
  const double before = std::accumulate(work_.begin(), work_.begin() + static_cast<std::ptrdiff_t>(stage_), 0.0);
  const double all = std::accumulate(work_.begin(), work_.end(), 0.0);
  last_ = std::max(last_, all > 0 ? std::min(1.0, (before + std::clamp(done, 0.0, 1.0) * work_[stage_]) / all) : 1.0);
  // The first layers hold the start of threads and first touches of memory; a guess from them would be wild.
  const double left = last_ < .01 ? -1 : watch_.ms() / 1000 * (1 - last_) / last_;
  tell_({name_, part, last_, left});
}

void ProgressMeter::drop(size_t stage) {
  if (stage < work_.size()) work_[stage] = 0;
}

}  // namespace tilewise::study
