// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "tilewise/base/context.h"
#include "tilewise/plan/plan.h"

TILEWISE_BEGIN_PUBLIC

/// A copy of a host plan with its arrays on `context.device`, in memory of `context.memory` (cuda_memory()). Waits for the copy. Built with
/// TILEWISE_WITH_CUDA. Errors: value (null plan), device (the context is not on a GPU, or its memory is host memory; the plan is not on the host), shape (an array
/// that is not contiguous), memory, cuda.
TILEWISE_API Plan copy_to_device(const Plan& plan, Context& context);

/// The way back: a copy of a device plan in host memory. Waits for the stream. Errors: as copy_to_device, the other way round.
TILEWISE_API Plan copy_to_host(const Plan& plan, const Context& context);

TILEWISE_END_PUBLIC
