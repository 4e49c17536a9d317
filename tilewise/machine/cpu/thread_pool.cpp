// SPDX-License-Identifier: Apache-2.0
#include "tilewise/machine/cpu/thread_pool.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <mutex>
#include <thread>
#include <vector>

#include "tilewise/base/error.h"
#include "tilewise/base/shared_items.h"

TILEWISE_BEGIN_PUBLIC

namespace {

constexpr auto kSpin = std::chrono::microseconds(20);  // longer than the gap between two kernels of one model layer, shorter than anyone notices

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#else
  std::this_thread::yield();
#endif
}

// Spins until holds() or the time is up; says whether it holds.
template <class Condition>
bool spin_until(const Condition& holds) {
  const auto end = std::chrono::steady_clock::now() + kSpin;
  do {
    for (int i = 0; i < 32; ++i) {
      if (holds()) return true;
      pause();
    }
  } while (std::chrono::steady_clock::now() < end);
  return holds();
}

class ThreadPool final : public Executor {
 public:
  explicit ThreadPool(int threads) : concurrency_(threads) {
    threads_.reserve(static_cast<size_t>(threads - 1));
    try {
      for (int worker = 1; worker < threads; ++worker) threads_.emplace_back([this, worker] { serve(worker); });
    } catch (...) {
      stop();
      throw;
    }
  }
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;
  ~ThreadPool() override { stop(); }

  int concurrency() const override { return concurrency_; }

  void run(int64_t count, FunctionRef<void(int64_t, int)> body) override {
    if (count <= 0) return;
    if (base::SharedItems::ran_inside(*this, count, body)) return;
    Job job(*this, count, body);
    const bool is_shared = count > 1 && concurrency_ > 1;
    if (is_shared) publish(job);
    job.work(0);
    if (is_shared) withdraw(job);
    job.rethrow();
  }

 private:
  struct Job : base::SharedItems {
    using SharedItems::SharedItems;
    std::atomic<int> helpers = 0;  // threads of the pool inside; changed under mutex_
  };

  void publish(Job& job) {
    {
      const std::lock_guard lock(mutex_);
      jobs_.push_back(&job);
      posted_.fetch_add(1);
    }
    posted_.notify_all();
  }

  // Takes the job from the list, so that nobody joins any more, and waits until nobody is inside.
  void withdraw(Job& job) {
    {
      const std::lock_guard lock(mutex_);
      std::erase(jobs_, &job);
    }
    const auto is_alone = [&] { return job.helpers.load() == 0; };
    while (!spin_until(is_alone)) {
      const uint32_t seen = left_.load();
      if (is_alone()) break;
      left_.wait(seen);
    }
    const std::lock_guard lock(mutex_);  // the last helper counts itself out under the lock: behind it, `job` is ours alone
  }

  // The first job with items left, entered; null: none.
  Job* enter() {
    const std::lock_guard lock(mutex_);
    for (Job* const job : jobs_) {
      if (job->has_left()) {
        job->helpers.fetch_add(1);
        return job;
      }
    }
    return nullptr;
  }

  void leave(Job& job) {
    {
      const std::lock_guard lock(mutex_);
      job.helpers.fetch_sub(1);
      left_.fetch_add(1);
    }
    left_.notify_all();  // `job` may be gone
  }

  void serve(int worker) {
    for (;;) {
      const uint32_t seen = posted_.load();
      if (is_stopping_.load()) return;
      if (Job* const job = enter()) {
        job->work(worker);
        leave(*job);
        continue;
      }
      if (!spin_until([&] { return posted_.load(std::memory_order_relaxed) != seen; })) posted_.wait(seen);
    }
  }

  void stop() {
    is_stopping_.store(true);
    posted_.fetch_add(1);
    posted_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }

  const int concurrency_;
  std::mutex mutex_;
  std::vector<Job*> jobs_;              // under mutex_
  std::atomic<uint32_t> posted_ = 0;    // counts jobs published
  std::atomic<uint32_t> left_ = 0;      // counts helpers that left a job
  std::atomic<bool> is_stopping_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace

std::shared_ptr<Executor> make_thread_pool(int threads) {
  check(threads >= 1 && threads <= 1024, Error::Kind::value, "make_thread_pool: threads is ", threads, ", takes 1 to 1024");
  return std::make_shared<ThreadPool>(threads);
}

TILEWISE_END_PUBLIC
