// SPDX-License-Identifier: Apache-2.0
#include "tilewise/base/executor.h"

TILEWISE_BEGIN_PUBLIC

namespace {

class SerialExecutor final : public Executor {
 public:
  int concurrency() const override { return 1; }
  void run(int64_t count, FunctionRef<void(int64_t, int)> body) override {
    for (int64_t item = 0; item < count; ++item) body(item, 0);
  }
};

}  // namespace

std::shared_ptr<Executor> serial_executor() {
  static const std::shared_ptr<Executor> executor = std::make_shared<SerialExecutor>();
  return executor;
}

TILEWISE_END_PUBLIC
