// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "tilewise/attend/decode_problem.h"

namespace tilewise::attend::reference {

/// attend_decode in plain loops and float64: integers and pages become numbers first, then each query sums over its pairs.
TILEWISE_API Ran decode(const DecodeProblem& problem, Context& context);

}  // namespace tilewise::attend::reference
