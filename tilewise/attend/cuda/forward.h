// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <optional>
#include <string>

#include "tilewise/attend/params.h"

namespace tilewise::attend::cuda {

/// Why these kernels do not take a problem; nullopt: they do.
std::optional<std::string> refusal(const AttendParams& params);

/// attend_forward on any GPU of compute capability 8.0 or above, for bf16, f16 and f32 with up to 256 channels: every part of a plan and of AttendParams, any
/// strides. About half the speed of attend/sm90 at best, which is therefore asked first. The plan's arrays are on the device (copy_to_device()), work is
/// ordered on Context::stream, and the call returns when it is queued. pairs_read is -1: the counts of a device plan are not known to the host.
Ran forward(const AttendParams& params, Context& context);

}  // namespace tilewise::attend::cuda
