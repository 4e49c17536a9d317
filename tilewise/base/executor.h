// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <memory>
#include <type_traits>

#include "tilewise/base/api.h"

TILEWISE_BEGIN_PUBLIC

/// A borrowed callable: two pointers, no allocation. It must not outlive what it refers to.
template <class Signature>
class FunctionRef;
template <class Result, class... Args>
class FunctionRef<Result(Args...)> {
 public:
  template <class Callable>
    requires(!std::is_same_v<std::remove_cvref_t<Callable>, FunctionRef>)
  FunctionRef(Callable&& callable)  // implicit, like std::function
      : object_(const_cast<void*>(static_cast<const void*>(&callable))), call_([](void* object, Args... args) -> Result {
          return (*static_cast<std::remove_reference_t<Callable>*>(object))(static_cast<Args>(args)...);
        }) {}
  Result operator()(Args... args) const { return call_(object_, static_cast<Args>(args)...); }

 private:
  void* object_;
  Result (*call_)(void*, Args...);
};

/// Runs independent items, perhaps on several threads.
class TILEWISE_API Executor {
 public:
  virtual ~Executor() = default;
  /// Workers that may run at once; `worker` below is in [0, concurrency()).
  virtual int concurrency() const = 0;
  /// Calls body(item, worker) once for every item in [0, count), items handed out in ascending order; returns when all are done.
  /// The first exception of a body is rethrown here after the started items end; items not yet started are dropped.
  /// May be called by several threads at once; a call from inside a body runs its items in the calling worker.
  virtual void run(int64_t count, FunctionRef<void(int64_t item, int worker)> body) = 0;
};

/// Everything in the calling thread.
TILEWISE_API std::shared_ptr<Executor> serial_executor();

TILEWISE_END_PUBLIC
