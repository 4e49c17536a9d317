// SPDX-License-Identifier: Apache-2.0
#include "tilewise_torch/ops/executor.h"

#include <algorithm>

#include "tilewise/base/shared_items.h"
#include "tilewise_torch/ops/tensors.h"

namespace tilewise::ops {
namespace {

// Kernels size scratch memory by concurrency(), so the number is taken once for each executor: torch.set_num_threads may come in between.
class TorchExecutor final : public Executor {
 public:
  explicit TorchExecutor(int threads) : concurrency_(threads) {}
  int concurrency() const override { return concurrency_; }

  void run(int64_t count, FunctionRef<void(int64_t, int)> body) override {
    if (base::SharedItems::ran_inside(*this, count, body)) return;
    base::SharedItems items(*this, count, body);
    const int64_t workers = std::min<int64_t>(count, concurrency_);
    if (workers <= 1) {
      items.work(0);
    } else {
      // An exception must not pass through torch's parallel region: work() keeps it.
      torch::stable::parallel_for(0, workers, 1, [&](int64_t first, int64_t last) {
        for (int64_t worker = first; worker < last; ++worker) items.work(static_cast<int>(worker));
      });
    }
    items.rethrow();
  }

 private:
  const int concurrency_;
};

}  // namespace

std::shared_ptr<Executor> torch_executor() { return std::make_shared<TorchExecutor>(static_cast<int>(torch::stable::get_num_threads())); }

}  // namespace tilewise::ops
