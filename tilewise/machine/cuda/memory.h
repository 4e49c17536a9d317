// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <memory>

#include "tilewise/base/memory.h"

TILEWISE_BEGIN_PUBLIC

/// Memory of a CUDA device for Context::memory: blocks come from the device's pool and go back in the order of `stream` (a cudaStream_t), so that
/// nothing waits for the device; the stream must outlive them. Built with TILEWISE_WITH_CUDA. Errors of allocate(): memory.
TILEWISE_API std::shared_ptr<Memory> cuda_memory(int device = 0, void* stream = nullptr);

TILEWISE_END_PUBLIC
