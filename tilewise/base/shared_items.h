// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <atomic>
#include <cstdint>
#include <exception>
#include <mutex>

#include "tilewise/base/executor.h"

namespace tilewise::base {

/// The items of one Executor::run, which its workers take one by one.
class SharedItems {
 public:
  SharedItems(const Executor& owner, int64_t count, FunctionRef<void(int64_t, int)> body) : owner_(owner), count_(count), body_(body) {}

  bool has_left() const { return next_.load(std::memory_order_relaxed) < count_; }
  /// Takes items until none is left. The first exception is kept and drops the rest; nothing is thrown.
  void work(int worker) noexcept {
    const Inside outside = inside_;
    inside_ = {&owner_, worker};
    try {
      for (int64_t item = next_.fetch_add(1, std::memory_order_relaxed); item < count_; item = next_.fetch_add(1, std::memory_order_relaxed)) {
        body_(item, worker);
      }
    } catch (...) {
      next_.store(count_, std::memory_order_relaxed);
      const std::lock_guard lock(mutex_);
      if (!error_) error_ = std::current_exception();
    }
    inside_ = outside;
  }
  /// Once all workers are done.
  void rethrow() const {
    if (error_) std::rethrow_exception(error_);
  }

  /// For a run from inside a body of the same executor, whose other workers are busy: all items in the calling worker. False: it is not inside.
  static bool ran_inside(const Executor& owner, int64_t count, FunctionRef<void(int64_t, int)> body) {
    if (inside_.owner != &owner) return false;
    for (int64_t item = 0; item < count; ++item) body(item, inside_.worker);
    return true;
  }

 private:
  // Whose body this thread runs, as which worker.
  struct Inside {
    const Executor* owner;
    int worker;
  };
  static inline thread_local Inside inside_{nullptr, 0};

  const Executor& owner_;
  const int64_t count_;
  FunctionRef<void(int64_t, int)> body_;
  std::atomic<int64_t> next_ = 0;
  std::mutex mutex_;
  std::exception_ptr error_;  // under mutex_
};

}  // namespace tilewise::base
