// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <optional>
#include <string>

#include "tilewise/attend/params.h"

namespace tilewise::attend::cpu {

/// Why this backend does not take a measurement that passed its checks; nullopt: it does. Takes what forward takes.
TILEWISE_API std::optional<std::string> refusal(const MeasureParams& params);

/// measure() on machine/cpu/simd.h: every MeasureOver, sum, max and count in one pass, in f32. A NaN among the values makes sum and max NaN.
/// Bits depend on the target, not on the executor.
TILEWISE_API Ran measure(const MeasureParams& params, Context& context);

}  // namespace tilewise::attend::cpu
