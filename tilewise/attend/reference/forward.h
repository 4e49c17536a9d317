// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "tilewise/attend/params.h"

namespace tilewise::attend::reference {

/// attend_forward in f64 plain loops: the definition that every backend is tested against. Takes every part of a plan and f32, f64, bf16 and f16.
/// Checks, errors and edges are those of attend_forward; the plan's entries are validated, too. Bits do not depend on the executor.
TILEWISE_API Ran forward(const AttendParams& params, Context& context);

}  // namespace tilewise::attend::reference
