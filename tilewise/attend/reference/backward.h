// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "tilewise/attend/params.h"

namespace tilewise::attend::reference {

/// attend_backward in f64 plain loops. The probabilities are exp(s - lse) of the lse that is given (f32), delta = dout . out - dlse of the given out:
/// so the parts of a merged attention each take the merged out and lse. Gradients of pooled keys spread over the real tokens of their group.
/// Where q, k and v are one tensor, their gradients may be one, which gets the sum.
TILEWISE_API Ran backward(const AttendBackwardParams& params, Context& context);

}  // namespace tilewise::attend::reference
