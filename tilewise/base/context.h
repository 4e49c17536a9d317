// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <memory>
#include <stop_token>

#include "tilewise/base/error.h"
#include "tilewise/base/executor.h"
#include "tilewise/base/memory.h"

TILEWISE_BEGIN_PUBLIC

/// What a call runs with. One caller at a time; executors and plans may be shared by any number of contexts.
struct Context {
  Device device = {};
  void* stream = nullptr;  // cudaStream_t on a GPU; work and frees are ordered on it
  std::shared_ptr<Memory> memory = host_memory();
  std::shared_ptr<Executor> executor = serial_executor();
  std::stop_token cancel = {};  // a request stops the call with Error::Kind::cancelled, within one item of work

  int concurrency() const { return executor->concurrency(); }
  /// Errors: cancelled.
  void check_cancel() const { check(!cancel.stop_requested(), Error::Kind::cancelled, "cancelled by the caller"); }
  /// executor->run, with a look at `cancel` before every item.
  void parallel_for(int64_t count, FunctionRef<void(int64_t item, int worker)> body) const {
    check_cancel();
    executor->run(count, [&](int64_t item, int worker) {
      check_cancel();
      body(item, worker);
    });
  }
};

TILEWISE_END_PUBLIC
