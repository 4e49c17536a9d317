// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "tilewise/attend/params.h"

TILEWISE_BEGIN_PUBLIC

/// What kernels work out about a plan before they run, made once for many calls: AttendParams::schedule. Today: which keys the backward holds in turn
/// and the queries that read them (the plan's transpose where it lacks by_key), and the order in which their gradients add up. It keeps the plan alive.
/// `heads_kv`: Hkv of the tensors to come. Without a schedule attend_backward makes one itself, at each call: O(runs) up to a logarithm.
/// Of a plan on a GPU the schedule is made there, by the first call of a head_dim class, which waits for it; later calls with it neither make nor wait for anything.
/// Errors  value (null plan; heads_kv that does not divide the plan's heads; an untested pair that the plan's own mask forbids), device (the plan is not
///         where the context runs), memory, cancelled.
TILEWISE_API Schedule attend_prepare(const Plan& plan, int heads_kv, Context& context);

TILEWISE_END_PUBLIC
