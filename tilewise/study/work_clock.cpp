// SPDX-License-Identifier: Apache-2.0
#include "tilewise/study/work_clock.h"

#include <algorithm>
#include <ctime>
#include <vector>

namespace tilewise::study {
namespace {

int64_t thread_ns() {
  timespec time{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return int64_t{time.tv_sec} * 1000000000 + time.tv_nsec;
}

// Items of one parallel part within those of another are part of theirs.
thread_local bool is_inside = false;

class Inside {
 public:
  Inside() { is_inside = true; }
  Inside(const Inside&) = delete;
  Inside& operator=(const Inside&) = delete;
  ~Inside() { is_inside = false; }
};

struct alignas(64) WorkerTime {
  int64_t all_ns = 0, longest_ns = 0;
};

}  // namespace

class WorkClock::Counting final : public Executor {
 public:
  explicit Counting(std::shared_ptr<Executor> base) : base_(std::move(base)) {}

  int concurrency() const override { return base_->concurrency(); }

  void run(int64_t count, FunctionRef<void(int64_t, int)> body) override {
    if (is_inside) return base_->run(count, body);
    const int64_t before = thread_ns();
    std::vector<WorkerTime> times(static_cast<size_t>(concurrency()));
    base_->run(count, [&](int64_t item, int worker) {
      const Inside inside;
      const int64_t begin = thread_ns();
      body(item, worker);
      const int64_t took = thread_ns() - begin;
      WorkerTime& time = times[static_cast<size_t>(worker)];
      time.all_ns += took;
      time.longest_ns = std::max(time.longest_ns, took);
    });
    int64_t all = 0, longest = 0;
    for (const WorkerTime& time : times) {
      all += time.all_ns;
      longest = std::max(longest, time.longest_ns);
    }
    parallel_ns_ += std::max(all / concurrency(), longest);
    caller_ns_ += thread_ns() - before;
  }

  int64_t parallel_ns() const { return parallel_ns_; }
  /// The calling thread's own, within run().
  int64_t caller_ns() const { return caller_ns_; }

 private:
  std::shared_ptr<Executor> base_;
  int64_t parallel_ns_ = 0, caller_ns_ = 0;
};

WorkClock::WorkClock(const Context& context) : counting_(std::make_shared<Counting>(context.executor)), context_(context), start_ns_(thread_ns()) {
  context_.executor = counting_;
}

double WorkClock::ms() const { return static_cast<double>(thread_ns() - start_ns_ - counting_->caller_ns() + counting_->parallel_ns()) / 1e6; }

}  // namespace tilewise::study
