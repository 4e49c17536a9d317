// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>

namespace tilewise::attend::cpu {

/// Lets items that run at once add to shared sums in the order of their numbers: item i adds to a position once every lower item of its group has passed
/// it. Positions of an item rise. Sums have the bits of a serial run, whatever the number of threads.
/// Items must be started in ascending order, as Executor::run does: then the lowest unfinished item never waits.
class Turns {
 public:
  explicit Turns(int64_t items) : passed_(std::make_unique<std::atomic<int64_t>[]>(static_cast<size_t>(items))) {}

  /// Where a worker's search for unfinished items begins; one for each worker.
  struct Hint {
    int64_t first = 0;
  };

  /// Returns once all items in [first, item) have passed `position`; false: the run was stopped, be it that nobody had to be waited for.
  template <class IsStopped>
  bool wait(int64_t first, int64_t item, int64_t position, Hint& hint, const IsStopped& is_stopped) const {
    if (hint.first < first) hint.first = first;
    while (hint.first < item && passed(hint.first) == kFinished) ++hint.first;
    for (int64_t lower = hint.first; lower < item; ++lower) {
      for (int tries = 0; passed(lower) <= position; ++tries) {
        if (is_aborted_.load(std::memory_order_relaxed) || is_stopped()) return false;
        if (tries >= kSpins) std::this_thread::yield();
      }
    }
    return !is_aborted_.load(std::memory_order_relaxed) && !is_stopped();
  }
  /// The item will add to nothing below `position` any more.
  void pass(int64_t item, int64_t position) { passed_[static_cast<size_t>(item)].store(position, std::memory_order_release); }
  void finish(int64_t item) { pass(item, kFinished); }
  /// Some item failed: nobody waits for it.
  void abort() { is_aborted_.store(true, std::memory_order_relaxed); }
  bool is_aborted() const { return is_aborted_.load(std::memory_order_relaxed); }

 private:
  static constexpr int64_t kFinished = INT64_MAX;
  static constexpr int kSpins = 1000;

  int64_t passed(int64_t item) const { return passed_[static_cast<size_t>(item)].load(std::memory_order_acquire); }

  std::unique_ptr<std::atomic<int64_t>[]> passed_;
  std::atomic<bool> is_aborted_{false};
};

}  // namespace tilewise::attend::cpu
