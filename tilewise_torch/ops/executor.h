// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <memory>

#include "tilewise/base/executor.h"

namespace tilewise::ops {

/// Runs items on torch's own threads (torch.set_num_threads), so that one process has one pool and torch's spinning threads do not fight with ours.
/// Several callers at once are fine; a call from inside a body runs in the calling worker.
std::shared_ptr<Executor> torch_executor();

}  // namespace tilewise::ops
