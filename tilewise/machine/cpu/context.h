// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "tilewise/base/context.h"

TILEWISE_BEGIN_PUBLIC

/// A context on this machine's CPU with a pool of its own. `threads` 0: TILEWISE_THREADS, else what affinity and the cgroup quota leave.
/// Contexts that should share threads copy `executor`.
/// Errors: value (threads below 0 or above 1024; TILEWISE_THREADS or TILEWISE_TARGET set to what cannot be used).
TILEWISE_API Context cpu_context(int threads = 0);

/// What cpu_context(0) takes: TILEWISE_THREADS, else the smaller of the affinity mask and the cgroup quota (rounded up), at least 1.
/// Errors: value (TILEWISE_THREADS is not a number from 1 to 1024).
TILEWISE_API int default_threads();

TILEWISE_END_PUBLIC
