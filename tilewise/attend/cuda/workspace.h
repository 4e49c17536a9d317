// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstddef>

#include "tilewise/base/context.h"

namespace tilewise::attend::cuda {

/// `bytes` of Context::memory, on the device. Errors: memory; device, when it is host memory.
Buffer device_buffer(const char* function, size_t bytes, const Context& context);

}  // namespace tilewise::attend::cuda
