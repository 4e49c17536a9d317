// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "tilewise/attend/params.h"

namespace tilewise::attend::reference {

/// measure() in f64 plain loops. A NaN among the values makes sum and max NaN.
TILEWISE_API Ran measure(const MeasureParams& params, Context& context);

}  // namespace tilewise::attend::reference
