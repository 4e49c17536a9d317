// SPDX-License-Identifier: Apache-2.0
#include "tilewise_torch/ops/executor.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>

#include "tilewise_torch/ops/tensors.h"

namespace tilewise::ops {
namespace {

// Kernels size scratch memory by concurrency(), so the number is taken once for each executor: torch.set_num_threads may come in between.
class TorchExecutor final : public Executor {
 public:
  explicit TorchExecutor(int threads) : concurrency_(threads) {}
  int concurrency() const override { return concurrency_; }

  void run(int64_t count, FunctionRef<void(int64_t, int)> body) override {
    if (inside_.executor == this) {
      for (int64_t item = 0; item < count; ++item) body(item, inside_.worker);
      return;
    }
    Job job{count, body};
    const int64_t workers = std::min<int64_t>(count, concurrency_);
    if (workers <= 1) {
      if (count > 0) work_on(job, 0);
    } else {
      // An exception must not pass through torch's parallel region: work_on keeps it.
      torch::stable::parallel_for(0, workers, 1, [&](int64_t first, int64_t last) {
        for (int64_t worker = first; worker < last; ++worker) work_on(job, static_cast<int>(worker));
      });
    }
    if (job.error) std::rethrow_exception(job.error);
  }

 private:
  struct Job {
    const int64_t count;
    FunctionRef<void(int64_t, int)> body;
    std::atomic<int64_t> next = 0;
    std::mutex mutex = {};
    std::exception_ptr error = {};  // under mutex
  };
  struct Inside {
    const TorchExecutor* executor = nullptr;
    int worker = 0;
  };
  static thread_local Inside inside_;

  void work_on(Job& job, int worker) const {
    const Inside outside = inside_;
    inside_ = {this, worker};
    try {
      for (int64_t item = job.next.fetch_add(1, std::memory_order_relaxed); item < job.count;
           item = job.next.fetch_add(1, std::memory_order_relaxed)) {
        job.body(item, worker);
      }
    } catch (...) {
      job.next.store(job.count, std::memory_order_relaxed);
      const std::lock_guard lock(job.mutex);
      if (!job.error) job.error = std::current_exception();
    }
    inside_ = outside;
  }

  const int concurrency_;
};

thread_local TorchExecutor::Inside TorchExecutor::inside_;

}  // namespace

std::shared_ptr<Executor> torch_executor() { return std::make_shared<TorchExecutor>(static_cast<int>(torch::stable::get_num_threads())); }

}  // namespace tilewise::ops
