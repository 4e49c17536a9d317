// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <memory>

#include "tilewise/base/context.h"

namespace tilewise::study {

/// What work takes on threads that have their cores for themselves, from the CPU time that it took: wall time also counts what other programs took, and
/// how the threads happened to share the items out. CPU time of the calling thread; of parallel parts that of all items over the number of workers, but
/// at least the longest item. Counts what runs with context(), in the thread that made the clock, since it was made.
class WorkClock {
 public:
  explicit WorkClock(const Context& context);

  Context& context() { return context_; }
  double ms() const;

 private:
  class Counting;

  std::shared_ptr<Counting> counting_;
  Context context_;
  int64_t start_ns_;
};

}  // namespace tilewise::study
