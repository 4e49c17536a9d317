// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <memory>

#include "tilewise/base/executor.h"

TILEWISE_BEGIN_PUBLIC

/// A pool of `threads` workers: the caller and threads - 1 threads of its own, which spin for about 20 us after work and then sleep.
/// Bits of a result never depend on its size. Several callers may use it at once: the first gets the threads, the others run their items themselves
/// and are joined by threads as these come free. A call from inside a body runs in the calling worker.
/// Errors: value (threads below 1 or above 1024).
TILEWISE_API std::shared_ptr<Executor> make_thread_pool(int threads);

TILEWISE_END_PUBLIC
